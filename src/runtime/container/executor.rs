//! The last steps of a container's process: directory, system call filter, capabilities, `execve`.

use std::{collections::HashMap, ffi::CString, io, os::fd::RawFd};

use libcontainer::{
    oci_spec::runtime::Spec,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use serde::{Deserialize, Serialize};

use super::{super::sys, capabilities};

/// What is executed, and under which restrictions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Command {
    pub(super) args: Vec<String>,
    /// `NAME=value`, complete.
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    /// The capabilities of the process; libcontainer is told more, for the steps here.
    pub(super) capabilities: capabilities::Set,
    pub(super) no_new_privs: bool,
    /// Classic BPF, one instruction a word as in memory; empty for none.
    pub(super) filter: Vec<u64>,
}

/// Capabilities the steps below need beyond those of the process: to load a filter, to shrink the bounding set, to enter a
/// directory the user may not search (as other runtimes, which change it before the user).
pub(super) fn extra_capabilities() -> capabilities::Set {
    ["SYS_ADMIN", "SETPCAP", "DAC_READ_SEARCH"].iter().filter_map(|name| capabilities::bit(name)).sum()
}

/// Runs a [`Command`] as the executor of libcontainer.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) command: Command,
    /// Closed by a successful `execve`; gets a [`Failure`] otherwise.
    pub(super) status: RawFd,
}

/// Why a command could not be executed.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::runtime) struct Failure {
    /// As a shell would: 127 not found, 126 not executable, 128 anything else.
    pub(in crate::runtime) code: i32,
    pub(in crate::runtime) reason: String,
}

impl Failure {
    fn other(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self { code: 128, reason: format!("{what}: {}", text(error)) }
    }
}

/// An error as C programs print it, lower case.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

/// Where the status pipe is moved to.
const STATUS: RawFd = 3;

impl Executor for Runner {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Err(failure) = self.keep_only_status().and_then(|()| self.command.run());
        let bytes = serde_json::to_vec(&failure).unwrap_or_default();
        // SAFETY: writes live bytes to the status pipe. If that fails nobody listens.
        unsafe { libc::write(STATUS, bytes.as_ptr().cast(), bytes.len()) };
        Err(ExecutorError::Other(failure.reason))
    }

    /// Nothing: what is mounted later may bring the command.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// Nothing: the environment is given to `execve`.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

impl Runner {
    /// Closes what is left of the host's files, through which a working directory like /proc/self/fd/7 would lead out.
    fn keep_only_status(&self) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::other("close inherited files", &e);
        // SAFETY: of the descriptors from 3 on only this one is used from here to `execve`.
        if self.status != STATUS && unsafe { libc::dup3(self.status, STATUS, libc::O_CLOEXEC) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        sys::close_range(STATUS as u32 + 1, u32::MAX, false).map_err(failed)
    }
}

impl Command {
    fn run(&self) -> Result<std::convert::Infallible, Failure> {
        let cwd = if self.cwd.is_empty() { "/" } else { &self.cwd };
        std::env::set_current_dir(cwd)
            .and_then(|()| std::env::current_dir())
            .map_err(|e| Failure::other(format!("change to the working directory {cwd:?}"), &e))?;
        let restrict = || -> io::Result<()> {
            capabilities::bound(self.capabilities)?;
            // Loading a filter is a privilege unless new privileges are given up: before the capabilities go, then.
            if !self.no_new_privs {
                self.load_filter()?;
            }
            capabilities::set(self.capabilities)?;
            if self.no_new_privs {
                self.load_filter()?;
            }
            Ok(())
        };
        reset_signals();
        restrict().map_err(|e| Failure::other("restrict the process", &e))?;
        self.execute()
    }

    fn load_filter(&self) -> io::Result<()> {
        if self.filter.is_empty() {
            return Ok(());
        }
        let program =
            libc::sock_fprog { len: self.filter.len() as u16, filter: self.filter.as_ptr().cast_mut().cast() };
        // SAFETY: the words are instructions in the kernel's layout, which the kernel verifies; they outlive the call.
        match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn execute(&self) -> Result<std::convert::Infallible, Failure> {
        let Some(name) = self.args.first() else {
            return Err(Failure { code: 128, reason: "no command specified".into() });
        };
        let list = |strings: &[String]| -> io::Result<Vec<CString>> {
            strings.iter().map(|s| CString::new(s.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())).collect()
        };
        let invalid = |e| Failure::other("exec: NUL in the command or its environment", &e);
        let (args, env) = (list(&self.args).map_err(invalid)?, list(&self.env).map_err(invalid)?);
        let mut denied = false;
        for path in self.candidates(name) {
            let Ok(file) = CString::new(path.as_bytes()) else { continue };
            let Err(errno) = nix::unistd::execve(&file, &args, &env);
            let error = io::Error::from(errno);
            match error.raw_os_error() {
                _ if name.contains('/') => return Err(direct(name, &error)),
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => denied = true,
                _ => return Err(Failure { code: 126, reason: format!("exec {path}: {}", text(&error)) }),
            }
        }
        Err(match denied {
            true => Failure { code: 126, reason: format!("exec: {name:?}: permission denied") },
            false => Failure { code: 127, reason: format!("exec: {name:?}: executable file not found in $PATH") },
        })
    }

    /// Files the name may mean, as `execvp` tries them.
    fn candidates(&self, name: &str) -> Vec<String> {
        if name.is_empty() || name.contains('/') {
            return vec![name.to_owned()];
        }
        let path = self.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
        let directory = |d: &str| if d.is_empty() { format!("./{name}") } else { format!("{d}/{name}") };
        path.split(':').map(directory).collect()
    }
}

/// The fault of a command given as a path.
fn direct(name: &str, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if std::fs::metadata(name).is_ok() => {
            // The file is there: what is missing is its interpreter or loader.
            Failure { code: 127, reason: format!("exec {name}: {}", text(error)) }
        }
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Failure { code: 127, reason: format!("exec: {name:?}: stat {name}: {}", text(error)) }
        }
        Some(libc::EACCES) => Failure { code: 126, reason: format!("exec: {name:?}: permission denied") },
        _ => Failure { code: 126, reason: format!("exec {name}: {}", text(error)) },
    }
}

/// Undoes what Rust and the shim do to signals, which `execve` would hand on.
fn reset_signals() {
    // SAFETY: sets default actions and an empty mask; no handler of ours is in use.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn path_search() {
        let mut command = Command {
            args: vec![],
            env: vec!["PATH=/nope".into(), "PATH=/bin::/x".into()],
            cwd: String::new(),
            capabilities: 0,
            no_new_privs: false,
            filter: vec![],
        };
        assert_eq!(command.candidates("sh"), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(command.candidates("./sh"), ["./sh"]);
        let failure = command.execute().unwrap_err();
        assert_eq!((failure.code, &*failure.reason), (128, "no command specified"));
        for (name, code, reason) in [
            ("foo", 127, "exec: \"foo\": executable file not found in $PATH"),
            ("/foo/bar", 127, "exec: \"/foo/bar\": stat /foo/bar: no such file or directory"),
            ("/etc/passwd", 126, "exec: \"/etc/passwd\": permission denied"),
            ("/tmp", 126, "exec: \"/tmp\": permission denied"),
        ] {
            command.args = vec![name.into()];
            let failure = command.execute().unwrap_err();
            assert_eq!((failure.code, &*failure.reason), (code, reason));
        }
    }
}
