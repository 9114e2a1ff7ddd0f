//! Manifests that more than one test applies.

#![allow(dead_code, missing_docs, unreachable_pub)]

/// A Deployment `web` of pods with the label `app: web`; `spec` is that of its pods.
pub fn web(replicas: usize, spec: &str) -> String {
    let spec = spec.trim().replace('\n', "\n      ");
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      {spec}
"
    )
}

/// The load balancer's configuration as the course has it, with one pool.
pub fn pool(addresses: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: metallb-system}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{namespace: metallb-system, name: config}}
data:
  config: |
    address-pools:
    - name: default
      protocol: layer2
      addresses:
      - {addresses}
"
    )
}
