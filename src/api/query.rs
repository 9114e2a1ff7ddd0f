//! The query of a request's URL.

use crate::kinds::status::Status;

/// The parameters in their order; names may repeat.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`. Empty parts are skipped: some clients begin with `&`.
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a name, empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Every value of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the name is there at all.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// A boolean as Kubernetes reads it: there and neither `false` nor `0`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name).to_ascii_lowercase().as_str(), "false" | "0")
    }

    /// A whole number; 400 for anything else.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "invalid value {text:?} for the query parameter {name}: not a valid number"
                ))
            }),
        }
    }
}

/// Decodes `%41`, and `+` as a space in queries. What is no valid escape stays; invalid UTF-8 is replaced.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digits = bytes.get(i + 1..i + 3).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[i], digits.and_then(|d| u8::from_str_radix(d, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) if plus => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query =
            Query::parse("&limit=500&labelSelector=app%3Dweb%2Ctier%20in+(a)&watch&pretty=false&c=1&c=2&bad=%zz");
        assert_eq!(query.get("labelSelector"), "app=web,tier in (a)");
        assert_eq!(query.number::<usize>("limit").unwrap(), Some(500));
        assert_eq!(query.number::<usize>("none").unwrap(), None);
        assert_eq!(query.number::<usize>("bad").unwrap_err().code, 400);
        assert!(query.flag("watch") && !query.flag("pretty") && !query.flag("none"));
        assert_eq!(query.all("c").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("bad"), "%zz");
        assert_eq!(decode("a+b%ff", false), "a+b\u{fffd}");
    }
}
