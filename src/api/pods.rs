//! Streams of pods: logs, exec, attach, port-forward.

use std::time::Duration;

use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use tokio::time::timeout;

use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::link::stream::{Channel, Frame, LogOptions, StreamRequest};

use super::listen::stopped;
use super::reply::{Body, typed};
use super::request::Call;
use super::route::Target;

/// How long a log may stay silent before its headers are sent: an error in this time is a real HTTP error.
const FIRST: Duration = Duration::from_secs(5);

/// Whether a target is a stream of a pod.
pub(super) fn is_stream(target: &Target) -> bool {
    matches!(target.sub, Some(Subresource::Other("log" | "exec" | "attach" | "portforward")))
}

/// Opens the stream and answers.
pub(super) async fn answer(call: Call, _body: Incoming) -> Result<Response<Body>, Status> {
    let pod = call.api.registry.get(call.kind(), &call.target.ns, &call.target.name)?;
    match call.target.sub_name() {
        "log" => logs(&call, &pod).await,
        _ => Err(Status::unavailable("streams are not available")),
    }
}

async fn logs(call: &Call, pod: &Object) -> Result<Response<Body>, Status> {
    let container = container(pod, call.query.get("container"))?;
    let node = meta::str_at(pod, "/spec/nodeName");
    if node.is_empty() {
        return Ok(typed(200, "text/plain", Default::default()));
    }
    let request = StreamRequest::Logs { pod: meta::uid(pod).to_owned(), container, options: log_options(call)? };
    let mut stream = call.api.streams.open(node, request).await?;
    let first = match timeout(FIRST, stream.rx.recv()).await {
        Ok(Some(Frame { channel: Channel::Error, data })) => match failure(&data) {
            Some(status) => return Err(status),
            None => return Ok(typed(200, "text/plain", Default::default())),
        },
        Ok(Some(frame)) => Some(frame),
        Ok(None) => return Ok(typed(200, "text/plain", Default::default())),
        Err(_) => None,
    };
    let stopping = call.api.stopping.subscribe();
    let frames = stream::unfold((stream, first), move |(mut stream, first)| {
        let mut stopping = stopping.clone();
        async move {
            let frame = match first {
                Some(frame) => Some(frame),
                None => tokio::select! {
                    frame = stream.rx.recv() => frame,
                    () = stopped(&mut stopping) => None,
                },
            };
            let data = frame.filter(|f| f.channel != Channel::Error && !f.data.is_empty())?.data;
            Some((Ok::<_, Status>(BodyFrame::data(data)), (stream, None)))
        }
    });
    let body: Body = StreamBody::new(frames).boxed_unsync();
    Ok(typed(200, "text/plain", Default::default()).map(|_| body))
}

/// The container meant: the one named, the only one, or the annotated default.
fn container(pod: &Object, named: &str) -> Result<String, Status> {
    let names = |path: &str| -> Vec<String> {
        meta::list_at(pod, path).iter().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (main, name) = (names("/spec/containers"), meta::name(pod));
    let others = [names("/spec/initContainers"), names("/spec/ephemeralContainers")].concat();
    if !named.is_empty() {
        return match main.iter().chain(&others).any(|c| c == named) {
            true => Ok(named.to_owned()),
            false => Err(Status::bad_request(format!("container {named} is not valid for pod {name}"))),
        };
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    if let Some(default) = meta::annotation(pod, "kubectl.kubernetes.io/default-container")
        && main.iter().any(|c| c == default)
    {
        return Ok(default.to_owned());
    }
    let choice = main.join(" ");
    Err(Status::bad_request(format!("a container name must be specified for pod {name}, choose one of: [{choice}]")))
}

fn log_options(call: &Call) -> Result<LogOptions, Status> {
    let query = &call.query;
    let text = |key: &str| Some(query.get(key).to_owned()).filter(|s| !s.is_empty());
    let options = LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds: query.number("sinceSeconds")?,
        since_time: text("sinceTime"),
        tail_lines: query.number("tailLines")?,
        limit_bytes: query.number("limitBytes")?,
    };
    if options.since_seconds.is_some() && options.since_time.is_some() {
        return Err(Status::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if let Some(stream) = text("stream").filter(|s| s != "All") {
        return Err(Status::bad_request(format!(
            "stream {stream:?} is not supported: logs keep both streams together"
        )));
    }
    Ok(options)
}

/// The error in the `Status` at the end of a stream; `None` for success.
fn failure(data: &[u8]) -> Option<Status> {
    let value: serde_json::Value = serde_json::from_slice(data).ok()?;
    if value["status"] == "Success" {
        return None;
    }
    let code = value["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
    let message = value["message"].as_str().unwrap_or("the stream ended").to_owned();
    let reason = match code {
        400 => "BadRequest",
        404 => "NotFound",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    Some(Status { details: value["details"].clone(), ..Status::new(code, reason, message) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_found() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        });
        let mut annotated = two.clone();
        annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        for (pod, named, expected) in [
            (&one, "", Some("a")),
            (&two, "", None),
            (&two, "i", Some("i")),
            (&two, "x", None),
            (&annotated, "", Some("b")),
        ] {
            assert_eq!(container(pod.as_object().unwrap(), named).ok().as_deref(), expected, "{named}");
        }
    }

    #[test]
    fn a_stream_ends_with_a_status() {
        assert_eq!(failure(br#"{"status":"Success"}"#), None);
        let gone = failure(br#"{"status":"Failure","code":404,"message":"no container"}"#).unwrap();
        assert_eq!((gone.code, gone.message.as_str()), (404, "no container"));
        assert_eq!(failure(b"garbage"), None);
    }
}
