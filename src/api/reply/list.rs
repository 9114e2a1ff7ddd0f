//! Lists, written piece by piece: a large list never exists as one document in memory.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Frame;
use jiff::Timestamp;

use crate::api::table;
use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::registry::{List, Raw};

use super::{Body, COMPRESS_FROM, Form, Style, compressed_headers, list_metadata, typed};

/// Bytes written before the connection gets a turn.
const PIECE: usize = 64 << 10;

/// The answer to a list request.
pub(super) fn response(style: Style, kind: Arc<Kind>, list: List) -> Result<Response<Body>, Status> {
    let metadata = list_metadata(&list);
    let size: usize = list.items.iter().map(Raw::size).sum();
    let head = match style.form {
        Form::Table => style.table_head(&kind, &metadata, true),
        Form::Metadata => {
            let head = r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":"#;
            format!(r#"{head}{metadata},"items":["#).into_bytes()
        }
        _ => {
            let (name, version) = (&kind.kind, kind.api_version());
            format!(r#"{{"kind":"{name}List","apiVersion":"{version}","metadata":{metadata},"items":["#).into_bytes()
        }
    };
    let items = list.items.into_iter();
    let mut writer = Writer { style, kind, items, now: Timestamp::now(), first: true };
    if size < PIECE {
        let mut out = head;
        writer.write(&mut out, usize::MAX)?;
        return Ok(style.bytes(200, out.into()));
    }
    let gzip = style.gzip && size >= COMPRESS_FROM;
    let encoder = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let body = ListBody { writer, head: Some(head), encoder, done: false }.boxed_unsync();
    let mut response = typed(200, "application/json", Bytes::new()).map(|_| body);
    if gzip {
        compressed_headers(response.headers_mut());
    }
    Ok(response)
}

/// Writes the items of a list.
struct Writer {
    style: Style,
    kind: Arc<Kind>,
    items: IntoIter<Raw>,
    now: Timestamp,
    first: bool,
}

impl Writer {
    /// Appends items until `out` has `enough` bytes; true when the list is complete.
    fn write(&mut self, out: &mut Vec<u8>, enough: usize) -> Result<bool, Status> {
        while out.len() < enough {
            let Some(raw) = self.items.next() else {
                out.extend_from_slice(b"]}");
                return Ok(true);
            };
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            match self.style.form {
                Form::Table => table::row(&self.kind, &raw, self.style.include, self.now, out)?,
                Form::Metadata => raw.write_metadata_to(out)?,
                _ => raw.write_to(out),
            }
        }
        Ok(false)
    }
}

struct ListBody {
    writer: Writer,
    head: Option<Vec<u8>>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl ListBody {
    fn piece(&mut self) -> Result<Bytes, Status> {
        loop {
            let mut out = self.head.take().unwrap_or_else(|| Vec::with_capacity(PIECE + (PIECE >> 2)));
            self.done = self.writer.write(&mut out, PIECE)?;
            let Some(encoder) = &mut self.encoder else { return Ok(out.into()) };
            encoder.write_all(&out).map_err(Status::internal)?;
            if self.done {
                encoder.try_finish().map_err(Status::internal)?;
            }
            if self.done || encoder.get_ref().len() >= PIECE / 4 {
                return Ok(std::mem::take(encoder.get_mut()).into());
            }
        }
    }
}

impl hyper::body::Body for ListBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let piece = self.piece();
        self.done |= piece.is_err();
        Poll::Ready(Some(piece.map(Frame::data)))
    }
}
