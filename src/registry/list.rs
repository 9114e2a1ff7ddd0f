//! Lists: pages of one revision, selectors, continue tokens.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use tokio::task::yield_now;

use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::store::{Error, Key, Page, Record, Store};

use super::body::{Head, Raw};
use super::read::{indexed, key};
use super::select::Filter;
use super::{List, ListOptions, error};

/// Objects looked at in one go: a few milliseconds.
const CHUNK: usize = 500;

/// A list in one go.
pub(super) fn list(store: &Store, kind: &Kind, options: &ListOptions) -> Result<List, Status> {
    let mut scan = match short(store, kind, options)? {
        Short::Done(list) => return Ok(list),
        Short::Scan(scan) => scan,
    };
    // Without a limit and with nothing to leave out the store's own page is the list.
    let all = options.limit == 0 && scan.filter.is_empty();
    while !scan.done {
        scan.step(if all { 0 } else { CHUNK })?;
    }
    Ok(scan.list)
}

/// A list that lets other tasks run after each chunk.
pub(super) async fn list_slowly(store: &Store, kind: &Kind, options: &ListOptions) -> Result<List, Status> {
    let mut scan = match short(store, kind, options)? {
        Short::Done(list) => return Ok(list),
        Short::Scan(scan) => scan,
    };
    while !scan.done {
        match scan.step(CHUNK) {
            // Too much changed meanwhile. Nobody asked for an old revision, so all of it at once will do.
            Err(status) if status.code == 410 && options.next.is_empty() && options.exact.is_none() => {
                return list(store, kind, options);
            }
            done => done?,
        }
        if !scan.done {
            yield_now().await;
        }
    }
    Ok(scan.list)
}

/// A list that needs no scan, or the scan it needs.
enum Short<'a> {
    Done(List),
    Scan(Box<Scan<'a>>),
}

fn short<'a>(store: &'a Store, kind: &Kind, options: &'a ListOptions) -> Result<Short<'a>, Status> {
    let filter = Filter::new(kind, &options.labels, &options.fields)?;
    let ns = options.namespace.as_deref();
    if let (Some(name), Some(ns), None) = (filter.name(), ns.or((!kind.namespaced).then_some("")), options.exact) {
        return one(store, key(kind, ns, name), &Head::of(kind), &filter).map(Short::Done);
    }
    if let (Some(node), "Pod", 0, None) = (filter.node(), &*kind.kind, options.limit, options.exact) {
        return on_node(store, kind, node, options, &filter).map(Short::Done);
    }
    let token = if options.next.is_empty() { None } else { Some(Token::parse(&options.next)?) };
    Ok(Short::Scan(Box::new(Scan {
        store,
        options,
        resource: kind.resource(),
        head: Head::of(kind),
        filter,
        revision: token.as_ref().map(|t| t.revision).or(options.exact),
        after: token.map(|t| (t.namespace, t.name)),
        list: List::default(),
        done: false,
    })))
}

/// A list under way.
struct Scan<'a> {
    store: &'a Store,
    options: &'a ListOptions,
    resource: String,
    head: Head,
    filter: Filter,
    /// The revision shown, once known.
    revision: Option<u64>,
    /// The namespace and name looked at last.
    after: Option<(String, String)>,
    list: List,
    done: bool,
}

impl Scan<'_> {
    /// Looks at the next `chunk` objects (0: all).
    fn step(&mut self, chunk: usize) -> Result<(), Status> {
        let after = self.after.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
        let wanted = match self.options.limit.saturating_sub(self.list.items.len()) {
            0 => chunk,
            limit if self.filter.is_empty() => limit.min(chunk),
            _ => chunk,
        };
        let page = page(self.store, &self.resource, self.options.namespace.as_deref(), after, wanted, self.revision);
        let page = page.map_err(|e| match e {
            Error::Compacted { .. } => expired_token(),
            e => error::status(&self.resource, e),
        })?;
        self.revision = Some(page.revision);
        self.list.revision = page.revision;
        let mut left = page.records.len() + page.remaining;
        for record in page.records {
            left -= 1;
            self.after = Some((record.key.namespace.to_string(), record.key.name.to_string()));
            let raw = Raw::new(&self.head, record);
            if self.filter.matches(&raw)? {
                self.list.items.push(raw);
            }
            if self.options.limit > 0 && self.list.items.len() == self.options.limit {
                self.full(left);
                return Ok(());
            }
        }
        self.done = left == 0;
        Ok(())
    }

    /// Ends the list at its limit with `left` objects behind it.
    fn full(&mut self, left: usize) {
        self.done = true;
        if let (Some((namespace, name)), true) = (self.after.take(), left > 0) {
            self.list.next = Some(Token { revision: self.list.revision, namespace, name }.to_string());
            self.list.remaining = self.filter.is_empty().then_some(left as u64);
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
