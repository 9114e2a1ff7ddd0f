//! The store as its callers see it.

mod faults;
mod reading;
mod watching;
mod writing;

use std::{path::Path, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;

use super::{Durability, Error, Expect, Key, Options, Store, Write};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn options(directory: &Path) -> Options {
    Options { lazy_flush: Duration::from_secs(3600), ..Options::new(directory.join("store.db")) }
}

fn open(directory: &Path) -> Store {
    Store::open(options(directory)).unwrap()
}

/// `pods/default/a` or, with an empty namespace, `nodes//a`.
fn key(path: &str) -> Key {
    let mut parts = path.split('/');
    let mut part = || parts.next().unwrap().to_owned();
    Key::new(part(), part(), part())
}

fn write(path: &str, expect: Expect, data: &str, durability: Durability) -> Write {
    let data = Some(Bytes::copy_from_slice(data.as_bytes()));
    Write { key: key(path), expect, data, index: Vec::new(), durability }
}

fn create(path: &str, data: &str) -> Write {
    write(path, Expect::Absent, data, Durability::Durable)
}

fn update(path: &str, data: &str) -> Write {
    write(path, Expect::Present, data, Durability::Durable)
}

fn delete(path: &str) -> Write {
    Write { data: None, ..update(path, "") }
}

fn lazily(write: Write) -> Write {
    Write { durability: Durability::Lazy, ..write }
}

fn volatile(write: Write) -> Write {
    Write { durability: Durability::Volatile, ..write }
}

async fn one(store: &Store, write: Write) -> Result<u64, Error> {
    store.commit(vec![write]).await.map(|revisions| revisions[0])
}

fn text(store: &Store, path: &str) -> Option<String> {
    let record = store.get(&key(path)).unwrap()?;
    Some(String::from_utf8(record.data.to_vec()).unwrap())
}

fn names(store: &Store, resource: &str) -> Vec<String> {
    let page = store.list(resource, None, None, 0).unwrap();
    page.records.iter().map(|r| format!("{}/{}", r.key.namespace, r.key.name)).collect()
}

/// What is on disk at this moment, opened as after a power cut.
fn after_power_cut(directory: &Path) -> (TempDir, Store) {
    let copy = tempfile::tempdir().unwrap();
    for file in ["store.db", "store.db-wal"] {
        std::fs::copy(directory.join(file), copy.path().join(file)).unwrap();
    }
    let store = open(copy.path());
    (copy, store)
}
