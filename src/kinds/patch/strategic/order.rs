//! The order of merged lists: `$setElementOrder` or the patch comes first, then the order of the live object.

use std::collections::HashMap;

use serde_json::Value;

use super::{Error, PATCH};

/// What tells an element from the others of its list: its key's value, or itself if it is a scalar.
pub(super) fn identity(item: &Value, key: &'static str) -> Result<String, Error> {
    match (item, key) {
        (Value::Object(_) | Value::Array(_), "") => Err(Error::Mixed(item.clone())),
        (scalar, "") => Ok(scalar.to_string()),
        (Value::Object(map), key) => {
            map.get(key).map(Value::to_string).ok_or_else(|| Error::NoMergeKey { map: item.clone(), key })
        }
        _ => Err(Error::Mixed(item.clone())),
    }
}

/// Positions of a list's elements by identity; the first of equals counts.
pub(super) struct Ranks {
    positions: HashMap<String, usize>,
    key: &'static str,
}

impl Ranks {
    pub(super) fn new<'a>(items: impl IntoIterator<Item = &'a Value>, key: &'static str) -> Result<Self, Error> {
        let mut ranks = Self { positions: HashMap::new(), key };
        for (at, item) in items.into_iter().enumerate() {
            ranks.insert(identity(item, key)?, at);
        }
        Ok(ranks)
    }

    pub(super) fn insert(&mut self, identity: String, at: usize) {
        self.positions.entry(identity).or_insert(at);
    }

    pub(super) fn get(&self, identity: &str) -> Option<usize> {
        self.positions.get(identity).copied()
    }

    pub(super) fn rank(&self, item: &Value) -> Option<usize> {
        identity(item, self.key).ok().and_then(|identity| self.get(&identity))
    }

    pub(super) fn has(&self, item: &Value) -> bool {
        self.rank(item).is_some()
    }
}

/// Sorts elements that `client` names as it does, the others as `server` does, and puts each of the others before the
/// first element of the client that the server has behind it.
pub(super) fn sort(items: Vec<Value>, client: &Ranks, server: &Ranks, key: &'static str) -> Result<Vec<Value>, Error> {
    for item in &items {
        identity(item, key)?;
    }
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|item| client.has(item));
    named.sort_by_cached_key(|item| client.rank(item));
    others.sort_by_cached_key(|item| server.rank(item).unwrap_or(usize::MAX));
    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let place = server.rank(&item);
        while let Some(other) = others.next_if(|other| match (server.rank(other), place) {
            (Some(other), Some(place)) => other < place,
            _ => false,
        }) {
            sorted.push(other);
        }
        sorted.push(item);
    }
    sorted.extend(others);
    Ok(sorted)
}

/// The elements of the patch that stay must appear in `order`, in the same order.
pub(super) fn check(patch: &[Value], order: &[Value], key: &'static str) -> Result<(), Error> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let wanted = identity(item, key)?;
        let mut found = false;
        for candidate in rest.by_ref() {
            if identity(candidate, key)? == wanted {
                found = true;
                break;
            }
        }
        if !found {
            return Err(Error::OrderMismatch { patch: patch.into(), order: order.into() });
        }
    }
    Ok(())
}
