use std::collections::HashMap;

use super::*;
use crate::store::{Change, Limits, Watch};

fn shown(change: &Change) -> String {
    let text = |data: &Option<Bytes>| data.as_ref().map_or("-".into(), |d| String::from_utf8_lossy(d).into_owned());
    format!("{} {}>{}", change.key.name, text(&change.previous), text(&change.data))
}

fn waiting(watch: &mut Watch) -> Vec<String> {
    std::iter::from_fn(|| watch.try_next().unwrap()).map(|c| shown(&c)).collect()
}

#[tokio::test]
async fn watches_give_each_change_once_in_order() {
    let directory = directory();
    let store = open(directory.path());
    let start = store.revision();
    let mut pods = store.watch("pods", None, start).unwrap();
    let mut mine = store.watch("pods", Some("mine"), start).unwrap();
    let (writes, second) = (
        vec![create("pods/mine/a", "1"), lazily(create("pods/other/b", "1")), create("nodes//n", "1")],
        vec![volatile(update("pods/other/b", "2")), delete("pods/mine/a"), update("nodes//n", "2")],
    );
    store.commit(writes).await.unwrap();
    let middle = store.commit(second).await.unwrap()[1];
    assert_eq!(waiting(&mut store.watch("pods", None, middle - 1).unwrap()), ["a 1>-"]);
    assert_eq!(mine.revision(), start);
    assert_eq!(waiting(&mut pods), ["a ->1", "b ->1", "b 1>2", "a 1>-"]);
    assert_eq!(waiting(&mut mine), ["a ->1", "a 1>-"]);
    assert_eq!((pods.revision(), mine.revision()), (store.revision(), store.revision()));
    one(&store, update("nodes//n", "3")).await.unwrap();
    assert_eq!(mine.revision(), store.revision(), "changes of others are progress too");
    assert!(matches!(store.watch("pods", None, store.revision() + 1), Err(Error::Future { .. })));
    store.close().await.unwrap();
}

#[tokio::test]
async fn next_waits_and_may_be_cancelled() {
    let directory = directory();
    let store = open(directory.path());
    let mut watch = store.watch("pods", Some("a"), store.revision()).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err());
    let writer = store.clone();
    let task = tokio::spawn(async move {
        one(&writer, create("pods/b/x", "")).await.unwrap();
        one(&writer, create("pods/a/x", "1")).await.unwrap();
        one(&writer, update("pods/a/x", "2")).await.unwrap();
    });
    assert_eq!(shown(&watch.next().await.unwrap()), "x ->1");
    assert_eq!(shown(&watch.next().await.unwrap()), "x 1>2");
    task.await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    store.close().await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed)));
}

#[tokio::test]
async fn the_ring_is_bounded_and_compacts_only_what_it_dropped() {
    let directory = directory();
    let store = Store::open(Options { ring_bytes: 10_000, ..options(directory.path()) }).unwrap();
    let start = store.revision();
    let mut quiet = store.watch("nodes", None, start).unwrap();
    let mut slow = store.watch("pods", None, start).unwrap();
    one(&store, volatile(create("pods/a/x", "0"))).await.unwrap();
    for i in 1..200 {
        one(&store, volatile(update("pods/a/x", &i.to_string()))).await.unwrap();
    }
    assert!(matches!(slow.try_next(), Err(Error::Compacted { .. })));
    let Err(Error::Compacted { oldest, .. }) = store.watch("pods", None, start) else { panic!("not compacted") };
    let mut rest = store.watch("pods", None, oldest).unwrap();
    let rest = waiting(&mut rest);
    assert!(rest.len() > 10 && rest.len() < 100, "{}", rest.len());
    assert_eq!(rest.last().unwrap(), "x 198>199");
    one(&store, create("nodes//n", "1")).await.unwrap();
    assert_eq!(waiting(&mut quiet), ["n ->1"], "nothing of this resource was dropped");
    store.close().await.unwrap();
}

#[tokio::test]
async fn after_a_restart_only_the_newest_revision_can_be_watched_from() {
    let directory = directory();
    let store = open(directory.path());
    let first = one(&store, create("pods/a/x", "1")).await.unwrap();
    let last = one(&store, update("pods/a/x", "2")).await.unwrap();
    store.close().await.unwrap();
    let store = open(directory.path());
    assert_eq!(store.revision(), last);
    for resource in ["pods", "nodes"] {
        assert!(matches!(store.watch(resource, None, first), Err(Error::Compacted { .. })));
        assert!(store.watch(resource, None, last).is_ok());
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn volatile_objects_are_bounded_and_expire_as_deletes() {
    let directory = directory();
    let ttl = Some(Duration::from_millis(300));
    let volatile_limits = HashMap::from([
        ("few".to_owned(), Limits { count: 2, ..Limits::default() }),
        ("small".to_owned(), Limits { bytes: 40, ..Limits::default() }),
        ("short".to_owned(), Limits { ttl, ..Limits::default() }),
    ]);
    let store = Store::open(Options { volatile: volatile_limits, ..options(directory.path()) }).unwrap();
    let start = store.revision();
    for resource in ["few", "small"] {
        for name in ["a", "b", "a", "c"] {
            let path = format!("{resource}/n/{name}");
            let known = store.get(&key(&path)).unwrap().is_some();
            let expect = if known { Expect::Present } else { Expect::Absent };
            one(&store, write(&path, expect, "0123456789", Durability::Volatile)).await.unwrap();
        }
        // The one that was written longest ago goes, not the one created first.
        assert_eq!(names(&store, resource), ["n/a", "n/c"], "{resource}");
        let mut watch = store.watch(resource, None, start).unwrap();
        assert_eq!(waiting(&mut watch).last().unwrap(), "b 0123456789>-");
    }
    let mut watch = store.watch("short", None, store.revision()).unwrap();
    one(&store, volatile(create("short/n/a", "1"))).await.unwrap();
    assert_eq!(shown(&watch.next().await.unwrap()), "a ->1");
    let gone = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
    assert_eq!((shown(&gone), store.count("short", None)), ("a 1>-".into(), 0));
    store.close().await.unwrap();
}

#[tokio::test]
async fn shrinking_loses_nothing() {
    let directory = directory();
    let store = open(directory.path());
    let start = store.revision();
    let writes = vec![create("pods/a/x", "1"), lazily(create("pods/a/y", "1")), volatile(create("pods/b/x", "1"))];
    store.commit(writes).await.unwrap();
    store.shrink().await;
    one(&store, update("pods/a/x", "2")).await.unwrap();
    store.shrink().await;
    let all = waiting(&mut store.watch("pods", None, start).unwrap());
    assert_eq!(all, ["x ->1", "y ->1", "x ->1", "x 1>2"]);
    assert_eq!(store.list("pods", None, None, 0).unwrap().records.len(), 3);
    store.close().await.unwrap();
    store.shrink().await;
}
