//! What is found after the daemon, the board or a shim went.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_new_daemon_takes_over_what_runs() {
    let bench = Bench::prepare(app(json!({})), &[("a", Script::Ends(1, 1))], &[]);
    let engine = FakeEngine(bench.fake.clone());
    let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
    // The run is known to the sandbox alone: the daemon died before its record reached the disk.
    let running = ContainerState::Running { pid: 1, started_at: 5_000_000_000 };
    let id = ContainerId { name: "a".into(), attempt: 4 };
    sandbox.state.send_modify(|s| drop(s.containers.insert(id, running)));
    bench.fake.calls();
    let mut bench = bench.begin(Left::Live(sandbox)).await;
    assert!(bench.fake.calls().is_empty());
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Running", "running 4 ready"));
    assert_eq!(bench.status["containerStatuses"][0]["imageID"], "sha256:1");
    bench.order(|_| {}, false);
    bench.after(5).await;
    assert_eq!(bench.state("a"), "running 4 ready");
}

#[tokio::test(start_paused = true)]
async fn a_reboot_starts_pods_again_and_counts() {
    let bench = Bench::start(app(json!({})), &[]).await;
    bench.fake.calls();
    let mut bench = bench.begin(Left::Dead(Vec::new())).await;
    assert_eq!(bench.state("a"), "running 1 ready");
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(255), json!("Unknown")));
    bench.after(1).await;
    assert!(bench.fake.calls().contains(&"0 run a-1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_shim_is_replaced() {
    let bench = Bench::prepare(app(json!({})), &[], &[]);
    let engine = FakeEngine(bench.fake.clone());
    let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
    let mut bench = bench.begin(Left::Live(sandbox.clone())).await;
    bench.fake.calls();
    sandbox.die();
    bench.after(1).await;
    assert_eq!(bench.fake.calls(), ["0 cleanup", "0 create", "0 run a-1"]);
    assert_eq!(*bench.fake.attached.lock().unwrap(), 2, "taken over, then made anew");
    assert_eq!(bench.state("a"), "running 1 ready");
}

#[tokio::test(start_paused = true)]
async fn shims_that_are_lost_again_and_again_back_off() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::KillsShim(1))]).await;
    bench.after(20).await;
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("create")).collect();
    assert_eq!(runs, ["0 create", "1 create", "3 create", "6 create", "11 create", "20 create"]);
}
