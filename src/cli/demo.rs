//! `umiak demo`: a throw-away server, an example on it, and what to type next.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use super::Failure;
use super::client::Client;
use crate::server::ADMIN_KUBECONFIG;

const MANIFEST: &str = include_str!("../../configs/examples/deployment.yaml");
const SERVICE: &str = include_str!("../../configs/examples/service.yaml");
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dhello";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// Addresses for documentation (RFC 5737): no network of this host's has them.
const CONFIG: &str = "load-balancer-pools:\n- name: demo\n  addresses: [198.51.100.240-198.51.100.250]\n";
/// Where the demonstration image listens.
pub const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `umiak demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Clean up and leave after the last step instead of waiting for Ctrl-C
    #[arg(long)]
    pub once: bool,
}

/// A server of its own, gone with everything it made when this is dropped.
struct ThrowAway {
    data_dir: PathBuf,
    daemon: Child,
}

impl ThrowAway {
    fn start() -> Result<Self, Failure> {
        let data_dir = std::env::temp_dir().join(format!("umiak-demo-{}", std::process::id()));
        // New, and nobody else's: the way to it is open to all.
        std::fs::DirBuilder::new().mode(0o700).create(&data_dir)?;
        let ready_path = data_dir.join("ready");
        let ready = UnixDatagram::bind(&ready_path)?;
        ready.set_read_timeout(Some(PATIENCE))?;
        let [port, mqtt_port] = free_ports()?;
        let log = std::fs::File::create(data_dir.join("umiak.log"))?;
        let config = data_dir.join("umiak.yaml");
        std::fs::write(&config, format!("mqtt-port: {mqtt_port}\n{CONFIG}"))?;
        let daemon = Command::new(std::env::current_exe()?)
            .args(["server", "--bind-address", "127.0.0.1", "--node-name", "demo", "--bridge", "umdemo0"])
            .args(["--cluster-cidr", "10.142.0.0/16", "--service-cidr", "10.143.0.0/16"])
            .args(["--mqtt-bind", "127.0.0.1", "--https-port", &port.to_string(), "--config"])
            .arg(&config)
            .arg("--data-dir")
            .arg(&data_dir)
            .env("NOTIFY_SOCKET", &ready_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut server = Self { data_dir, daemon };
        match ready.recv(&mut [0; 64]) {
            Ok(_) => Ok(server),
            Err(_) => Err(server.last_words().into()),
        }
    }

    fn last_words(&mut self) -> String {
        let log = std::fs::read_to_string(self.data_dir.join("umiak.log")).unwrap_or_default();
        format!("the server did not start: {}", log.lines().last().unwrap_or("no word from it"))
    }
}

impl Drop for ThrowAway {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.daemon.id()) {
            // It may be gone already; waiting for it below is what counts.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        self.daemon.wait().ok();
        if let Err(error) = super::reset::reset(&self.data_dir) {
            eprintln!("umiak: clean up {}: {error}", self.data_dir.display());
        }
    }
}

/// Runs the demonstration.
pub fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    if !geteuid().is_root() {
        return Err("a node needs root: sudo umiak demo".into());
    }
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGINT);
    stop.add(Signal::SIGTERM);
    let began = Instant::now();
    step("Starting a throw-away server");
    let server = ThrowAway::start()?;
    said(&format!("ready after {:.2} s", began.elapsed().as_secs_f64()));
    // From here on Ctrl-C must not leave pods behind: it is waited for at the end.
    stop.thread_block()?;
    let kubeconfig = server.data_dir.join(ADMIN_KUBECONFIG);
    show(&Client::from_kubeconfig(&kubeconfig)?)?;
    if !args.once {
        next_steps(&kubeconfig);
        stop.wait()?;
    }
    step("Cleaning up");
    drop(server);
    said("nothing is left");
    Ok(ExitCode::SUCCESS)
}

fn show(client: &Client) -> Result<(), Failure> {
    step("Applying configs/examples/deployment.yaml: 3 pods of the built-in image");
    let began = Instant::now();
    client.create(DEPLOYMENTS, MANIFEST)?;
    let available = |deployment: &Value| deployment["status"]["availableReplicas"] == 3;
    client.watch_until(DEPLOYMENTS, PATIENCE, available).map_err(|error| explained(client, error))?;
    said(&format!("available after {:.2} s", began.elapsed().as_secs_f64()));
    step("Asking each pod who it is");
    let pods = client.get(PODS)?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let address = format!("{}:{PORT}", text(&pod["status"]["podIP"]));
        let answer = ask(&address, "/hostname")?;
        said(&format!("curl http://{address}/hostname   ->   {}", answer.trim()));
        if !answer.contains(&text(&pod["metadata"]["name"])) {
            return Err(format!("pod {} answered for another", text(&pod["metadata"]["name"])).into());
        }
    }
    show_service(client)
}

/// An error, with what keeps the pods from running.
fn explained(client: &Client, error: Failure) -> Failure {
    let pods = client.get(PODS).unwrap_or_default();
    let conditions =
        pods["items"].as_array().into_iter().flatten().flat_map(|pod| pod["status"]["conditions"].as_array());
    let first = conditions.flatten().map(|condition| text(&condition["message"])).find(|message| !message.is_empty());
    match first {
        Some(message) => format!("{error}: {message} (`umiak check` may know more)").into(),
        None => error,
    }
}

fn show_service(client: &Client) -> Result<(), Failure> {
    step("Applying configs/examples/service.yaml: one address for all three");
    client.create(SERVICES, SERVICE)?;
    client.watch_until(SERVICES, PATIENCE, |service| service["status"]["loadBalancer"]["ingress"].is_array())?;
    let service = client.get(&format!("{SERVICES}/hello"))?;
    let node = client.get("/api/v1/nodes/demo")?;
    let node_port = &service["spec"]["ports"][0]["nodePort"];
    for (what, address) in [
        ("cluster address", format!("{}:80", text(&service["spec"]["clusterIP"]))),
        ("node port", format!("{}:{node_port}", text(&node["status"]["addresses"][0]["address"]))),
        ("load balancer", format!("{}:80", text(&service["status"]["loadBalancer"]["ingress"][0]["ip"]))),
    ] {
        let answer = ask(&address, "/hostname")?;
        said(&format!("{what}: curl http://{address}/hostname   ->   {}", answer.trim()));
    }
    Ok(())
}

/// Two ports of this host that are free now.
fn free_ports() -> Result<[u16; 2], Failure> {
    // Both at a time, or they could be the same.
    let [a, b] = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
    Ok([a.local_addr()?.port(), b.local_addr()?.port()])
}

fn ask(address: &str, path: &str) -> Result<String, Failure> {
    let to: SocketAddr = address.parse().map_err(|_| format!("{address:?} is no address"))?;
    let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{address} did not answer with HTTP"))?;
    Ok(body.to_owned())
}

fn next_steps(kubeconfig: &Path) {
    step("What to type next, in another terminal");
    said(&format!("export KUBECONFIG={}", kubeconfig.display()));
    for line in [
        "kubectl get pods,services -o wide",
        "kubectl scale deployment hello --replicas=5",
        "kubectl exec deploy/hello -- /umiak --version",
        "kubectl logs -f deploy/hello",
        "kubectl run mine --image=umiak/demo --image-pull-policy=IfNotPresent",
    ] {
        said(line);
    }
    step("Ctrl-C ends it and cleans up");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn step(what: &str) {
    println!("==> {what}");
}

fn said(what: &str) {
    println!("    {what}");
}
