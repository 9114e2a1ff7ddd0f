//! Create, update, patch and delete: the order of steps of every write.

use jiff::Timestamp;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource, meta};
use crate::store::{Durability, Error, Expect, Write};

use super::body::encode;
use super::delete::{self, Plan};
use super::model::{self, Operation};
use super::services::{self, Claim};
use super::{DeleteOptions, Deleted, Patch, PatchType, Registry, WriteOptions, admission, error, identity, read, sub};

/// Largest object in bytes, as etcd's limit of a request.
const MAX_OBJECT: usize = 1536 << 10;
/// How often a read-modify-write is tried before the conflict is the caller's.
const ATTEMPTS: usize = 16;
/// How often another random name is tried for `generateName`.
const NAMES: usize = 8;

/// One write: who wants what of which kind, and when.
pub(super) struct Call<'a> {
    pub(super) registry: &'a Registry,
    pub(super) kind: &'a Kind,
    pub(super) ns: &'a str,
    pub(super) options: &'a WriteOptions,
    pub(super) now: Timestamp,
}

impl<'a> Call<'a> {
    pub(super) fn new(registry: &'a Registry, kind: &'a Kind, ns: &'a str, options: &'a WriteOptions) -> Self {
        Self { registry, kind, ns, options, now: Timestamp::now() }
    }

    pub(super) async fn create(&self, object: Object) -> Result<Object, Status> {
        self.create_as(object, Operation::Update).await
    }

    async fn create_as(&self, mut object: Object, operation: Operation) -> Result<Object, Status> {
        identity::check_type(self.kind, &mut object)?;
        identity::check_namespace(self.kind, self.ns, &mut object)?;
        model::prune(self.kind, &mut object, self.options)?;
        identity::strip(&mut object)?;
        let generated = meta::name(&object).is_empty() && !meta::str_at(&object, "/metadata/generateName").is_empty();
        if generated {
            identity::generate_name(&mut object);
        }
        admission::namespace_accepts(self.registry, self.kind, self.ns, meta::name(&object))?;
        self.kind.hooks.default(&mut object);
        admission::mutate_create(self.kind, &mut object);
        admission::service_account_exists(self.registry, self.kind, &object)?;
        self.kind.hooks.prepare_create(&mut object);
        identity::stamp(&mut object, self.now);
        let claim = self.allocate(&mut object, None)?;
        self.valid(&object, self.kind.hooks.validate(&object))?;
        if operation == Operation::Update {
            model::track(self.kind, &mut object, None, self.options, None, self.now);
        }
        for _ in 1..NAMES {
            match self.store(&mut object, Expect::Absent, self.durability(None), claim.clone()).await {
                Err(status) if generated && status.reason == "AlreadyExists" => identity::generate_name(&mut object),
                done => return done.map(|()| object),
            }
        }
        self.store(&mut object, Expect::Absent, self.durability(None), claim).await.map(|()| object)
    }

    pub(super) async fn update(&self, name: &str, sub: Option<Subresource>, new: Object) -> Result<Object, Status> {
        let unconditional = ["", "0"].contains(&meta::resource_version(&new));
        for _ in 1..ATTEMPTS {
            let old = self.get(name)?;
            match self.replace(old, new.clone(), sub, Operation::Update).await {
                Err(status) if unconditional && is_stale(&status) => {}
                done => return done,
            }
        }
        self.replace(self.get(name)?, new, sub, Operation::Update).await
    }

