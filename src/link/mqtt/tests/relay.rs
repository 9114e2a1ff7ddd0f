//! A TCP relay that delays, throttles, cuts and drops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// How a link is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// One way.
    pub(super) delay: Duration,
    /// Bytes a second, each way.
    pub(super) rate: u64,
    /// Nothing passes, nothing ends.
    pub(super) silent: bool,
    /// Connections end and new ones are refused.
    pub(super) cut: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay: Duration::ZERO, rate: u64::MAX, silent: false, cut: false }
    }
}

pub(super) struct Relay {
    pub(super) address: SocketAddr,
    pub(super) weather: watch::Sender<Weather>,
    /// Bytes carried, both ways.
    pub(super) bytes: Arc<AtomicU64>,
    /// Connections made.
    pub(super) connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    pub(super) async fn to(target: SocketAddr, weather: Weather) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = watch::Sender::new(weather);
        let (bytes, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (watched, carried, counted) = (weather.subscribe(), bytes.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (mut weather, bytes) = (watched.clone(), carried.clone());
                tasks.spawn(async move {
                    if weather.borrow().cut {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let up = carry(from_client, to_server, weather.clone(), bytes.clone());
                    let down = carry(from_server, to_client, weather.clone(), bytes);
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = weather.wait_for(|w| w.cut) => {}
                    }
                });
            }
        });
        Self { address, weather, bytes, connections, task }
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
    bytes: Arc<AtomicU64>,
) {
    // As much as the kernel's buffers of a slow link hold.
    let (pieces, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let take = async {
        let mut free = Instant::now();
        loop {
            let mut buffer = vec![0; 1400];
            let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
            buffer.truncate(length);
            bytes.fetch_add(length as u64, Ordering::Relaxed);
            let now = *weather.borrow();
            free = free.max(Instant::now()) + Duration::from_secs_f64(length as f64 / now.rate as f64);
            sleep_until(free).await;
            if pieces.send((free + now.delay, buffer)).await.is_err() {
                return;
            }
        }
    };
    let mut watched = weather.clone();
    let give = async {
        while let Some((at, piece)) = queue.recv().await {
            sleep_until(at).await;
            if watched.wait_for(|w| !w.silent).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(take, give);
}
