use super::*;

#[tokio::test]
async fn expectations() {
    let directory = directory();
    let store = open(directory.path());
    let at = one(&store, create("pods/default/a", "1")).await.unwrap();
    for durability in [Durability::Durable, Durability::Lazy, Durability::Volatile] {
        let attempt = |path: &str, expect, data: Option<&str>| {
            let write = write(path, expect, data.unwrap_or_default(), durability);
            one(&store, Write { data: data.and(write.data), ..write })
        };
        let error = |result: Result<u64, Error>| result.unwrap_err().to_string();
        assert!(error(attempt("pods/default/a", Expect::Absent, Some("2")).await).contains("exists already"));
        let stale = attempt("pods/default/a", Expect::Revision(at + 7), Some("2")).await.unwrap_err();
        assert!(matches!(stale, Error::Conflict { actual, .. } if actual == at));
        assert!(error(attempt("pods/default/b", Expect::Present, None).await).contains("not found"));
        assert!(error(attempt("pods/default/b", Expect::Revision(1), Some("2")).await).contains("not found"));
        assert!(error(attempt("pods/default/b", Expect::Absent, None).await).contains("cannot expect absence"));
    }
    let bad_index = Write { index: vec!["a\nb".into()], ..create("pods/default/c", "") };
    assert!(matches!(one(&store, bad_index).await, Err(Error::Invalid { .. })));
    let big = Write { data: Some(vec![7; (3 << 20) + 1].into()), ..create("pods/default/c", "") };
    assert!(matches!(one(&store, big).await, Err(Error::Invalid { .. })));
    assert_eq!((store.revision(), text(&store, "pods/default/a").unwrap()), (at, "1".into()));
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_transaction_happens_whole_or_not_at_all() {
    let directory = directory();
    let store = open(directory.path());
    one(&store, create("pods/default/a", "1")).await.unwrap();
    let before = store.revision();
    let failing =
        vec![update("pods/default/a", "2"), lazily(create("pods/default/b", "2")), create("pods/default/a", "3")];
    assert!(matches!(store.commit(failing).await, Err(Error::Exists(_))));
    assert_eq!((names(&store, "pods"), store.revision()), (vec!["default/a".to_owned()], before));
    let writes = vec![
        delete("pods/default/a"),
        create("pods/default/a", "new"),
        lazily(create("pods/default/b", "b1")),
        update("pods/default/b", "b2"),
        volatile(create("pods/default/c", "c")),
        delete("pods/default/c"),
    ];
    let revisions = store.commit(writes).await.unwrap();
    assert_eq!(revisions, (before + 1..=before + 6).collect::<Vec<_>>());
    assert_eq!(text(&store, "pods/default/a").unwrap(), "new");
    store.close().await.unwrap();
    let store = open(directory.path());
    assert_eq!(names(&store, "pods"), ["default/a", "default/b"]);
    assert_eq!(text(&store, "pods/default/b").unwrap(), "b2");
    assert_eq!(store.get(&key("pods/default/b")).unwrap().unwrap().revision, before + 4);
    store.close().await.unwrap();
}

#[tokio::test]
async fn durable_writes_survive_a_power_cut_and_lazy_ones_are_flushed_in_time() {
    let directory = directory();
    let store = open(directory.path());
    one(&store, create("pods/default/durable", "1")).await.unwrap();
    one(&store, lazily(create("pods/default/lazy", "1"))).await.unwrap();
    one(&store, lazily(update("pods/default/durable", "2"))).await.unwrap();
    one(&store, volatile(create("leases/default/l", "1"))).await.unwrap();
    assert_eq!(text(&store, "pods/default/durable").unwrap(), "2");
    let (_copy, after) = after_power_cut(directory.path());
    assert_eq!((names(&after, "pods"), after.count("leases", None)), (vec!["default/durable".to_owned()], 0));
    assert_eq!(text(&after, "pods/default/durable").unwrap(), "1");
    assert!(after.revision() > store.revision(), "revisions of lost writes are not given out again");
    after.close().await.unwrap();

    one(&store, update("pods/default/lazy", "3")).await.unwrap();
    let (_copy, after) = after_power_cut(directory.path());
    assert_eq!(text(&after, "pods/default/lazy").unwrap(), "3");
    after.close().await.unwrap();

    store.close().await.unwrap();
    let store = open(directory.path());
    assert_eq!(text(&store, "pods/default/durable").unwrap(), "2");
    store.close().await.unwrap();
}

#[tokio::test]
async fn lazy_writes_are_flushed_by_one_timer() {
    let directory = directory();
    let store = Store::open(Options { lazy_flush: Duration::from_millis(50), ..options(directory.path()) }).unwrap();
    one(&store, lazily(create("pods/default/a", "1"))).await.unwrap();
    let log = directory.path().join("store.db-wal");
    let size = || std::fs::metadata(&log).unwrap().len();
    let before = size();
    let flushed = async {
        loop {
            let (_copy, after) = after_power_cut(directory.path());
            let found = text(&after, "pods/default/a");
            after.close().await.unwrap();
            if let Some(text) = found {
                break assert_eq!(text, "1");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), flushed).await.unwrap();
    assert!(size() > before);
    let quiet = size();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(size(), quiet, "an idle store writes nothing");
    one(&store, volatile(create("leases/default/a", "1"))).await.unwrap();
    assert_eq!(size(), quiet, "volatile objects are not written");
    store.close().await.unwrap();
}

#[tokio::test]
async fn an_object_may_change_its_durability() {
    let directory = directory();
    let store = open(directory.path());
    let steps =
        [Durability::Durable, Durability::Volatile, Durability::Lazy, Durability::Volatile, Durability::Durable];
    one(&store, create("things//a", "0")).await.unwrap();
    for (i, durability) in steps.into_iter().enumerate() {
        one(&store, write("things//a", Expect::Present, &i.to_string(), durability)).await.unwrap();
        assert_eq!(text(&store, "things//a").unwrap(), i.to_string());
        let (_copy, after) = after_power_cut(directory.path());
        let on_disk = text(&after, "things//a");
        assert_eq!(on_disk, (durability == Durability::Durable).then(|| i.to_string()), "{durability:?}");
        after.close().await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn concurrent_writers_lose_no_update() {
    let directory = directory();
    let store = open(directory.path());
    one(&store, create("pods/default/n", "0")).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 25 {
                    let old = store.get(&key("pods/default/n")).unwrap().unwrap();
                    let next = String::from_utf8_lossy(&old.data).parse::<u32>().unwrap() + 1;
                    let durability = if task % 2 == 0 { Durability::Durable } else { Durability::Lazy };
                    let expect = Expect::Revision(old.revision);
                    match one(&store, write("pods/default/n", expect, &next.to_string(), durability)).await {
                        Ok(revision) => {
                            assert!(revision > old.revision);
                            done += 1;
                        }
                        Err(Error::Conflict { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(text(&store, "pods/default/n").unwrap(), "200");
    store.close().await.unwrap();
    let store = open(directory.path());
    assert_eq!(text(&store, "pods/default/n").unwrap(), "200");
    store.close().await.unwrap();
}
