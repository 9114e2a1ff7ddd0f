//! Streams of pods: logs, exec, attach, port-forward. Finds the pod and its node; [`stream`](super::stream) does the
//! rest.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};

use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::link::stream::StreamRequest;

use super::listen::stopped;
use super::reply::{Body, typed};
use super::request::Call;
use super::route::{Target, Verb};
use super::stream::{
    Opener, Upgrade, command_options, forward_ports, log_body, log_options, port_forward, remote_command,
};

/// Whether a target is a stream of a pod.
pub(super) fn is_stream(target: &Target) -> bool {
    matches!(target.sub, Some(Subresource::Other("log" | "exec" | "attach" | "portforward")))
}

/// Opens the stream and answers.
pub(super) async fn answer(call: Call, verb: Verb) -> Result<Response<Body>, Status> {
    let pod = call.api.registry.get(call.kind(), &call.target.ns, &call.target.name)?;
    match (call.target.sub_name(), verb) {
        ("log", Verb::Get) => logs(&call, &pod).await,
        ("exec", Verb::Get | Verb::Create) => command(call, &pod, false).await,
        ("attach", Verb::Get | Verb::Create) => command(call, &pod, true).await,
        ("portforward", Verb::Get | Verb::Create) => forward(call, &pod),
        _ => Err(Status::method_not_allowed()),
    }
}

async fn logs(call: &Call, pod: &Object) -> Result<Response<Body>, Status> {
    let (named, options) = log_options(call.query_text())?;
    let container = container(pod, named.as_deref())?;
    let node = meta::str_at(pod, "/spec/nodeName");
    if node.is_empty() {
        return Ok(typed(200, "text/plain", Default::default()));
    }
    if !options.previous {
        has_begun(pod, &container)?;
    }
    let request = StreamRequest::Logs { pod: meta::uid(pod).to_owned(), container, options };
    let body = log_body(call.api.streams.open(node, request).await?).await?;
    let mut stopping = call.api.stopping.subscribe();
    // Followed logs end with the server, as watches do.
    let frames = TryStreamExt::map_err(BodyStream::new(body), Status::internal);
    let frames = frames.take_until(async move { stopped(&mut stopping).await });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Refuses the logs of a container that waits for its first run.
fn has_begun(pod: &Object, container: &str) -> Result<(), Status> {
    let statuses = ["/status/initContainerStatuses", "/status/containerStatuses", "/status/ephemeralContainerStatuses"];
    let Some(status) = statuses.iter().flat_map(|path| meta::list_at(pod, path)).find(|s| s["name"] == container)
    else {
        return Ok(());
    };
    let Some(reason) = status["state"]["waiting"]["reason"].as_str() else { return Ok(()) };
    if !status["lastState"]["terminated"].is_null() {
        return Ok(());
    }
    let why = match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    let name = meta::name(pod);
    Err(Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {why}")))
}

/// Exec, or attach if nothing is to be run.
async fn command(call: Call, pod: &Object, attach: bool) -> Result<Response<Body>, Status> {
    let options = command_options(call.query_text())?;
    let upgrade = Upgrade::remote_command(&call.head.method, &call.head.headers)?;
    let container = container(pod, options.container.as_deref())?;
    if !attach && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    let (uid, streams) = (meta::uid(pod).to_owned(), options.streams);
    let request = match attach {
        true => StreamRequest::Attach { pod: uid, container, streams },
        false => StreamRequest::Exec { pod: uid, container, command: options.command, streams },
    };
    let stream = call.api.streams.open(node(pod)?, request).await?;
    Ok(remote_command(upgrade, &mut call.upgradable(), streams, stream).map(empty))
}

fn forward(call: Call, pod: &Object) -> Result<Response<Body>, Status> {
    let ports = forward_ports(call.query_text())?;
    let upgrade = Upgrade::port_forward(&call.head.method, &call.head.headers, &ports)?;
    let (node, uid) = (node(pod)?.to_owned(), meta::uid(pod).to_owned());
    let streams = call.api.streams.clone();
    let open: Opener = Arc::new(move |port| {
        let (streams, node) = (streams.clone(), node.clone());
        let request = StreamRequest::PortForward { pod: uid.clone(), port };
        Box::pin(async move { streams.open(&node, request).await })
    });
    Ok(port_forward(upgrade, &mut call.upgradable(), ports, open).map(empty))
}

impl Call {
    fn query_text(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }

    /// The request as the upgrade of its connection wants it.
    fn upgradable(self) -> Request<()> {
        Request::from_parts(self.head, ())
    }
}

fn empty(_: ()) -> Body {
    super::reply::full(Default::default())
}

/// The node a pod is on.
fn node(pod: &Object) -> Result<&str, Status> {
    match meta::str_at(pod, "/spec/nodeName") {
        "" => Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod)))),
        node => Ok(node),
    }
}

/// The container meant: the one named, the only one, or the annotated default.
fn container(pod: &Object, named: Option<&str>) -> Result<String, Status> {
    let names = |path: &str| -> Vec<String> {
        meta::list_at(pod, path).iter().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (main, name) = (names("/spec/containers"), meta::name(pod));
    let others = [names("/spec/initContainers"), names("/spec/ephemeralContainers")].concat();
    if let Some(named) = named {
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
            (&one, None, Some("a")),
            (&two, None, None),
            (&two, Some("i"), Some("i")),
            (&two, Some("x"), None),
            (&annotated, None, Some("b")),
        ] {
            assert_eq!(container(pod.as_object().unwrap(), named).ok().as_deref(), expected, "{named:?}");
        }
    }

    #[test]
    fn a_container_that_never_ran_has_no_logs() {
        let waiting = |reason: &str| json!({"name": "a", "state": {"waiting": {"reason": reason}}});
        let mut crashed = waiting("CrashLoopBackOff");
        crashed["lastState"] = json!({"terminated": {"exitCode": 1}});
        for (status, expected) in [
            (waiting("ImagePullBackOff"), "trying and failing to pull image"),
            (waiting("PodInitializing"), "PodInitializing"),
            (crashed, ""),
            (json!({"name": "a", "state": {"running": {}}}), ""),
            (json!({"name": "b"}), ""),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [status]}});
            let message = has_begun(pod.as_object().unwrap(), "a").err().map(|s| s.message).unwrap_or_default();
            let prefix = r#"container "a" in pod "p" is waiting to start: "#;
            assert_eq!(message.strip_prefix(prefix).unwrap_or_default(), expected);
        }
    }

    #[test]
    fn a_pod_without_a_node_has_no_streams() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        assert_eq!(node(pod.as_object().unwrap()).unwrap_err().message, "pod p does not have a host assigned");
    }
}
