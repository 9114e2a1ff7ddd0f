//! Load-balancer addresses on the local network: which of them are this node's ([`super::ownership`]), on which
//! interface, and the tasks that announce them there ([`super::arp`]).
//!
//! Woken by changes of Services, nodes and interfaces only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::arp::{self, News, Port, Roles, Told};
use super::interfaces::{self, Interface, Seen};
use super::overlay::DEVICE;
use super::ownership::Place;
use super::services::{Peer, Service, ServiceChange, Services};

/// News that may wait to be passed on.
const NEWS: usize = 256;
/// After an interface failed under the announcer, and the kernel says nothing new of it.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Something about a Service's address that its owner should know.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The Service.
    pub service: Arc<Service>,
    /// The address.
    pub address: Ipv4Addr,
    /// What happened.
    pub news: News,
    /// Text for people.
    pub message: String,
}

/// Announces the load-balancer addresses of `services` that are this node's; never ends. Dropping the future gives all of
/// them up, and another node takes them over.
///
/// `bridge` is the pods' bridge, where nothing is announced.
pub async fn run(
    node: &str,
    bridge: &str,
    services: &Services,
    mut peers: watch::Receiver<Vec<Peer>>,
    notify: impl Fn(Notice) + Send,
) {
    let (to, mut seen) = watch::channel(Seen::default());
    let (news, mut told) = mpsc::channel(NEWS);
    let ours = [bridge, DEVICE];
    let follow = interfaces::follow(&ours, to);
    let mut lan = Lan { node, segments: BTreeMap::new(), tasks: JoinSet::new(), news };
    let announce = async {
        // Before the interfaces are known there is nowhere to announce anything.
        let _ = seen.changed().await;
        let (mut all, mut changes) = holders(services);
        loop {
            lan.settle(&all, &peers.borrow_and_update(), &seen.borrow_and_update().interfaces);
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => concern(&mut all, change),
                    Err(RecvError::Lagged(_)) => (all, changes) = holders(services),
                    Err(RecvError::Closed) => return,
                },
                changed = peers.changed() => if changed.is_err() { return },
                _ = seen.changed() => {}
                Some((address, news)) = told.recv() => notices(node, &all, address, news).for_each(&notify),
                () = lan.ended() => {}
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = announce => {}
    }
}

/// The Services that have load-balancer addresses.
type Holders = BTreeMap<super::services::ServiceName, Arc<Service>>;

fn holders(services: &Services) -> (Holders, tokio::sync::broadcast::Receiver<ServiceChange>) {
    let (all, changes) = services.subscribe();
    let having = all.into_iter().filter(|s| !s.load_balancer_ips.is_empty());
    (having.map(|s| (s.id(), s)).collect(), changes)
}

fn concern(all: &mut Holders, change: ServiceChange) {
    match change {
        ServiceChange::Put(service) if !service.load_balancer_ips.is_empty() => drop(all.insert(service.id(), service)),
        ServiceChange::Put(service) | ServiceChange::Gone(service) => drop(all.remove(&service.id())),
    }
}

/// One interface with addresses to look after.
struct Segment {
    port: Port,
    roles: watch::Sender<Roles>,
    task: AbortHandle,
}

struct Lan<'a> {
    node: &'a str,
    /// By interface index.
    segments: BTreeMap<u32, Segment>,
    tasks: JoinSet<()>,
    news: mpsc::Sender<Told>,
}

impl Lan<'_> {
    fn settle(&mut self, all: &Holders, peers: &[Peer], interfaces: &[Interface]) {
        let mut wanted: BTreeMap<u32, (Port, Roles)> = BTreeMap::new();
        let addresses: BTreeSet<Ipv4Addr> = all.values().flat_map(|s| s.load_balancer_ips.iter().copied()).collect();
        let place = Place { node: self.node, peers, interfaces };
        for address in addresses {
            let having: Vec<&Service> =
                all.values().map(|s| &**s).filter(|s| s.load_balancer_ips.contains(&address)).collect();
            if let Some((interface, role)) = place.role(address, &having) {
                let port = Port { index: interface.index, mac: interface.mac, own: interface.own() };
                wanted.entry(interface.index).or_insert_with(|| (port, Roles::new())).1.insert(address, role);
            }
        }
        self.segments.retain(|index, segment| {
            let stays = wanted.get(index).is_some_and(|(port, _)| *port == segment.port) && !segment.task.is_finished();
            if !stays {
                segment.task.abort();
            }
            stays
        });
        for (index, (port, roles)) in wanted {
            match self.segments.get(&index) {
                Some(segment) => {
                    segment.roles.send_if_modified(|old| {
                        let changed = *old != roles;
                        *old = roles;
                        changed
                    });
                }
                None => self.begin(index, port, roles),
            }
        }
    }

    fn begin(&mut self, index: u32, port: Port, roles: Roles) {
        let (roles, told) = watch::channel(roles);
        let announcer = arp::run(port.clone(), told, self.news.clone());
        let task = self.tasks.spawn(async move {
            if let Err(error) = announcer.await {
                tracing::warn!(interface = index, %error, "cannot announce load-balancer addresses");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        });
        self.segments.insert(index, Segment { port, roles, task });
    }

    /// Waits until an announcer has ended.
    async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }
}

/// What to tell of an address, for each Service that has it.
fn notices(node: &str, all: &Holders, address: Ipv4Addr, news: News) -> impl Iterator<Item = Notice> {
    let (is_warning, message) = match news {
        News::Taken => (false, format!("announcing {address} from node {node:?}")),
        News::Yielded(_) => (false, format!("node {node:?} has left {address} to another")),
        News::InUse(mac) => {
            let text = format!("{address} is in use by {}: node {node:?} does not announce it", arp::show(mac));
            (true, text)
        }
        News::Contested(mac) => (true, format!("{} claims {address}, which node {node:?} announces", arp::show(mac))),
        News::GivenUp(mac) => {
            let text =
                format!("{} insists on {address}: node {node:?} stops announcing it for a while", arp::show(mac));
            (true, text)
        }
    };
    match is_warning {
        true => tracing::warn!(%address, "{message}"),
        false => tracing::info!(%address, "{message}"),
    }
    let having: Vec<Arc<Service>> = all.values().filter(|s| s.load_balancer_ips.contains(&address)).cloned().collect();
    having.into_iter().map(move |service| Notice { service, address, news, message: message.clone() })
}

#[cfg(test)]
mod tests;
