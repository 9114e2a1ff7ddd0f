//! The hash of a pod template, which names the ReplicaSet made from it.

use serde_json::Value;

use super::Object;
use super::names::safe_encode;

/// A stable hash of a pod template (defaults filled in), as `pod-template-hash` and name suffix.
///
/// Key order, null and empty values do not matter; the label `pod-template-hash` is left out. `collision_count` is
/// `status.collisionCount` of the Deployment.
pub fn template_hash(template: &Object, collision_count: i64) -> String {
    let mut hash = Fnv::new();
    hash_members(&mut hash, template);
    if collision_count > 0 {
        hash.write(&collision_count.to_le_bytes());
    }
    safe_encode(&hash.finish().to_string())
}

/// FNV-1a with 32 bits: short names, and the same value on every build of every platform.
struct Fnv(u32);

impl Fnv {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn finish(&self) -> u32 {
        self.0
    }
}

fn hash_value(hash: &mut Fnv, value: &Value) {
    match value {
        Value::Object(object) => hash_members(hash, object),
        Value::Array(list) => {
            hash.write(b"[");
            list.iter().for_each(|v| hash_value(hash, v));
            hash.write(b"]");
        }
        Value::String(text) => {
            hash.write(text.as_bytes());
            hash.write(&[0]);
        }
        other => hash.write(other.to_string().as_bytes()),
    }
}

fn hash_members(hash: &mut Fnv, object: &Object) {
    let mut members: Vec<_> =
        object.iter().filter(|(k, v)| *k != "pod-template-hash" && super::check::present_value(v)).collect();
    members.sort_by_key(|(k, _)| *k);
    hash.write(b"{");
    for (key, value) in members {
        hash.write(key.as_bytes());
        hash.write(&[0]);
        hash_value(hash, value);
    }
    hash.write(b"}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn hash(value: Value, collisions: i64) -> String {
        template_hash(value.as_object().unwrap(), collisions)
    }

    #[test]
    fn only_meaning_counts() {
        let base =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
        let same = json!({"spec": {"volumes": null, "containers": [{"image": "b", "name": "a", "env": []}]},
            "metadata": {"creationTimestamp": null, "labels": {"pod-template-hash": "x", "app": "web"}}});
        let other =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "c"}]}});
        assert_eq!(hash(base.clone(), 0), hash(same, 0));
        assert_ne!(hash(base.clone(), 0), hash(other, 0));
        assert_ne!(hash(base.clone(), 0), hash(base.clone(), 1));
        assert!(hash(base, 0).bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)));
    }

    #[test]
    fn the_hash_never_changes_between_versions() {
        assert_eq!(hash(json!({"spec": {"a": 1}}), 0), "958ff56d6");
    }
}
