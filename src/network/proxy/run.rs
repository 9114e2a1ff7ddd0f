//! The proxy of a node: keeps listeners, routing rules and health checks as the Services are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::balancer::Around;
use super::engine::{Engine, Report, Steer};
use super::health::{Health, HealthChecks, News};
use super::policy::local_ready;
use super::table::Table;
use super::{Config, Listen};
use crate::network::addresses::LocalAddresses;
use crate::network::intake::{Intake, Rule};
use crate::network::services::{Service, ServiceChange, Services};
use crate::network::{Error, source};

/// Between a listener that could not be had and the next attempt, doubled each time up to the second.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// The name server's place among the cluster addresses.
const NAME_SERVER: u32 = 10;

/// Why there is no proxy on this node.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data plane cannot start.
    #[error("start the Service proxy: {0}")]
    Engine(#[from] io::Error),
    /// Cluster addresses cannot be made local.
    #[error(transparent)]
    Network(#[from] Error),
}

/// A Service cannot be reached at a place where it should be, or can be again.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The Service.
    pub service: Arc<Service>,
    /// Whether it can be reached there.
    pub listening: bool,
    /// Text for people.
    pub message: String,
}

/// Serves all Services of the view; never ends by itself. Dropping the future closes every listener and connection. The
/// addresses stay local: clients are refused at once and do not wait.
///
/// `zone` is the zone the node is in (`topology.kubernetes.io/zone`). `notify` is told once when a listener cannot be had,
/// and when it can; attempts go on in between.
///
/// # Errors
/// Only what keeps it from starting.
pub async fn run(
    config: Config,
    services: Services,
    zone: watch::Receiver<Option<String>>,
    notify: impl Fn(Notice) + Send,
) -> Result<(), StartError> {
    let addresses = LocalAddresses::open()?;
    addresses.ensure_only_range(config.service_cidr).await?;
    let (sender, reports) = mpsc::unbounded_channel();
    // As many as there are listeners at most wait: each is reported of once for a command.
    let mut engine = Engine::start(move |report| drop(sender.send(report)))?;
    match Steer::new(config.service_cidr, config.service_cidr.host(NAME_SERVER)) {
        Ok(steer) => engine = engine.steered(steer),
        Err(error) => {
            tracing::info!(%error, "Services cannot have ports that other programs listen at on all addresses")
        }
    }
    let intake = match Intake::open().await {
        Ok(intake) => Some(intake),
        Err(error) => {
            tracing::error!(%error, "external addresses of Services cannot be taken in");
            None
        }
    };
    let (sender, health) = mpsc::unbounded_channel();
    let mut proxy = Proxy::new(config, engine, intake, HealthChecks::new(sender));
    // An earlier process may have left it, and nobody may want it now.
    if let Err(error) = source::remove(&proxy.bridge) {
        tracing::debug!(%error, "nothing to remove");
    }
    proxy.run(services, zone, reports, health, notify).await;
    Ok(())
}

struct Proxy {
    config: Config,
    bridge: String,
    around: Arc<Around>,
    table: Table,
    engine: Engine,
    intake: Option<Intake>,
    /// What the intake was last asked for.
    rules: BTreeSet<Rule>,
    keeps_source: Option<bool>,
    health: HealthChecks,
    /// Listeners that could not be had, and the attempts so far.
    failed: BTreeMap<Listen, u32>,
    again: Option<Instant>,
}

impl Proxy {
    fn new(config: Config, engine: Engine, intake: Option<Intake>, health: HealthChecks) -> Self {
        let around = Arc::new(Around {
            cluster_cidr: config.cluster_cidr,
            node_address: config.node_address,
            keeps_source: AtomicBool::new(false),
        });
        Self {
            table: Table::new(config.clone(), around.clone()),
            bridge: config.bridge.clone(),
            config,
            around,
            engine,
            intake,
            rules: BTreeSet::new(),
            keeps_source: None,
            health,
            failed: BTreeMap::new(),
            again: None,
        }
    }

    async fn run(
        &mut self,
        services: Services,
        mut zone: watch::Receiver<Option<String>>,
        mut reports: mpsc::UnboundedReceiver<Report>,
        mut health: mpsc::UnboundedReceiver<News>,
        notify: impl Fn(Notice) + Send,
    ) {
        self.table.set_zone(zone.borrow_and_update().clone());
        let (all, mut changes) = services.subscribe();
        self.table.replace(all);
        loop {
            self.settle().await;
            tokio::select! {
                change = changes.recv() => self.take(change, &services, &mut changes),
                Ok(()) = zone.changed() => self.table.set_zone(zone.borrow_and_update().clone()),
                Some(report) = reports.recv() => self.note(report).into_iter().for_each(&notify),
                Some(news) = health.recv() => self.note_health(news).into_iter().for_each(&notify),
                () = until(self.again) => self.retry(),
            }
        }
    }

