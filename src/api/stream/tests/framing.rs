use std::io;

use super::{
    super::spdy::{Event, Reader},
    *,
};
use crate::link::stream::MAX_FRAME;

async fn read(bytes: &[u8]) -> io::Result<Vec<Event>> {
    let mut reader = Reader::new(bytes);
    let mut events = Vec::new();
    while let Some(event) = reader.next().await? {
        events.push(event);
    }
    Ok(events)
}

#[tokio::test]
async fn header_blocks_share_one_compression_context() {
    let (near, far) = tokio::io::duplex(4096);
    let mut client = Spdy::new(near);
    for kind in ["error", "stdin", "stdout"] {
        client.open(&[("streamtype", kind), ("X-Other", "v")]).await;
    }
    drop(client);
    let mut reader = Reader::new(far);
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        let headers = vec![("streamtype".to_owned(), kind.to_owned()), ("x-other".into(), "v".into())];
        assert_eq!(reader.next().await.unwrap(), Some(Event::Open { id, headers, fin: false }));
    }
    assert_eq!(reader.next().await.unwrap(), None);
}

#[tokio::test]
async fn long_data_comes_in_pieces() {
    let mut bytes = vec![0, 0, 0, 7, 1, 0xff, 0xff, 0xff];
    bytes.resize(8 + 0xff_ffff, 1);
    let events = read(&bytes).await.unwrap();
    let mut total = 0;
    for (i, event) in events.iter().enumerate() {
        let Event::Data { id: 7, data, fin } = event else { panic!("{event:?}") };
        assert!(data.len() <= MAX_FRAME && *fin == (i + 1 == events.len()));
        total += data.len();
    }
    assert_eq!(total, 0xff_ffff);
    assert_eq!(read(&[0, 0, 0, 9, 1, 0, 0, 0]).await.unwrap(), [Event::Data { id: 9, data: Bytes::new(), fin: true }]);
}

#[tokio::test]
async fn hostile_frames_are_errors() {
    let syn = |block: &[u8]| {
        let mut frame = [0x80, 3, 0, 1, 0].to_vec();
        frame.extend(&(block.len() as u32 + 10).to_be_bytes()[1..]);
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        frame.extend(block);
        frame
    };
    let packed = |plain: &[u8]| {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        let mut packed = Vec::with_capacity(plain.len() + 100);
        deflate.compress_vec(plain, &mut packed, FlushCompress::Sync).unwrap();
        packed
    };
    let table = [
        ("version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("long control frame", vec![0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]),
        ("short ping", vec![0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0]),
        ("short syn", vec![0x80, 3, 0, 1, 0, 0, 0, 5, 0, 0, 0, 1, 0]),
        ("empty block", syn(&[])),
        ("not zlib", syn(b"hello, this is not compressed")),
        ("other dictionary", syn(&[0x78, 0xbb, 1, 2, 3, 4, 5, 6])),
        ("bomb", syn(&packed(&vec![0; 5 << 20]))),
        ("count", syn(&packed(&[0xff; 4]))),
        ("length", syn(&packed(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']))),
    ];
    for (name, bytes) in table {
        assert_eq!(read(&bytes).await.map_err(|e| e.kind()), Err(io::ErrorKind::InvalidData), "{name}");
    }
    assert_eq!(read(&[0x80, 3, 0, 4, 0, 0, 0, 1, 9]).await.unwrap(), [], "unknown control frames are skipped");
}

/// Noise, and good frames with flipped bits, at every length: an error or nothing, never a panic.
#[tokio::test]
async fn noise_never_panics() {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let mut client = Spdy::new(near);
    for _ in 0..5 {
        client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]).await;
        client.send(1, "some data", false).await;
    }
    drop(client);
    let mut good = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut far, &mut good).await.unwrap();
    for _ in 0..20_000 {
        let mut bytes = good[..next() % good.len()].to_vec();
        for _ in 0..next() % 4 {
            let at = next() % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (next() % 8);
            }
        }
        let _ = read(&bytes).await;
    }
}
