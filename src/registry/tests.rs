//! The verbs over a real store.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::kinds::meta;
use crate::store::Options;

struct Cluster {
    registry: Registry,
    _directory: TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(directory.path().join("state.db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        Self { registry, _directory: directory }
    }

    fn kind(&self, plural: &str) -> Arc<Kind> {
        self.registry.kinds().by_resource(plural).unwrap()
    }

    async fn config(&self, name: &str, data: Value) -> Object {
        let new = object(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": data}));
        self.registry.create(&self.kind("configmaps"), "default", new, &by()).await.unwrap()
    }
}

fn by() -> WriteOptions {
    WriteOptions::by("test")
}

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn a_cluster_begins_with_its_namespaces() {
    let cluster = Cluster::new().await;
    let before = cluster.registry.revision();
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        cluster.registry.get(&cluster.kind("namespaces"), "", namespace).unwrap();
        cluster.registry.get(&cluster.kind("serviceaccounts"), namespace, "default").unwrap();
    }
    cluster.registry.bootstrap().await.unwrap();
    assert_eq!(cluster.registry.revision(), before, "a second start changes nothing");
}

#[tokio::test]
async fn objects_are_created_changed_and_deleted() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    let created = cluster.config("a", json!({"k": "v"})).await;
    assert!(!meta::uid(&created).is_empty() && meta::created(&created).is_some());
    assert_eq!(registry.get(&kind, "default", "a").unwrap(), created);
    let again = object(json!({"metadata": {"name": "a"}}));
    assert_eq!(registry.create(&kind, "default", again, &by()).await.unwrap_err().reason, "AlreadyExists");

    let mut changed = created.clone();
    meta::set(&mut changed, "/data/k", "w");
    let updated = registry.update(&kind, "default", "a", None, changed.clone(), &by()).await.unwrap();
    assert_ne!(meta::resource_version(&updated), meta::resource_version(&created));
    assert_eq!(meta::uid(&updated), meta::uid(&created));
    meta::set(&mut changed, "/data/k", "x");
    let stale = registry.update(&kind, "default", "a", None, changed.clone(), &by()).await.unwrap_err();
    assert_eq!((stale.code, stale.reason), (409, "Conflict"));
    meta::remove(&mut changed, "/metadata/resourceVersion");
    let updated = registry.update(&kind, "default", "a", None, changed, &by()).await.unwrap();
    let same = registry.update(&kind, "default", "a", None, updated.clone(), &by()).await.unwrap();
    assert_eq!(same, updated, "a write that changes nothing keeps its revision");

