//! Real `kubectl` binaries against these streams: `UMIAK_KUBECTL="/path/kubectl.1.27 /path/kubectl.1.33" cargo test
//! --lib kubectl -- --ignored`.

use std::{convert::Infallible, net::SocketAddr, process::Stdio};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::{
    super::{Upgrade, command_options, forward_ports, log_body, log_options, port_forward, remote_command},
    *,
};

type Body = BoxBody<Bytes, std::io::Error>;

fn json_body(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(value.to_string()).map_err(|e: Infallible| match e {}).boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

/// Just enough of an API with one pod.
async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let resources =
        json!([{ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"] }]);
    Ok(match path.as_str() {
        "/api" => json_body(200, &json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => json_body(200, &json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        "/api/v1" => {
            json_body(200, &json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": resources }))
        }
        "/api/v1/namespaces/default/pods/p" => json_body(
            200,
            &json!({
                "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "p", "namespace": "default", "uid": "u" },
                "spec": { "containers": [{ "name": "c", "image": "i" }] }, "status": { "phase": "Running" }
            }),
        ),
        _ => {
            let result = match path.rsplit('/').next() {
                Some("log") => log(&query).await,
                Some("portforward") => forwarded(&mut request, &query),
                Some("exec" | "attach") => command(&mut request, &query),
                _ => Err(Status::no_such_path()),
            };
            result.unwrap_or_else(|status| json_body(status.code, &status.to_value()))
        }
    })
}

fn command(request: &mut Request<Incoming>, query: &str) -> Result<Response<Body>, Status> {
    let options = command_options(query)?;
    let upgrade = Upgrade::remote_command(request.method(), request.headers())?;
    let (near, pod) = Stream::pair();
    tokio::spawn(run(pod, options.command));
    Ok(remote_command(upgrade, request, options.streams, near))
}

fn forwarded(request: &mut Request<Incoming>, query: &str) -> Result<Response<Body>, Status> {
    let ports = forward_ports(query)?;
    let upgrade = Upgrade::port_forward(request.method(), request.headers(), &ports)?;
    Ok(port_forward(upgrade, request, ports, echo_pod()))
}

async fn log(query: &str) -> Result<Response<Body>, Status> {
    let (_, options) = log_options(query)?;
    let (near, pod) = Stream::pair();
    tokio::spawn(async move {
        for i in 0..options.tail_lines.unwrap_or(3) {
            pod.tx.send(frame(Channel::Stdout, &format!("line {i}\n"))).await.unwrap();
        }
        pod.tx.send(frame(Channel::Error, SUCCESS)).await.unwrap();
    });
    Ok(Response::new(log_body(near).await?.boxed()))
}

/// Runs a program of this machine as if it were in the pod; attach, which names none, gets `cat`.
async fn run(mut pod: Stream, command: Vec<String>) {
    let program = command.first().map_or("cat", String::as_str);
    let piped = Stdio::piped;
    let mut child = Command::new(program)
        .args(command.iter().skip(1))
        .stdin(piped())
        .stdout(piped())
        .stderr(piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let tx = &pod.tx;
    let input = async {
        while let Some(Frame { channel, data }) = pod.rx.recv().await {
            match &mut stdin {
                _ if channel != Channel::Stdin => {}
                Some(open) if !data.is_empty() => drop(open.write_all(&data).await),
                _ => stdin = None,
            }
        }
    };
    let output = async {
        tokio::join!(copy(tx, Channel::Stdout, stdout), copy(tx, Channel::Stderr, stderr));
        let code = child.wait().await.unwrap().code().unwrap();
        let status = if code == 0 { SUCCESS.into() } else { EXIT_3.replace('3', &code.to_string()) };
        tx.send(frame(Channel::Error, &status)).await.unwrap();
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
}

async fn copy(tx: &tokio::sync::mpsc::Sender<Frame>, channel: Channel, mut from: impl tokio::io::AsyncRead + Unpin) {
    let mut buffer = vec![0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tx.send(Frame { channel, data: Bytes::copy_from_slice(&buffer[..read]) }).await.unwrap();
    }
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service_fn(answer));
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

struct Kubectl<'a> {
    program: &'a str,
    server: SocketAddr,
    home: tempfile::TempDir,
}

impl Kubectl<'_> {
    fn start(&self, args: &[&str]) -> Child {
        let mut command = Command::new(self.program);
        command.arg(format!("--server=http://{}", self.server)).args(args).kill_on_drop(true);
        command.env("HOME", self.home.path()).env_remove("KUBECONFIG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Standard output, standard error and exit code.
    async fn run(&self, args: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
        let mut child = self.start(args);
        let mut stdin = child.stdin.take().unwrap();
        let feed = async move { drop(stdin.write_all(input).await) };
        let ((), output) = soon(async { tokio::join!(feed, child.wait_with_output()) }).await;
        let output = output.unwrap();
        (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap())
    }
}

#[tokio::test]
#[ignore = "needs kubectl binaries: UMIAK_KUBECTL"]
async fn kubectl_streams() {
    let programs = std::env::var("UMIAK_KUBECTL").expect("UMIAK_KUBECTL: paths of kubectl binaries");
    let server = serve().await;
    for program in programs.split_whitespace() {
        eprintln!("{program}");
        let kubectl = Kubectl { program, server, home: tempfile::tempdir().unwrap() };
        let sh = |script| ["exec", "p", "--", "sh", "-c", script];
        let (out, err, code) = kubectl.run(&sh("echo out; echo err >&2"), b"").await;
        assert_eq!((&out[..], err.as_str(), code), (&b"out\n"[..], "err\n", 0), "{program}");
        let (_, err, code) = kubectl.run(&sh("exit 42"), b"").await;
        assert!(code == 42 && err.contains("exit code 42"), "{program}: {err}");
        let large: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 15) as u8).collect();
        let (out, err, code) = kubectl.run(&["exec", "-i", "p", "--", "cat"], &large).await;
        assert!(out == large && code == 0, "{program}: {} bytes, {err}", out.len());
        let (out, err, code) = kubectl.run(&sh("head -c 3000000 /dev/zero"), b"").await;
        assert!(out.len() == 3_000_000 && code == 0, "{program}: {} bytes, {err}", out.len());
        let (out, err, code) = kubectl.run(&["attach", "-i", "p"], b"typed\n").await;
        assert!(out == b"typed\n" && code == 0, "{program}: {out:?} {err}");
        let (out, err, _) = kubectl.run(&["logs", "p", "--tail=2"], b"").await;
        assert_eq!(out, b"line 0\nline 1\n", "{program}: {err}");
        terminal(&kubectl).await;
        forward(&kubectl).await;
    }
}

/// With a terminal of its own, by script(1): the client opens the resize stream and has no standard error.
async fn terminal(kubectl: &Kubectl<'_>) {
    let Kubectl { program, server, home } = kubectl;
    let line = format!("{program} --server=http://{server} exec -it p -- sh -c 'echo from a terminal'");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("HOME", home.path()).env("TERM", "dumb").stdin(Stdio::null());
    let output = soon(script.kill_on_drop(true).output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("from a terminal") && output.status.success(), "{program}: {text}");
}

async fn forward(kubectl: &Kubectl<'_>) {
    let program = kubectl.program;
    let mut child = kubectl.start(&["port-forward", "p", ":80", ":1"]);
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // "Forwarding from 127.0.0.1:43210 -> 80", and perhaps the same for ::1
    let mut addresses = Vec::new();
    while addresses.len() < 2 {
        let line = soon(lines.next_line()).await.unwrap().unwrap_or_else(|| panic!("{program} ended"));
        let address = line.split_whitespace().nth(2).unwrap().to_owned();
        if address.starts_with("127.") {
            addresses.push(address);
        }
    }
    let talks = (0..20u8).map(|i| {
        let address = addresses[0].clone();
        async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let text = vec![i; 100_000];
            let (mut from, mut to) = socket.split();
            let mut back = vec![0; text.len()];
            let send = async { to.write_all(&text).await.unwrap() };
            let receive = async { from.read_exact(&mut back).await.unwrap() };
            assert_eq!(tokio::join!(send, receive).1, text.len());
            assert_eq!(back, text);
        }
    });
    soon(futures_util::future::join_all(talks)).await;
    let mut refused = TcpStream::connect(&addresses[1]).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(refused.read_to_end(&mut nothing)).await;
    let complaint = soon(errors.next_line()).await.unwrap().unwrap();
    assert!(complaint.contains("connection refused"), "{program}: {complaint}");
    child.kill().await.unwrap();
}
