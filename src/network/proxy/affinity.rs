//! `sessionAffinity: ClientIP`: which endpoint a client had.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Clients of one Service that are remembered; past it those that were away longest are forgotten.
const MAX_CLIENTS: usize = 8192;

/// The clients of a Service. As a client keeps its pod on all ports of the Service, this is one for all of them.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Seconds after its last connection that a client keeps its endpoint.
    timeout: u32,
    clients: Mutex<HashMap<Ipv4Addr, Kept>>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    endpoint: Ipv4Addr,
    /// Second of the last connection.
    seen: u32,
}

impl Affinity {
    pub(super) fn new(timeout: u32) -> Self {
        Self { timeout, clients: Mutex::default() }
    }

    /// Seconds a client keeps its endpoint.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout
    }

    /// The endpoint of a client's last connection, unless that was too long ago.
    pub(super) fn get(&self, client: Ipv4Addr, now: u32) -> Option<Ipv4Addr> {
        let kept = self.clients().get(&client).copied()?;
        (now.saturating_sub(kept.seen) < self.timeout).then_some(kept.endpoint)
    }

    /// The client has a new connection to this endpoint.
    pub(super) fn set(&self, client: Ipv4Addr, endpoint: Ipv4Addr, now: u32) {
        let mut clients = self.clients();
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            self.make_room(&mut clients, now);
        }
        clients.insert(client, Kept { endpoint, seen: now });
    }

    /// Forgets those whose time is over, and of what is left a quarter where that is still too much.
    fn make_room(&self, clients: &mut HashMap<Ipv4Addr, Kept>, now: u32) {
        clients.retain(|_, kept| now.saturating_sub(kept.seen) < self.timeout);
        if clients.len() < MAX_CLIENTS * 3 / 4 {
            return;
        }
        let mut seen: Vec<(u32, Ipv4Addr)> = clients.iter().map(|(client, kept)| (kept.seen, *client)).collect();
        let (oldest, _, _) = seen.select_nth_unstable(MAX_CLIENTS / 4);
        for (_, client) in oldest {
            clients.remove(client);
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Kept>> {
        // Each change is a single insertion or removal.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_endpoint_for_as_long_as_it_comes_back() {
        let affinity = Affinity::new(10);
        let [client, other, endpoint] = [1, 2, 3].map(|n| Ipv4Addr::new(10, 0, 0, n));
        affinity.set(client, endpoint, 5);
        for (who, now, expected) in [(client, 14, Some(endpoint)), (client, 15, None), (other, 6, None)] {
            assert_eq!(affinity.get(who, now), expected, "{who} at {now}");
        }
        affinity.set(client, endpoint, 14);
        assert_eq!(affinity.get(client, 20), Some(endpoint));
    }

    #[test]
    fn the_table_is_bounded() {
        let affinity = Affinity::new(1000);
        let endpoint = Ipv4Addr::new(10, 0, 0, 1);
        for n in 0..3 * MAX_CLIENTS as u32 {
            affinity.set(Ipv4Addr::from_bits(n), endpoint, n / 1000);
            assert!(affinity.clients().len() <= MAX_CLIENTS);
        }
        let last = 3 * MAX_CLIENTS as u32 - 1;
        assert_eq!(affinity.get(Ipv4Addr::from_bits(last), last / 1000), Some(endpoint), "the newest is kept");
    }
}