    assert!(matches!(registry.delete(&kind, "default", "a", &DeleteOptions::default()).await, Ok(Deleted::Gone(_))));
    assert_eq!(registry.get(&kind, "default", "a").unwrap_err().code, 404);
    assert_eq!(registry.delete(&kind, "default", "a", &DeleteOptions::default()).await.unwrap_err().code, 404);
    assert_eq!(registry.update(&kind, "default", "a", None, updated, &by()).await.unwrap_err().code, 404);
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused() {
    let cluster = Cluster::new().await;
    let kind = cluster.kind("configmaps");
    let strict = WriteOptions { validation: FieldValidation::Strict, ..by() };
    for (ns, new, options, code) in [
        ("nowhere", json!({"metadata": {"name": "a"}}), by(), 404),
        ("default", json!({"metadata": {"name": "a", "namespace": "other"}}), by(), 400),
        ("default", json!({"metadata": {"name": "a", "resourceVersion": "1"}}), by(), 400),
        ("default", json!({"kind": "Pod", "metadata": {"name": "a"}}), by(), 400),
        ("default", json!({"metadata": {"name": "UPPER"}}), by(), 422),
        ("default", json!({"metadata": {}}), by(), 422),
        ("default", json!({"metadata": {"name": "a"}, "data": 7}), by(), 400),
        ("default", json!({"metadata": {"name": "a"}, "spec": {}}), strict, 400),
        ("default", json!({"metadata": {"name": "a"}, "data": {"big": "x".repeat(1 << 21)}}), by(), 413),
    ] {
        let text = new.to_string();
        let result = cluster.registry.create(&kind, ns, object(new), &options).await;
        let code_found = result.as_ref().err().map(|s| s.code);
        // Kinds may bound their size themselves.
        let expected = code_found == Some(code) || (code == 413 && code_found == Some(422));
        assert!(expected, "{:.80} {result:?}", text);
    }
}

#[tokio::test]
async fn unknown_fields_are_dropped_with_a_warning() {
    let cluster = Cluster::new().await;
    let options = WriteOptions { validation: FieldValidation::Warn, ..by() };
    let new = object(json!({"metadata": {"name": "a"}, "spec": {"x": 1}}));
    let created = cluster.registry.create(&cluster.kind("configmaps"), "default", new, &options).await.unwrap();
    assert!(!created.contains_key("spec"));
    assert_eq!(options.warnings.take(), [r#"unknown field "spec""#]);
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    let stored = cluster.config("a", json!({})).await;
    let before = registry.revision();
    let dry = WriteOptions { dry_run: true, ..by() };
    let new = |name: &str| object(json!({"metadata": {"name": name}}));
    assert_eq!(registry.create(&kind, "default", new("a"), &dry).await.unwrap_err().code, 409);
    assert!(!meta::uid(&registry.create(&kind, "default", new("b"), &dry).await.unwrap()).is_empty());
    let mut changed = stored;
    meta::set(&mut changed, "/data/x", "y");
    let shown = registry.update(&kind, "default", "a", None, changed, &dry).await.unwrap();
    assert_eq!(meta::str_at(&shown, "/data/x"), "y");
    let options = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    registry.delete(&kind, "default", "a", &options).await.unwrap();
    assert!(registry.get(&kind, "default", "a").is_ok());
    assert_eq!(registry.revision(), before);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    let new = object(json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}}));
    registry.create(&kind, "default", new, &by()).await.unwrap();
    assert!(matches!(registry.delete(&kind, "default", "a", &DeleteOptions::now()).await, Ok(Deleted::Pending(_))));
    let add = |o: &mut Object| {
        meta::set(o, "/metadata/finalizers", json!(["example.com/hold", "example.com/more"]));
        Ok(())
    };
    assert_eq!(registry.modify(&kind, "default", "a", None, &by(), add).await.unwrap_err().code, 422);
    let remove = |o: &mut Object| {
        meta::remove_finalizer(o, "example.com/hold");
        Ok(())
    };
    registry.modify(&kind, "default", "a", None, &by(), remove).await.unwrap();
    assert_eq!(registry.get(&kind, "default", "a").unwrap_err().code, 404);
}

#[tokio::test]
async fn a_namespace_on_its_way_out_takes_nothing_new() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("namespaces"));
    registry.create(&kind, "", object(json!({"metadata": {"name": "x"}})), &by()).await.unwrap();
    let pending = registry.delete(&kind, "", "x", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(pending, Deleted::Pending(ns) if meta::str_at(&ns, "/status/phase") == "Terminating"));
    let new = object(json!({"metadata": {"name": "a"}}));
    let refused = registry.create(&cluster.kind("configmaps"), "x", new, &by()).await.unwrap_err();
    assert_eq!((refused.code, refused.details["causes"][0]["reason"].as_str()), (403, Some("NamespaceTerminating")));
    let mut ns = registry.get(&kind, "", "x").unwrap();
    meta::set(&mut ns, "/spec/finalizers", json!([]));
    registry.update(&kind, "", "x", Some(Subresource::Other("finalize")), ns, &by()).await.unwrap();
    assert_eq!(registry.get(&kind, "", "x").unwrap_err().code, 404);
    assert_eq!(registry.delete(&kind, "", "default", &DeleteOptions::default()).await.unwrap_err().code, 403);
}

