//! The Kubernetes model as data: the field table, the kind table, and per kind a small file of hooks.
