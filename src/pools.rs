//! Pools of load-balancer addresses as they are written down: in `load-balancer-pools` of the configuration, in
//! MetalLB's ConfigMap (`address-pools`) and in its `IPAddressPool` objects, whose field names are taken too.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

/// One pool. Label selectors are Kubernetes' object form.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pool {
    /// Name, by which a Service asks for it.
    pub name: String,
    /// The addresses, in the order they are handed out.
    pub addresses: Vec<AddressRange>,
    /// Whether Services get its addresses without asking for the pool or the address.
    #[serde(default = "yes", alias = "autoAssign")]
    pub auto_assign: bool,
    /// Leaves out addresses that end in .0 or .255, which some old devices refuse.
    #[serde(default, alias = "avoidBuggyIPs", alias = "avoid-buggy-ips")]
    pub avoid_buggy_ips: bool,
    /// How it is announced.
    #[serde(default)]
    pub protocol: Protocol,
    /// Smaller numbers come first, 0 last.
    #[serde(default)]
    pub priority: u32,
    /// Namespaces whose Services may have its addresses; with no namespace and no selector of namespaces: all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// The same by labels of the namespace; one of these or of `namespaces` must fit.
    #[serde(default, alias = "namespaceSelectors")]
    pub namespace_selectors: Vec<Map<String, Value>>,
    /// Labels of the Services that may have its addresses; one must fit. None: all.
    #[serde(default, alias = "serviceSelectors")]
    pub service_selectors: Vec<Map<String, Value>>,
}

fn yes() -> bool {
    true
}

/// How addresses become known. MetalLB's other one, `bgp`, is refused by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// By ARP.
    #[default]
    Layer2,
}

/// Addresses from a first to a last one, both included. Written `a-b`, `a/prefix` or as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: u32,
    last: u32,
}

/// Why a text is no [`AddressRange`], or a set of pools cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPool(pub String);

impl AddressRange {
    /// Whether an address is one of them.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address.to_bits())
    }

    /// The addresses in order.
    pub fn iter(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (self.first..=self.last).map(Ipv4Addr::from_bits)
    }

    /// Whether two ranges have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<crate::cidr::Cidr> for AddressRange {
    fn from(cidr: crate::cidr::Cidr) -> Self {
        Self { first: cidr.network().to_bits(), last: cidr.host(cidr.size() - 1).to_bits() }
    }
}

impl FromStr for AddressRange {
    type Err = InvalidPool;

    fn from_str(text: &str) -> Result<Self, InvalidPool> {
        let fail = |problem: &str| InvalidPool(format!("invalid addresses {text:?}: {problem}"));
        let address = |text: &str| {
            let is_v6 = text.contains(':');
            let problem = if is_v6 { "only IPv4 addresses are supported" } else { "not an IPv4 address" };
            text.trim().parse::<Ipv4Addr>().map(Ipv4Addr::to_bits).map_err(|_| fail(problem))
        };
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (address(first)?, address(last)?);
            return if first <= last { Ok(Self { first, last }) } else { Err(fail("the last comes before the first")) };
        }
        let (first, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let first = address(first)?;
        let prefix: u32 = prefix.trim().parse().ok().filter(|p| *p <= 32).ok_or_else(|| fail("not a prefix length"))?;
        let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
        let first = first & !host;
        Ok(Self { first, last: first | host })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", Ipv4Addr::from_bits(self.first), Ipv4Addr::from_bits(self.last))
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl Pool {
    /// Whether an address is one of the pool's.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let buggy = matches!(address.octets()[3], 0 | 255);
        !(self.avoid_buggy_ips && buggy) && self.addresses.iter().any(|range| range.contains(address))
    }

    /// Its addresses in the order they are handed out.
    pub fn iter(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().flat_map(AddressRange::iter).filter(|address| self.contains(*address))
    }

    /// Whether it can be used beside the `others` and outside what is `reserved` (the pods', the Services' network).
    ///
    /// # Errors
    /// A name that is taken, no addresses, or addresses that belong to something else.
    pub fn check<'a>(
        &self,
        mut others: impl Iterator<Item = &'a Pool>,
        reserved: &[AddressRange],
    ) -> Result<(), InvalidPool> {
        let name = &self.name;
        if name.is_empty() {
            return Err(InvalidPool("a pool has no name".to_owned()));
        }
        if self.addresses.is_empty() {
            return Err(InvalidPool(format!("pool {name:?} has no addresses")));
        }
        for range in &self.addresses {
            if let Some(taken) = reserved.iter().find(|r| r.overlaps(range)) {
                return Err(InvalidPool(format!(
                    "pool {name:?}: {range} overlaps {taken} of the cluster's own network"
                )));
            }
        }
        let clash = others.find_map(|other| {
            if other.name == *name {
                return Some(format!("there are two pools called {name:?}"));
            }
            let shared = |a: &&AddressRange| other.addresses.iter().any(|b| a.overlaps(b));
            let range = self.addresses.iter().find(shared)?;
            Some(format!("pool {name:?}: {range} overlaps pool {:?}", other.name))
        });
        clash.map_or(Ok(()), |problem| Err(InvalidPool(problem)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, shown) in [
            ("192.168.56.200-192.168.56.210", "192.168.56.200-192.168.56.210"),
            ("10.0.0.1 - 10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("10.0.0.8/29", "10.0.0.8-10.0.0.15"),
            ("10.0.0.7", "10.0.0.7-10.0.0.7"),
            ("10.0.0.7/32", "10.0.0.7-10.0.0.7"),
            ("0.0.0.0/0", "0.0.0.0-255.255.255.255"),
        ] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), shown, "{text}");
        }
        for (text, problem) in [
            ("10.0.0.9-10.0.0.1", "the last comes before the first"),
            ("10.0.0.0/33", "not a prefix length"),
            ("10.0.0", "not an IPv4 address"),
            ("fd00::/64", "only IPv4"),
            ("", "not an IPv4 address"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    fn pool(text: &str) -> Result<Pool, String> {
        serde_yaml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn pools_are_read_and_checked() {
        let one = pool("{name: a, addresses: [10.0.0.0-10.0.0.2], avoid-buggy-ips: true}").unwrap();
        assert!(one.auto_assign);
        let all: Vec<String> = one.iter().map(|a| a.to_string()).collect();
        assert_eq!(all, ["10.0.0.1", "10.0.0.2"]);
        let reserved = ["10.42.0.0/16".parse().unwrap()];
        for (text, problem) in [
            ("{name: b, addresses: [10.0.0.2/32]}", "overlaps pool \"a\""),
            ("{name: a, addresses: [10.9.0.0/24]}", "two pools called"),
            ("{name: c, addresses: []}", "no addresses"),
            ("{name: '', addresses: [10.9.0.0/24]}", "no name"),
            ("{name: d, addresses: [10.42.7.0/24]}", "own network"),
        ] {
            let error = pool(text).unwrap().check([&one].into_iter(), &reserved).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        for (text, problem) in [
            ("{name: a, protocol: bgp, addresses: [10.0.0.1]}", "bgp"),
            ("{name: a, addresses: [x]}", "not an IPv4 address"),
            ("{name: a, addresses: [10.0.0.1], colour: red}", "colour"),
        ] {
            let error = pool(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