#[tokio::test]
async fn pages_show_one_revision() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    for i in 0..10 {
        cluster.config(&format!("c{i}"), json!({"n": i.to_string()})).await;
    }
    let mut options = ListOptions { limit: 4, ..ListOptions::within("default") };
    let first = registry.list(&kind, &options).unwrap();
    assert_eq!((first.items.len(), first.remaining), (4, Some(6)));
    // After the first page: one object changes, one goes, one comes.
    let change = |o: &mut Object| {
        meta::set(o, "/data/n", "changed");
        Ok(())
    };
    registry.modify(&kind, "default", "c5", None, &by(), change).await.unwrap();
    registry.delete(&kind, "default", "c6", &DeleteOptions::default()).await.unwrap();
    cluster.config("c55", json!({})).await;
    let mut names: Vec<String> = first.items.iter().map(|r| r.key.name.to_string()).collect();
    let mut next = first.next;
    while let Some(token) = next {
        options.next = token;
        let page = registry.list(&kind, &options).unwrap();
        assert_eq!(page.revision, first.revision);
        for raw in &page.items {
            assert_ne!(meta::str_at(&raw.object().unwrap(), "/data/n"), "changed");
        }
        names.extend(page.items.iter().map(|r| r.key.name.to_string()));
        next = page.next;
    }
    assert_eq!(names, (0..10).map(|i| format!("c{i}")).collect::<Vec<_>>());
    let exact = ListOptions { exact: Some(first.revision), ..ListOptions::within("default") };
    assert_eq!(registry.list(&kind, &exact).unwrap().items.len(), 10);
    options.next = "rubbish!".into();
    assert_eq!(registry.list(&kind, &options).unwrap_err().code, 400);
}

#[tokio::test]
async fn a_long_list_is_found_whole() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    let (options, many) = (by(), 1203);
    let new = |i: usize| {
        let last = if i + 1 == many { "yes" } else { "no" };
        object(json!({"metadata": {"name": format!("c{i:05}"), "labels": {"last": last}}}))
    };
    let all = (0..many).map(|i| registry.create(&kind, "default", new(i), &options));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    let last = ListOptions::within("default").labels("last=yes");
    for (options, expected) in [
        (ListOptions::within("default"), many),
        (last.clone(), 1),
        (ListOptions { limit: 1, ..last.clone() }, 1),
        (ListOptions { limit: 700, ..ListOptions::within("default") }, 700),
        (ListOptions { limit: 5, ..ListOptions::within("default").labels("last=no") }, 5),
    ] {
        let (list, slow) =
            (registry.list(&kind, &options).unwrap(), registry.list_slowly(&kind, &options).await.unwrap());
        assert_eq!((list.items.len(), slow.items.len()), (expected, expected), "{options:?}");
        assert_eq!((list.next.clone(), list.remaining), (slow.next, slow.remaining));
        assert_eq!(list.next.is_some(), [5, 700].contains(&options.limit));
    }
}

#[tokio::test]
async fn selectors_choose() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    for name in ["a", "b", "c"] {
        cluster.config(name, json!({})).await;
    }
    let names = |options: ListOptions| -> Vec<String> {
        registry.list(&kind, &options).unwrap().items.iter().map(|r| r.key.name.to_string()).collect()
    };
    let all = || ListOptions::within("default");
    assert_eq!(names(all().labels("app in (a,c)")), ["a", "c"]);
    assert_eq!(names(all().fields("metadata.name=b")), ["b"]);
    assert_eq!(names(all().fields("metadata.name!=b")), ["a", "c"]);
    assert_eq!(names(all().fields("metadata.name=b").labels("app=a")), Vec::<String>::new());
    assert_eq!(names(ListOptions { limit: 1, ..all().labels("app!=a") }), ["b"]);
    assert_eq!(registry.list(&kind, &all().fields("spec.x=b")).unwrap_err().code, 400);
    assert_eq!(registry.list(&kind, &all().labels("a=(")).unwrap_err().code, 400);
}

