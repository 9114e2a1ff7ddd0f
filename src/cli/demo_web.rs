//! `umiak demo-web`: a tiny web server that says which pod it is, the program of the demonstration image.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};

/// Connections answered at once; more of them wait in the listener's queue.
const THREADS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Request line and headers; what a browser sends is a tenth of it.
const MAX_HEAD: u64 = 16 << 10;

/// Answers HTTP on `port` until SIGTERM or SIGINT: `/` and `/hostname` with the pod's name, `/healthz` with `ok`.
pub fn demo_web(port: u16) -> ExitCode {
    match listen(port) {
        Ok(listener) => serve(&listener),
        Err(e) => {
            eprintln!("demo-web: listen on port {port}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// On IPv4 and IPv6, or on IPv4 alone where the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    end_on_signals()?;
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// The first process of a container has no default actions: without handlers SIGTERM would do nothing.
fn end_on_signals() -> io::Result<()> {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: _exit is async-signal-safe and touches no state of the program.
        unsafe { libc::_exit(0) }
    }
    for name in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler calls nothing but _exit.
        unsafe { signal(name, SigHandler::Handler(end)) }?;
    }
    // SAFETY: no handler runs. Orphans of `kubectl exec` fall to this process; ignored, they leave no zombies.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    Ok(())
}

fn serve(listener: &TcpListener) -> ExitCode {
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    // A client that went away is its own affair; out of descriptors, a pause lets some be freed.
                    match stream {
                        Ok(stream) => drop(answer(&stream)),
                        Err(_) => thread::sleep(Duration::from_millis(100)),
                    }
                }
            });
        }
    });
    ExitCode::FAILURE
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = BufReader::new(stream.take(MAX_HEAD));
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut header = String::new();
    while head.read_line(&mut header)? > 2 {
        header.clear();
    }
    (&*stream).write_all(response(&request, &pod_name()).as_bytes())
}

fn pod_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn response(request: &str, name: &str) -> String {
    let mut words = request.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/") => ("200 OK", format!("You've hit {name}\n")),
        ("GET" | "HEAD", "/hostname") => ("200 OK", format!("{name}\n")),
        ("GET" | "HEAD", "/healthz") => ("200 OK", "ok\n".to_owned()),
        ("GET" | "HEAD", _) => ("404 Not Found", "not found\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method == "HEAD" { head } else { head + &body }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn responses() {
        for (request, status, body) in [
            ("GET / HTTP/1.1\r\n", "200 OK", "You've hit pod-1\n"),
            ("GET /hostname?x=1 HTTP/1.1\r\n", "200 OK", "pod-1\n"),
            ("GET /healthz HTTP/1.1\r\n", "200 OK", "ok\n"),
            ("HEAD /healthz HTTP/1.1\r\n", "200 OK", ""),
            ("GET /nothing HTTP/1.1\r\n", "404 Not Found", "not found\n"),
            ("POST / HTTP/1.1\r\n", "405 Method Not Allowed", "only GET\n"),
            ("", "405 Method Not Allowed", "only GET\n"),
        ] {
            let answer = response(request, "pod-1");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, body, "{request}");
        }
    }

    #[test]
    fn answers_over_a_socket_and_drops_what_is_no_request() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener));
        let mut endless = TcpStream::connect(address).unwrap();
        endless.write_all(&vec![b'x'; MAX_HEAD as usize + 1]).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\r\n\r\nok\n"), "{text}");
        // The server closes with bytes unread, which the client sees as an answer or a reset.
        let mut rest = Vec::new();
        assert!(endless.read_to_end(&mut rest).is_err() || rest.starts_with(b"HTTP/1.1 405"));
    }
}
