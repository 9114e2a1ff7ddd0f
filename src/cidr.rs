//! IPv4 address ranges.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range that has room for a gateway and pods: prefix length 8 to 29, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address range {text:?}: {problem}")]
pub struct InvalidCidr {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Cidr {
    /// The range of `prefix` leading bits, 8 to 29, that `address` lies in.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix >= 8 && prefix <= 29, "a range has a prefix of 8 to 29 bits");
        Self { network: address.to_bits() & (u32::MAX << (32 - prefix)), prefix }
    }

    /// Network address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// Prefix length.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The `n`th address, counted modulo the range's size; 0 is the network itself, the last one is broadcast.
    pub fn host(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network | (n % self.size()))
    }

    /// Number of addresses, network and broadcast included.
    pub fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(self.size() - 1) == self.network
    }

    /// Position of an address of the range: the inverse of [`Cidr::host`].
    pub fn index(&self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address).then(|| u32::from(address) - self.network)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let fail = |problem| InvalidCidr { text: text.to_owned(), problem };
        let (address, prefix) = text.split_once('/').ok_or_else(|| fail("it has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| fail("it is not an IPv4 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fail("the prefix length is not a number"))?;
        if !(8..=29).contains(&prefix) {
            return Err(fail("the prefix length must be 8 to 29"));
        }
        let cidr = Cidr { network: u32::from(address), prefix };
        if cidr.network & (cidr.size() - 1) != 0 {
            return Err(fail("the address has bits beyond the prefix length"));
        }
        Ok(cidr)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_counts() {
        let cidr: Cidr = "10.42.1.0/24".parse().unwrap();
        assert_eq!((cidr.to_string().as_str(), cidr.size()), ("10.42.1.0/24", 256));
        assert_eq!(cidr.host(1), Ipv4Addr::new(10, 42, 1, 1));
        assert_eq!(cidr.index(Ipv4Addr::new(10, 42, 1, 7)), Some(7));
        assert_eq!(cidr.index(Ipv4Addr::new(10, 42, 2, 7)), None);
    }

    #[test]
    fn refuses() {
        for text in ["", "10.42.0.0", "10.42.0.0/", "10.42.0.0/30", "10.42.0.0/7", "10.42.0.1/24", "x/24", "fd00::/64"]
        {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