#[tokio::test]
async fn watches_see_every_change_in_order() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    let mut watch = registry.watch(&kind, Some("default"), None).unwrap();
    cluster.config("a", json!({})).await;
    let change = |o: &mut Object| {
        meta::set(o, "/data/n", "1");
        Ok(())
    };
    let changed = registry.modify(&kind, "default", "a", None, &by(), change).await.unwrap();
    registry.modify(&kind, "default", "a", None, &by(), change).await.unwrap();
    registry.delete(&kind, "default", "a", &DeleteOptions::default()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let event = watch.next().await.unwrap();
        seen.push((event.kind, meta::str_at(&event.object.object().unwrap(), "/data/n").to_owned()));
    }
    let expected = [(EventType::Added, ""), (EventType::Modified, "1"), (EventType::Deleted, "1")];
    assert_eq!(seen, expected.map(|(kind, n)| (kind, n.to_owned())));
    assert!(watch.try_next().unwrap().is_none(), "what changes nothing is no event");
    let after: u64 = meta::resource_version(&changed).parse().unwrap();
    let mut late = registry.watch(&kind, None, Some(after)).unwrap();
    assert_eq!(late.next().await.unwrap().kind, EventType::Deleted);
    assert_eq!(registry.watch(&kind, None, Some(1 << 40)).unwrap_err().code, 504);
}

#[tokio::test]
async fn concurrent_changes_all_count() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    cluster.config("a", json!({"n": "0"})).await;
    let (options, count) = (by(), 8);
    let raise = |o: &mut Object| {
        let n: u32 = meta::str_at(o, "/data/n").parse().unwrap();
        meta::set(o, "/data/n", (n + 1).to_string());
        Ok(())
    };
    let all = (0..count).map(|_| registry.modify(&kind, "default", "a", None, &options, raise));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(meta::str_at(&registry.get(&kind, "default", "a").unwrap(), "/data/n"), count.to_string());
}

fn deployment(name: &str) -> Object {
    object(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "busybox"}]},
            },
        },
    }))
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("deployments.apps"));
    let mut new = deployment("web");
    meta::set(&mut new, "/status/replicas", 9);
    let created = registry.create(&kind, "default", new, &by()).await.unwrap();
    assert_eq!(meta::int_at(&created, "/status/replicas").unwrap_or(0), 0);
    let change = |o: &mut Object| {
        meta::set(o, "/status/replicas", 1);
        meta::set(o, "/spec/replicas", 7);
        Ok(())
    };
    let status = Some(Subresource::Status);
    let after = registry.modify(&kind, "default", "web", status, &by(), change).await.unwrap();
    assert_eq!(meta::int_at(&after, "/status/replicas"), Some(1));
    assert_eq!(meta::int_at(&after, "/spec/replicas"), Some(2));
    let after = registry.modify(&kind, "default", "web", None, &by(), change).await.unwrap();
    assert_eq!(meta::int_at(&after, "/spec/replicas"), Some(7));
    assert_eq!(meta::generation(&after), 2);
}

#[tokio::test]
async fn a_scale_is_a_view_of_the_replicas() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("deployments.apps"));
    let created = registry.create(&kind, "default", deployment("web"), &by()).await.unwrap();
    let sub = Some(Subresource::Scale);
    let mut scale = crate::kinds::scale::from_object(&created);
    meta::set(&mut scale, "/spec/replicas", 5);
    let after = registry.update(&kind, "default", "web", sub, scale.clone(), &by()).await.unwrap();
    assert_eq!(meta::int_at(&after, "/spec/replicas"), Some(5));
    assert_eq!(registry.update(&kind, "default", "web", sub, scale, &by()).await.unwrap_err().code, 409);
    let patch = Patch::merge(&json!({"spec": {"replicas": 3}}));
    let (after, _) = registry.patch(&kind, "default", "web", sub, patch, &by()).await.unwrap();
    assert_eq!(meta::int_at(&after, "/spec/replicas"), Some(3));
    assert_eq!(meta::kind(&after), "Deployment");
}

