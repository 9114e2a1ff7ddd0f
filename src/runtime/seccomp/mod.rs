//! System call filters.

use super::{Result, Seccomp};

/// The filter as classic BPF.
pub(super) fn compile(profile: &Seccomp, capabilities: u64) -> Result<Vec<u64>> {
    let _ = (profile, capabilities);
    // allow everything, for now: BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    Ok(vec![0x7fff_0000_0000_0006])
}
