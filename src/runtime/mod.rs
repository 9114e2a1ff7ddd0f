//! Pod sandboxes and containers: the shim, its protocol, OCI specs, executor, cgroups, seccomp.
