//! Forks of the shim, and what their ends mean.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    socket::{AddressFamily, SockFlag, SockType, socketpair},
    wait::{WaitPidFlag, WaitStatus, waitpid},
};

use super::super::{Result, container::Report, protocol, sys};

/// Runs `work` in a forked helper that keeps only the given descriptors (above the standard streams). Returns its process
/// id and the socket it reports on.
pub(super) fn spawn_helper(keep: &[RawFd], work: impl FnOnce(&OwnedFd) -> Result<()>) -> io::Result<(u32, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the shim has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Nothing may return from here or unwind: the stack below belongs to the shim.
            let mut keep = keep.to_vec();
            keep.push(theirs.as_raw_fd());
            close_others(keep);
            // An empty mask is the default; failing to set it cannot happen with a valid set.
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            if let Err(error) = work(&theirs) {
                // If the shim is gone nobody wants to know.
                let _ = protocol::send(&theirs, &Report::Failed(error.into()), &[]);
            }
            // SAFETY: ends the process at once, without handlers that belong to the shim.
            unsafe { libc::_exit(0) }
        }
        pid => Ok((pid as u32, ours)),
    }
}

/// Closes everything above the standard streams but these.
fn close_others(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3).map(|fd| fd as u32) {
        if fd > first {
            // What cannot be closed stays open, harmlessly.
            let _ = sys::close_range(first, fd - 1, false);
        }
        first = fd + 1;
    }
    let _ = sys::close_range(first, u32::MAX, false);
}

/// Makes a PID namespace whose first process does nothing but collect orphans.
pub(super) fn spawn_pause() -> io::Result<u32> {
    // SAFETY: clone without a stack is fork, here of a single-threaded process.
    match unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            close_others(Vec::new());
            // SAFETY: lets go of the pipe the daemon waits on, for /dev/null, which is standard input.
            unsafe { libc::dup2(0, 1) };
            let mut children = SigSet::empty();
            children.add(Signal::SIGCHLD);
            loop {
                while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s != WaitStatus::StillAlive) {}
                // SIGCHLD is blocked since the shim's start, so none is missed between the calls.
                let _ = children.wait();
            }
        }
        pid => Ok(pid as u32),
    }
}

/// Gives free pages of the heap back: a shim is idle most of its life, and there are many.
pub(super) fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Exit code, or 128 + signal.
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
}

/// The next ended child, if any.
pub(super) fn reap() -> Option<(u32, End)> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) } {
            pid if pid > 0 && libc::WIFSIGNALED(status) => {
                let signal = libc::WTERMSIG(status);
                return Some((pid as u32, End { code: 128 + signal, signal: Some(signal) }));
            }
            pid if pid > 0 && libc::WIFEXITED(status) => {
                return Some((pid as u32, End { code: libc::WEXITSTATUS(status), signal: None }));
            }
            pid if pid > 0 => {}
            _ => return None,
        }
    }
}

/// Sends a signal to one of our children, which cannot have been replaced before we collect it.
pub(super) fn kill(pid: u32, signal: i32) {
    // SAFETY: sends a signal. A child that has ended already needs none.
    unsafe { libc::kill(pid as i32, signal) };
}

/// The same to a process that leads a group, and to its group.
pub(super) fn kill_group(pid: u32, signal: i32) {
    kill(pid, signal);
    // SAFETY: as above.
    unsafe { libc::kill(-(pid as i32), signal) };
}
