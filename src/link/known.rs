//! A pod told to a node that most likely holds what it uses: large objects are named, not sent.
//!
//! A node that connects again is told everything it should have. What of that it has is on its disk, and on a mobile
//! link every ConfigMap costs money.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::message::{Dependency, DesiredPod, Reference};
use crate::kinds::{Object, meta};

/// Objects of more bytes (as JSON) are large.
const LARGE: usize = 512;

/// A [`DesiredPod`] without the content of its large objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownPod {
    /// The large objects.
    held: Vec<Held>,
    /// The rest.
    rest: DesiredPod,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Held {
    #[serde(flatten)]
    reference: Reference,
    /// SHA-256 of the object as JSON.
    digest: String,
}

impl KnownPod {
    /// The pod itself where nothing of it is large.
    ///
    /// # Errors
    /// That is none, but the pod as it came.
    pub fn of(mut pod: DesiredPod) -> Result<Self, DesiredPod> {
        let mut held = Vec::new();
        pod.objects.retain(|Dependency { reference, object }| {
            let large = object.as_ref().map(to_json).filter(|json| json.len() > LARGE);
            held.extend(large.as_deref().map(|json| Held { reference: reference.clone(), digest: hash(json) }));
            large.is_none()
        });
        if held.is_empty() { Err(pod) } else { Ok(Self { held, rest: pod }) }
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        meta::uid(&self.rest.pod)
    }

    /// The whole pod, with what the node keeps of it; `None` if something is missing or not the same.
    pub fn complete(self, kept: DesiredPod) -> Option<DesiredPod> {
        let Self { held, mut rest } = self;
        let mut kept = kept.objects;
        for Held { reference, digest } in held {
            let at = kept.iter().position(|known| known.reference == reference)?;
            let known = kept.swap_remove(at);
            if known.object.as_ref().is_none_or(|object| hash(&to_json(object)) != digest) {
                return None;
            }
            rest.objects.push(known);
        }
        rest.objects.sort_by(|a, b| a.reference.cmp(&b.reference));
        Some(rest)
    }
}

fn to_json(object: &Object) -> Vec<u8> {
    // Such a value can always be written.
    serde_json::to_vec(object).unwrap_or_default()
}

fn hash(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(digest(&SHA256, bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(objects: &[(&str, Option<usize>)]) -> DesiredPod {
        let object = |size: usize| json!({"data": {"k": "x".repeat(size)}}).as_object().unwrap().clone();
        let objects = objects.iter().map(|(name, size)| Dependency {
            reference: Reference { resource: "configmaps".into(), namespace: "n".into(), name: (*name).into() },
            object: size.map(object),
        });
        let pod = json!({"metadata": {"uid": "u"}}).as_object().unwrap().clone();
        DesiredPod { objects: objects.collect(), pod }
    }

    #[test]
    fn what_is_the_same_is_not_sent() {
        let whole = pod(&[("a", Some(5000)), ("b", None), ("c", Some(1)), ("d", Some(9000))]);
        let known = KnownPod::of(whole.clone()).unwrap();
        let wire = serde_json::to_string(&known).unwrap();
        assert!(wire.len() < 1000, "{wire}");
        let known: KnownPod = serde_json::from_str(&wire).unwrap();
        assert_eq!(known.uid(), "u");
        for (kept, complete) in [
            (pod(&[("a", Some(5000)), ("d", Some(9000))]), true),
            (pod(&[("d", Some(9000)), ("c", Some(7)), ("a", Some(5000)), ("x", None)]), true),
            (pod(&[("a", Some(5000)), ("d", Some(9001))]), false),
            (pod(&[("a", Some(5000)), ("d", None)]), false),
            (pod(&[("a", Some(5000))]), false),
        ] {
            assert_eq!(known.clone().complete(kept), complete.then(|| whole.clone()));
        }
    }

    #[test]
    fn small_objects_are_sent() {
        let small = pod(&[("a", Some(100)), ("b", None)]);
        assert_eq!(KnownPod::of(small.clone()), Err(small));
    }
}
