//! How the kernel treats connections of the link: they are few, small, and at times at the end of a bad line.

use std::ffi::OsStr;
use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

/// Does not take every loss for a full line. Kernels without it keep their own.
const CONGESTION: &str = "bbr";

/// Sets a new connection up.
///
/// # Errors
/// When the connection is gone already.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    // Where there is no such thing the link works, more slowly.
    let _ = setsockopt(tcp, sockopt::TcpCongestion, &OsStr::new(CONGESTION).to_owned());
    let _ = patient(tcp);
    Ok(())
}

/// While little is under way, what was lost is sent again at the same short intervals, not at ever longer ones: a line
/// that loses a fifth would fall silent for half a minute now and then. After six attempts the intervals do grow.
fn patient(tcp: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option is read from an integer of the size given.
    let done = unsafe {
        libc::setsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_THIN_LINEAR_TIMEOUTS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