    pub(super) async fn modify(
        &self,
        name: &str,
        sub: Option<Subresource>,
        mut change: impl FnMut(&mut Object) -> Result<(), Status>,
    ) -> Result<Object, Status> {
        let mut attempt = 1;
        loop {
            let old = self.get(name)?;
            let mut new = old.clone();
            change(&mut new)?;
            if new == old {
                return Ok(old);
            }
            match self.replace(old, new, sub, Operation::Update).await {
                Err(status) if is_stale(&status) && attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    pub(super) async fn patch(
        &self,
        name: &str,
        sub: Option<Subresource>,
        patch: &Patch,
    ) -> Result<(Object, bool), Status> {
        let mut attempt = 1;
        loop {
            let old = match self.get(name) {
                Err(status) if status.code == 404 && patch.kind == PatchType::Apply && sub.is_none() => {
                    let object = model::applied(self.kind, name, None, None, patch, self.options, self.now)?;
                    match self.create_as(object, Operation::Apply).await {
                        Err(status) if status.reason == "AlreadyExists" && attempt < ATTEMPTS => {
                            attempt += 1;
                            continue;
                        }
                        done => return done.map(|object| (object, true)),
                    }
                }
                found => found?,
            };
            let (new, operation) = model::patch(self.kind, &old, sub, patch, self.options, self.now)?;
            let pinned = meta::resource_version(&new) != meta::resource_version(&old);
            match self.replace(old, new, sub, operation).await {
                Err(status) if is_stale(&status) && !pinned && attempt < ATTEMPTS => attempt += 1,
                done => return done.map(|object| (object, false)),
            }
        }
    }

    pub(super) async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
        admission::may_delete(self.kind, name)?;
        let mut attempt = 1;
        loop {
            let old = self.get(name)?;
            delete::check(self.kind, &old, options)?;
            let done = match delete::plan(self.kind, &old, options, self.now) {
                Plan::Nothing => return Ok(Deleted::Pending(old)),
                Plan::Remove => self.remove(&old).await.map(|()| Deleted::Gone(old)),
                Plan::Keep(mut object) => {
                    let expect = Expect::Revision(revision(&old)?);
                    let done = self.store(&mut object, expect, self.durability(None), Claim::default()).await;
                    done.map(|()| Deleted::Pending(object))
                }
            };
            match done {
                Err(status) if is_stale(&status) && attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// Writes what was `sent` in place of `old` by the rules of the subresource; what changes nothing is not written.
    async fn replace(
        &self,
        old: Object,
        sent: Object,
        sub: Option<Subresource>,
        operation: Operation,
    ) -> Result<Object, Status> {
        let mut new = sub::expand(self.kind, sub, sent, &old)?;
        identity::check_type(self.kind, &mut new)?;
        identity::check_namespace(self.kind, self.ns, &mut new)?;
        identity::check_same(self.kind, &new, &old)?;
        model::prune(self.kind, &mut new, self.options)?;
        identity::keep(&mut new, &old);
        self.kind.hooks.default(&mut new);
        sub::prepare(self.kind, sub, &mut new, &old);
        let claim = if sub.is_none() { self.allocate(&mut new, Some(&old))? } else { Claim::default() };
        let mut errors = self.kind.hooks.validate(&new);
        if sub::follows_update_rules(sub) {
            errors.extend(self.kind.hooks.validate_update(&new, &old));
        }
        self.valid(&new, errors)?;
        if operation == Operation::Update {
            model::track(self.kind, &mut new, Some(&old), self.options, sub, self.now);
        }
        meta::set(&mut new, "/metadata/resourceVersion", meta::resource_version(&old));
        if new == old || (operation == Operation::Update && identity::same_but_managed(&new, &old)) {
            return Ok(old);
        }
        if delete::is_finished(self.kind, &new) {
            return self.remove(&old).await.map(|()| new);
        }
        let expect = Expect::Revision(revision(&old)?);
        self.store(&mut new, expect, self.durability(sub), claim).await.map(|()| new)
    }

    fn get(&self, name: &str) -> Result<Object, Status> {
        read::get(self.registry.store(), self.kind, self.ns, name)?.object()
    }

    fn valid(&self, object: &Object, errors: Vec<crate::kinds::status::FieldError>) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(&self.kind.group, &self.kind.kind, meta::name(object), &errors))
    }

    fn durability(&self, sub: Option<Subresource>) -> Durability {
        match sub {
            _ if self.kind.volatile => Durability::Volatile,
            Some(Subresource::Status) => Durability::Lazy,
            _ if self.options.lazy => Durability::Lazy,
            _ => Durability::Durable,
        }
    }

    /// Fills in what the registry gives out, to be held until the write is done.
    pub(super) fn allocate(&self, object: &mut Object, old: Option<&Object>) -> Result<Claim, Status> {
        if !services::is_service(self.kind) {
            return Ok(Claim::default());
        }
        let key = read::key(self.kind, self.ns, meta::name(object));
        self.registry.inner.services.allocate(self.registry.store(), &key, object, old)
    }

    /// Stores the object and gives it its new resource version; a dry run only checks the expectation.
    pub(super) async fn store(
        &self,
        object: &mut Object,
        expect: Expect,
        durability: Durability,
        claim: Claim,
    ) -> Result<(), Status> {
        let data = encode(object)?;
        if data.len() > MAX_OBJECT {
            return Err(Status::too_large(format!("limit is {MAX_OBJECT}")));
        }
        let key = read::key(self.kind, self.ns, meta::name(object));
        if self.options.dry_run {
            return self.would(&key, expect);
        }
        let index = index(self.kind, object);
        let write = Write { key, expect, data: Some(data), index, durability };
        meta::set_resource_version(object, self.commit(write, claim).await?);
        Ok(())
    }

    async fn remove(&self, old: &Object) -> Result<(), Status> {
        let key = read::key(self.kind, self.ns, meta::name(old));
        let expect = Expect::Revision(revision(old)?);
        if self.options.dry_run {
            return self.would(&key, expect);
        }
        let durability = self.durability(None);
        let write = Write { key, expect, data: None, index: Vec::new(), durability };
        self.commit(write, Claim::default()).await.map(drop)
    }

    async fn commit(&self, write: Write, claim: Claim) -> Result<u64, Status> {
        let resource = write.key.resource.clone();
        let store = self.registry.store().clone();
        let done = if claim.is_empty() {
            store.commit(vec![write]).await
        } else {
            // The write goes on when the client goes away; what it takes must not be given out meanwhile.
            let writing = tokio::spawn(async move {
                let done = store.commit(vec![write]).await;
                drop(claim);
                done
            });
            writing.await.map_err(Status::internal)?
        };
        let revisions = done.map_err(|e| error::status(&resource, e))?;
        let revision = revisions.last().copied().unwrap_or_default();
        self.registry.announce(revision);
        Ok(revision)
    }

    /// Whether a write with this expectation would find what it expects.
    fn would(&self, key: &crate::store::Key, expect: Expect) -> Result<(), Status> {
        let failed = |e| error::status(&key.resource, e);
        match (expect, self.registry.store().get(key).map_err(failed)?) {
            (Expect::Absent, Some(_)) => Err(failed(Error::Exists(key.clone()))),
            (Expect::Present | Expect::Revision(_), None) => Err(failed(Error::NotFound(key.clone()))),
            (Expect::Revision(wanted), Some(record)) if wanted != record.revision => {
                Err(failed(Error::Conflict { key: key.clone(), actual: record.revision }))
            }
            _ => Ok(()),
        }
    }
}

/// The secondary index keys of an object: its owners', and the kind's own.
fn index(kind: &Kind, object: &Object) -> Vec<String> {
    let mut keys: Vec<String> =
        meta::owners(object).filter_map(|o| o.get("uid")?.as_str()).map(|uid| format!("owner:{uid}")).collect();
    keys.extend(kind.hooks.index(object));
    keys
}

pub(super) fn revision(object: &Object) -> Result<u64, Status> {
    meta::resource_version(object).parse().map_err(|_| Status::internal("stored object without a revision"))
}

fn is_stale(status: &Status) -> bool {
    status.reason == "Conflict" && status.message.contains("the object has been modified")
}
