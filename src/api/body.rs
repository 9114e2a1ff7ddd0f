//! Reading the bodies of requests.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::kinds::status::Status;
use crate::kinds::{Object, protobuf, schema};

/// Largest body of a request in bytes, as in Kubernetes.
pub(super) const MAX_BODY: usize = 3 << 20;
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The body; 413 past [`MAX_BODY`].
pub(super) async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, Status> {
    let too_large = || Status::too_large(format!("limit is {MAX_BODY}"));
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Status::bad_request(format!("read the request body: {error}"))),
    }
}

/// The media type of the body without parameters; JSON if none is given.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match value.split(';').next().unwrap_or_default().trim() {
        "" => "application/json",
        media => media,
    }
}

/// An object as a client sent it.
#[derive(Default)]
pub(super) struct Decoded {
    /// The object.
    pub(super) object: Object,
    /// Fields given twice, worded for the client.
    pub(super) duplicates: Vec<String>,
}

/// The object in a body of a media type.
pub(super) fn decode(media: &str, body: &[u8]) -> Result<Decoded, Status> {
    let invalid = |e: &dyn std::fmt::Display| Status::bad_request(format!("unable to decode the request body: {e}"));
    match media {
        "application/json" => {
            let parsed = schema::parse::parse(body).map_err(|e| invalid(&e))?;
            Ok(Decoded { object: parsed.object, duplicates: parsed.duplicates })
        }
        "application/yaml" => Ok(Decoded { object: yaml(body)?, duplicates: Vec::new() }),
        "application/vnd.kubernetes.protobuf" => {
            let object = protobuf::decode(body).map_err(|e| invalid(&e))?;
            Ok(Decoded { object, duplicates: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(ACCEPTED)),
    }
}

/// One YAML (or JSON) document that is an object.
pub(super) fn yaml(body: &[u8]) -> Result<Object, Status> {
    match serde_yaml::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Status::bad_request("error decoding YAML: must be an object")),
        Err(error) => Err(Status::bad_request(format!("error decoding YAML: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies_are_objects() {
        let expected = json!({"kind": "Pod", "metadata": {"name": "a"}, "on": "yes", "n": 1});
        for (media, body) in [
            ("application/json", r#"{"kind": "Pod", "metadata": {"name": "a"}, "on": "yes", "n": 1}"#),
            ("application/yaml", "kind: Pod\nmetadata:\n  name: a\n'on': 'yes'\nn: 1\n"),
            ("application/yaml", r#"{"kind": "Pod", "metadata": {"name": "a"}, "on": "yes", "n": 1}"#),
        ] {
            assert_eq!(Value::Object(decode(media, body.as_bytes()).unwrap().object), expected);
        }
        for (media, body, code) in [
            ("application/json", "[1]", 400),
            ("application/json", "{", 400),
            ("application/yaml", "- a", 400),
            ("application/vnd.kubernetes.protobuf", "{}", 400),
            ("text/plain", "{}", 415),
        ] {
            assert_eq!(decode(media, body.as_bytes()).err().map(|s| s.code), Some(code), "{media} {body}");
        }
        assert_eq!(decode("application/json", br#"{"a": 1, "a": 2}"#).unwrap().duplicates.len(), 1);
    }

    #[test]
    fn media_types_lose_their_parameters() {
        let mut headers = HeaderMap::new();
        assert_eq!(content_type(&headers), "application/json");
        headers.insert(CONTENT_TYPE, "application/yaml; charset=utf-8".parse().unwrap());
        assert_eq!(content_type(&headers), "application/yaml");
    }
}
