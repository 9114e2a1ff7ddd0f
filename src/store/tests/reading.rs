use super::*;

#[tokio::test]
async fn listings_are_ordered_and_paged() {
    let directory = directory();
    let store = open(directory.path());
    for (path, durability) in [
        ("pods/b/2", Durability::Durable),
        ("pods/a/2", Durability::Lazy),
        ("pods/b/1", Durability::Volatile),
        ("pods/c/1", Durability::Durable),
        ("pods/a/1", Durability::Durable),
        ("nodes//n", Durability::Durable),
    ] {
        one(&store, write(path, Expect::Absent, path, durability)).await.unwrap();
    }
    type Case = (Option<&'static str>, Option<(&'static str, &'static str)>, usize, &'static [&'static str], usize);
    let table: [Case; 12] = [
        (None, None, 0, &["a/1", "a/2", "b/1", "b/2", "c/1"], 0),
        (None, None, 2, &["a/1", "a/2"], 3),
        (None, Some(("a", "2")), 2, &["b/1", "b/2"], 1),
        (None, Some(("b", "2")), 2, &["c/1"], 0),
        (None, Some(("a", "zz")), 1, &["b/1"], 2),
        (Some("b"), None, 0, &["b/1", "b/2"], 0),
        (Some("b"), None, 1, &["b/1"], 1),
        (Some("b"), Some(("b", "1")), 1, &["b/2"], 0),
        (Some("b"), Some(("a", "9")), 0, &["b/1", "b/2"], 0),
        (Some("b"), Some(("c", "0")), 0, &[], 0),
        (Some("missing"), None, 0, &[], 0),
        (None, Some(("zzz", "")), 0, &[], 0),
    ];
    for (namespace, after, limit, expected, remaining) in table {
        let page = store.list("pods", namespace, after, limit).unwrap();
        let found: Vec<_> = page.records.iter().map(|r| format!("{}/{}", r.key.namespace, r.key.name)).collect();
        assert_eq!(found, expected, "{namespace:?} {after:?} {limit}");
        assert_eq!((page.remaining, page.more()), (remaining, remaining > 0), "{namespace:?} {after:?} {limit}");
        assert_eq!(page.revision, store.revision());
        for record in page.records {
            assert_eq!(record.data, format!("pods/{}/{}", record.key.namespace, record.key.name));
        }
    }
    let counts = [("pods", None), ("pods", Some("b")), ("pods", Some("x")), ("nodes", Some("")), ("services", None)];
    assert_eq!(counts.map(|(r, n)| store.count(r, n)), [5, 2, 0, 1, 0]);
    assert_eq!(store.list("services", None, None, 0).unwrap().records.len(), 0);
    store.close().await.unwrap();
}

#[tokio::test]
async fn secondary_indexes_follow_the_objects() {
    let directory = directory();
    let store = open(directory.path());
    let found = |store: &Store, key: &str| -> Vec<String> {
        store.find("pods", key).unwrap().iter().map(|r| r.key.name.to_string()).collect()
    };
    let with = |write: Write, index: &[&str]| Write { index: index.iter().map(|k| (*k).to_owned()).collect(), ..write };
    for (i, durability) in [Durability::Durable, Durability::Lazy, Durability::Volatile].into_iter().enumerate() {
        let path = format!("pods/default/{i}");
        one(&store, with(write(&path, Expect::Absent, "x", durability), &["owner:u", "node:a"])).await.unwrap();
    }
    one(&store, with(create("services/default/s", "x"), &["owner:u"])).await.unwrap();
    assert_eq!((found(&store, "owner:u"), found(&store, "node:b")), (vec!["0".into(), "1".into(), "2".into()], vec![]));
    one(&store, with(update("pods/default/0", "y"), &["owner:u", "node:b"])).await.unwrap();
    one(&store, with(lazily(update("pods/default/1", "y")), &["node:b"])).await.unwrap();
    assert_eq!((found(&store, "node:a"), found(&store, "node:b")), (vec!["2".into()], vec!["0".into(), "1".into()]));
    assert_eq!(store.find("pods", "node:b").unwrap()[0].data, "y");
    one(&store, delete("pods/default/0")).await.unwrap();
    assert_eq!((found(&store, "owner:u"), found(&store, "node:b")), (vec!["2".into()], vec!["1".into()]));
    store.close().await.unwrap();
    let store = open(directory.path());
    assert_eq!((found(&store, "owner:u"), found(&store, "node:b")), (vec![], vec!["1".to_owned()]));
    store.close().await.unwrap();
}

/// Pairs of objects are always changed together; a reader must never see them apart, nor a torn revision.
#[tokio::test]
async fn readers_see_transactions_whole() {
    let directory = directory();
    let store = open(directory.path());
    store.commit(vec![create("pods/default/a", "0"), create("pods/default/b", "0")]).await.unwrap();
    let reader = store.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reading = std::thread::spawn(move || {
        let mut pages = 0;
        loop {
            let page = reader.list("pods", None, None, 0).unwrap();
            assert_eq!(page.records[0].data, page.records[1].data);
            assert!(page.records.iter().all(|r| r.revision <= page.revision));
            assert!(reader.get(&key("pods/default/a")).unwrap().is_some());
            pages += 1;
            if matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                return pages;
            }
        }
    });
    for i in 1..100 {
        let writes = vec![update("pods/default/a", &i.to_string()), update("pods/default/b", &i.to_string())];
        let writes = if i % 3 == 0 { writes.into_iter().map(lazily).collect() } else { writes };
        store.commit(writes).await.unwrap();
    }
    drop(stop);
    assert!(reading.join().unwrap() > 0);
    store.close().await.unwrap();
}