#[tokio::test]
async fn server_side_apply_creates_and_merges() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("deployments.apps"));
    let apply = |replicas: u32| {
        let mut document = deployment("web");
        meta::set(&mut document, "/spec/replicas", replicas);
        Patch { kind: PatchType::Apply, body: Value::Object(document).to_string().into() }
    };
    let (first, created) = registry.patch(&kind, "default", "web", None, apply(2), &by()).await.unwrap();
    assert!(created);
    assert_eq!(meta::list_at(&first, "/metadata/managedFields")[0]["operation"], "Apply");
    let (same, created) = registry.patch(&kind, "default", "web", None, apply(2), &by()).await.unwrap();
    assert!(!created);
    assert_eq!(meta::resource_version(&same), meta::resource_version(&first));
    let elsewhere = registry.patch(&kind, "default", "db", None, apply(2), &by()).await.unwrap_err();
    assert_eq!(elsewhere.code, 400, "the document names another object");
    let other = WriteOptions::by("other");
    let conflict = registry.patch(&kind, "default", "web", None, apply(3), &other).await.unwrap_err();
    assert_eq!((conflict.code, conflict.details["causes"][0]["field"].as_str()), (409, Some(".spec.replicas")));
    let force = WriteOptions { force: true, ..other };
    let (after, _) = registry.patch(&kind, "default", "web", None, apply(3), &force).await.unwrap();
    assert_eq!(meta::int_at(&after, "/spec/replicas"), Some(3));
}

#[tokio::test]
async fn pods_are_bound_and_leave_gracefully() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("pods"));
    let pod = |name: &str| {
        object(json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}}))
    };
    let created = registry.create(&kind, "default", pod("a"), &by()).await.unwrap();
    assert_eq!(meta::str_at(&created, "/spec/serviceAccountName"), "default");
    assert!(matches!(registry.delete(&kind, "default", "a", &DeleteOptions::default()).await, Ok(Deleted::Gone(_))));

    registry.create(&kind, "default", pod("b"), &by()).await.unwrap();
    let binding =
        object(json!({"kind": "Binding", "metadata": {"name": "b"}, "target": {"kind": "Node", "name": "n"}}));
    let bind = Some(Subresource::Binding);
    registry.update(&kind, "default", "b", bind, binding.clone(), &by()).await.unwrap();
    assert_eq!(registry.update(&kind, "default", "b", bind, binding, &by()).await.unwrap_err().code, 409);
    assert_eq!(registry.indexed(&kind, "node:n").unwrap().len(), 1);
    let found = registry.list(&kind, &ListOptions::default().fields("spec.nodeName=n")).unwrap();
    assert_eq!(found.items.len(), 1);

    assert!(matches!(registry.delete(&kind, "default", "b", &DeleteOptions::default()).await, Ok(Deleted::Pending(_))));
    let pod = registry.get(&kind, "default", "b").unwrap();
    assert_eq!(meta::int_at(&pod, "/metadata/deletionGracePeriodSeconds"), Some(30));
    assert!(matches!(registry.delete(&kind, "default", "b", &DeleteOptions::now()).await, Ok(Deleted::Gone(_))));
    assert_eq!(registry.get(&kind, "default", "b").unwrap_err().code, 404);
}

#[tokio::test]
async fn patches_of_three_types() {
    let cluster = Cluster::new().await;
    let (registry, kind) = (&cluster.registry, cluster.kind("configmaps"));
    cluster.config("a", json!({"k": "v"})).await;
    let patch = |kind, body: Value| Patch { kind, body: body.to_string().into() };
    for (patch, expected) in [
        (patch(PatchType::Merge, json!({"data": {"m": "1"}})), Ok(json!({"k": "v", "m": "1"}))),
        (patch(PatchType::Strategic, json!({"data": {"k": null}})), Ok(json!({"m": "1"}))),
        (
            patch(PatchType::Json, json!([{"op": "add", "path": "/data/j", "value": "2"}])),
            Ok(json!({"m": "1", "j": "2"})),
        ),
        (patch(PatchType::Json, json!([{"op": "test", "path": "/data/j", "value": "3"}])), Err(422)),
        (patch(PatchType::Merge, json!([1])), Err(400)),
        (patch(PatchType::Merge, json!({"metadata": {"resourceVersion": "1"}})), Err(409)),
        (patch(PatchType::Merge, json!({"metadata": {"name": "b"}})), Err(400)),
    ] {
        let result = registry.patch(&kind, "default", "a", None, patch, &by()).await;
        assert_eq!(result.map(|(o, _)| o["data"].clone()).map_err(|s| s.code), expected);
    }
    let missing = registry.patch(&kind, "default", "none", None, Patch::merge(&json!({})), &by()).await;
    assert_eq!(missing.unwrap_err().code, 404);
}
