//! `metrics.k8s.io`: what nodes and pods use. Objects of these kinds are measured when asked for, and never stored.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Hooks, Kind, Object, meta};

/// The group and version.
pub const GROUP_VERSION: (&str, &str) = ("metrics.k8s.io", "v1beta1");

/// Its kinds, `NodeMetrics` and `PodMetrics`.
pub fn kinds() -> [Kind; 2] {
    [
        Kind::new(GROUP_VERSION, "NodeMetrics", "nodes", &Metrics).cluster(),
        Kind::new(GROUP_VERSION, "PodMetrics", "pods", &Metrics),
    ]
}

/// The hooks of both.
struct Metrics;

impl Hooks for Metrics {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Cpu", kind: "string", format: "", priority: 0 },
            Column { name: "Memory", kind: "string", format: "", priority: 0 },
            Column { name: "Window", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, _: Timestamp) -> Vec<Value> {
        let sum = |resource: &str, unit: &str| {
            let of = |holder: &Value| -> u64 {
                let text = holder["usage"][resource].as_str().unwrap_or_default();
                text.trim_end_matches(unit).parse().unwrap_or(0)
            };
            let containers = meta::list_at(object, "/containers").iter().map(of).sum::<u64>();
            let node = object.get("usage").map_or(0, |usage| of(&json!({ "usage": usage })));
            json!(format!("{}{unit}", containers + node))
        };
        vec![sum("cpu", "n"), sum("memory", "Ki"), object.get("window").cloned().unwrap_or_default()]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_sum_of_the_containers() {
        let usage = |cpu: &str, memory: &str| json!({"usage": {"cpu": cpu, "memory": memory}});
        let node = json!({"window": "1s", "usage": usage("5n", "7Ki")["usage"]});
        let pod = json!({"window": "2.5s", "containers": [usage("5n", "7Ki"), usage("0", "1Ki")]});
        for (object, expected) in [(node, ["5n", "7Ki", "1s"]), (pod, ["5n", "8Ki", "2.5s"])] {
            assert_eq!(Metrics.cells(object.as_object().unwrap(), Timestamp::UNIX_EPOCH), expected);
        }
    }
}