    /// One change, and what came with it.
    fn take(
        &mut self,
        first: Result<ServiceChange, RecvError>,
        services: &Services,
        changes: &mut broadcast::Receiver<ServiceChange>,
    ) {
        let mut next = first.map_err(|_| ());
        loop {
            match next {
                Ok(ServiceChange::Put(service)) => self.table.put(service),
                Ok(ServiceChange::Gone(service)) => self.table.remove(&service.id()),
                // Too many to follow one by one. The sender lives as long as `services`.
                Err(()) => {
                    let (all, anew) = services.subscribe();
                    *changes = anew;
                    self.table.replace(all);
                }
            }
            next = match changes.try_recv() {
                Ok(change) => Ok(change),
                Err(TryRecvError::Lagged(_)) => Err(()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Makes the node what the table says.
    async fn settle(&mut self) {
        self.keep_source();
        for command in self.table.commands() {
            self.engine.send(command);
        }
        let outer = self.table.outer().into_iter().map(|listen| Rule::To(listen.protocol, listen.address));
        let answers = self.keeps_source.unwrap_or_default().then_some(Rule::Marked);
        let rules: BTreeSet<Rule> = outer.chain(answers).collect();
        if rules != self.rules
            && let Some(intake) = &mut self.intake
        {
            if let Err(error) = intake.set(&rules).await {
                tracing::error!(%error, "not every external address of Services is taken in");
            }
            self.rules = rules;
        }
        let checks = self.table.health_checks().map(|(port, service)| {
            let endpoints = local_ready(service, &self.config);
            (port, Health { namespace: service.namespace.clone(), name: service.name.clone(), endpoints })
        });
        self.health.set(checks.collect());
    }

    /// Sees to it that answers to clients' own addresses come back here, for as long as somebody wants that.
    fn keep_source(&mut self) {
        let wanted = self.table.wants_source();
        if wanted == self.keeps_source.is_some() {
            return;
        }
        let result = match wanted {
            true => source::install(&self.bridge, self.config.pod_cidr),
            false => source::remove(&self.bridge),
        };
        self.keeps_source = wanted.then_some(result.is_ok() && self.intake.is_some());
        self.around.keeps_source.store(self.keeps_source.unwrap_or_default(), Relaxed);
        if let Err(error) = result {
            tracing::warn!(%error, "they see this node's instead");
        }
    }

    /// What became of a listener, and what is to be told of it.
    fn note(&mut self, report: Report) -> Option<Notice> {
        let node = &self.config.node;
        match report {
            Report::Listening(listen) => {
                self.failed.remove(&listen)?;
                tracing::info!(%listen, "the Service can be reached now");
                let service = self.table.owner(listen)?.clone();
                Some(Notice { service, listening: true, message: format!("node {node:?} serves {listen} now") })
            }
            Report::Failed(listen, error) => {
                let service = self.table.owner(listen)?.clone();
                let attempts = self.failed.entry(listen).or_default();
                *attempts += 1;
                let pause = AGAIN[0].saturating_mul(1 << (*attempts - 1).min(16)).min(AGAIN[1]);
                let due = Instant::now() + pause;
                self.again = Some(self.again.map_or(due, |again| again.min(due)));
                if *attempts > 1 {
                    return None;
                }
                let (namespace, name) = (&service.namespace, &service.name);
                tracing::warn!(namespace, service = name, %listen, %error, "the Service cannot be reached there; trying again");
                let message = format!("node {node:?} cannot serve {listen}: {}", why(&error));
                Some(Notice { service, listening: false, message })
            }
        }
    }

    /// The same of a health check.
    fn note_health(&mut self, (port, error): News) -> Option<Notice> {
        let node = &self.config.node;
        let service = self.table.health_checks().find(|(number, _)| *number == port)?.1.clone();
        let message = match &error {
            None => format!("node {node:?} serves the health check at port {port} now"),
            Some(error) => format!("node {node:?} cannot serve the health check at port {port}: {}", why(error)),
        };
        tracing::warn!(namespace = service.namespace, service = service.name, "{message}");
        Some(Notice { service, listening: error.is_none(), message })
    }

    fn retry(&mut self) {
        self.again = None;
        self.failed.retain(|listen, _| self.table.retry(*listen));
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program of the node has this port".to_owned(),
        _ => error.to_string(),
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
