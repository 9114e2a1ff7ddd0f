//! Get and list.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::store::{Error, Key, Page, Record, Store};

use super::body::{Head, Raw};
use super::select::Filter;
use super::{List, ListOptions, error};

/// Objects looked at between two looks at the limit, when a selector drops some of them.
const CHUNK: usize = 500;

/// The store's key of an object.
pub(super) fn key(kind: &Kind, ns: &str, name: &str) -> Key {
    Key { resource: kind.resource().into(), namespace: ns.into(), name: name.into() }
}

pub(super) fn get(store: &Store, kind: &Kind, ns: &str, name: &str) -> Result<Raw, Status> {
    let key = key(kind, ns, name);
    match store.get(&key) {
        Ok(Some(record)) => Ok(Raw::new(&Head::of(kind), record)),
        Ok(None) => Err(Status::not_found(&kind.group, &kind.plural, name)),
        Err(e) => Err(error::status(&key.resource, e)),
    }
}

pub(super) fn indexed(store: &Store, kind: &Kind, index: &str) -> Result<Vec<Raw>, Status> {
    let (resource, head) = (kind.resource(), Head::of(kind));
    let records = store.find(&resource, index).map_err(|e| error::status(&resource, e))?;
    Ok(records.into_iter().map(|record| Raw::new(&head, record)).collect())
}

pub(super) fn list(store: &Store, kind: &Kind, options: &ListOptions) -> Result<List, Status> {
    let filter = Filter::new(kind, &options.labels, &options.fields)?;
    let resource = kind.resource();
    let failed = |e| error::status(&resource, e);
    let head = Head::of(kind);
    if let (Some(name), Some(ns), None) =
        (filter.name(), options.namespace.as_deref().or((!kind.namespaced).then_some("")), options.exact)
    {
        return one(store, key(kind, ns, name), &head, &filter);
    }
    if let (Some(node), "Pod", 0, None) = (filter.node(), &*kind.kind, options.limit, options.exact) {
        return on_node(store, kind, node, options, &filter);
    }
    let token = if options.next.is_empty() { None } else { Some(Token::parse(&options.next)?) };
    let mut revision = token.as_ref().map(|t| t.revision).or(options.exact);
    let mut after = token.map(|t| (t.namespace, t.name));
    let chunk = if filter.is_empty() { options.limit } else { CHUNK };
    let mut list = List::default();
    loop {
        let from = after.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
        let page = page(store, &resource, options.namespace.as_deref(), from, chunk, revision).map_err(|e| match e {
            Error::Compacted { .. } => expired_token(),
            e => failed(e),
        })?;
        list.revision = page.revision;
        revision = Some(page.revision);
        let mut left = page.records.len() + page.remaining;
        for record in page.records {
            left -= 1;
            after = Some((record.key.namespace.to_string(), record.key.name.to_string()));
            let raw = Raw::new(&head, record);
            if filter.matches(&raw)? {
                list.items.push(raw);
            }
            if options.limit > 0 && list.items.len() == options.limit {
                break;
            }
        }
        match after {
            Some((namespace, name)) if left > 0 && list.items.len() == options.limit => {
                list.next = Some(Token { revision: page.revision, namespace, name }.to_string());
                list.remaining = filter.is_empty().then_some(left as u64);
                return Ok(list);
            }
            _ if page.remaining == 0 => return Ok(list),
            _ => {}
        }
    }
}

/// The list of at most one object: `fieldSelector=metadata.name=…`.
fn one(store: &Store, key: Key, head: &Head, filter: &Filter) -> Result<List, Status> {
    let revision = store.revision();
    let record = store.get(&key).map_err(|e| error::status(&key.resource, e))?;
    let mut list = List { revision, ..List::default() };
    if let Some(raw) = record.map(|record| Raw::new(head, record)) {
        list.revision = revision.max(raw.revision);
        if filter.matches(&raw)? {
            list.items.push(raw);
        }
    }
    Ok(list)
}

/// The pods of one node, by the index: what every node asks for.
fn on_node(store: &Store, kind: &Kind, node: &str, options: &ListOptions, filter: &Filter) -> Result<List, Status> {
    let mut list = List { revision: store.revision(), ..List::default() };
    for raw in indexed(store, kind, &format!("node:{node}"))? {
        let within = options.namespace.as_deref().is_none_or(|ns| *raw.key.namespace == *ns);
        if within && filter.matches(&raw)? {
            list.items.push(raw);
        }
    }
    list.items.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(list)
}

/// A page as it was at `revision`, by undoing the changes made since.
///
/// An object that changed since then is given the revision of the list: its own is not kept, and either one makes a
/// later conditional write fail, as it must.
fn page(
    store: &Store,
    resource: &str,
    ns: Option<&str>,
    after: Option<(&str, &str)>,
    limit: usize,
    revision: Option<u64>,
) -> Result<Page, Error> {
    let mut page = store.list(resource, ns, after, limit)?;
    let Some(revision) = revision.filter(|r| *r < page.revision) else { return Ok(page) };
    let mut changed: BTreeMap<Key, Option<Bytes>> = BTreeMap::new();
    let mut changes = store.watch(resource, ns, revision)?;
    while let Some(change) = changes.try_next()?.filter(|c| c.revision <= page.revision) {
        changed.entry(change.key).or_insert(change.previous);
    }
    let end = page.records.last().filter(|_| page.remaining > 0).map(|r| r.key.clone());
    let mut records: BTreeMap<Key, Record> = page.records.into_iter().map(|r| (r.key.clone(), r)).collect();
    for (key, previous) in changed {
        let before = after.is_some_and(|after| (&*key.namespace, &*key.name) <= after);
        if before || end.as_ref().is_some_and(|end| key > *end) {
            continue;
        }
        match previous {
            Some(data) => records.insert(key.clone(), Record { key, revision, data }),
            None => records.remove(&key),
        };
    }
    if let (true, Some(end)) = (records.is_empty(), &end) {
        return self::page(store, resource, ns, Some((&end.namespace, &end.name)), limit, Some(revision));
    }
    page.records = records.into_values().collect();
    if limit > 0 && page.records.len() > limit {
        page.remaining += page.records.len() - limit;
        page.records.truncate(limit);
    }
    page.revision = revision;
    Ok(page)
}

fn expired_token() -> Status {
    Status::expired(
        "The provided continue parameter is too old to display a consistent list result. \
         You must start a new list without the continue parameter.",
    )
}

/// Where a list goes on, and the revision its first page was from.
#[derive(Debug, PartialEq)]
struct Token {
    revision: u64,
    namespace: String,
    name: String,
}

impl Token {
    fn parse(text: &str) -> Result<Self, Status> {
        let invalid = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let text = String::from_utf8(bytes).map_err(|_| invalid())?;
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().ok_or_else(invalid);
        let revision = next()?.parse().map_err(|_| invalid())?;
        Ok(Self { revision, namespace: next()?.to_owned(), name: next()?.to_owned() })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{} {} {}", self.revision, self.namespace, self.name);
        f.write_str(&URL_SAFE_NO_PAD.encode(text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_survive_the_wire() {
        for (namespace, name) in [("default", "web"), ("", "node-1")] {
            let token = Token { revision: 77, namespace: namespace.into(), name: name.into() };
            assert_eq!(Token::parse(&token.to_string()).unwrap(), token);
        }
        assert_eq!(Token::parse("@@").unwrap_err().code, 400);
        assert_eq!(Token::parse(&URL_SAFE_NO_PAD.encode("x y z")).unwrap_err().code, 400);
    }
}
