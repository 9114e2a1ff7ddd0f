//! What probes decide.

use super::*;

#[tokio::test(start_paused = true)]
async fn probes_decide_about_restart_and_readiness() {
    let probe = json!({"exec": {"command": ["look"]}, "periodSeconds": 5, "failureThreshold": 2});
    let mut bench = Bench::start(app(json!({"livenessProbe": probe, "readinessProbe": probe})), &[]).await;
    bench.after(1).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    *bench.fake.exec_code.lock().unwrap() = 1;
    bench.after(5).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    assert!(bench.saw("Unhealthy: Liveness probe failed: said"));
    bench.after(5).await;
    assert!(bench.saw("Killing: Container a failed liveness probe, will be restarted"));
    assert!(bench.state("a").starts_with("running 1"), "{}", bench.state("a"));
    assert!(!bench.condition("Ready"));
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_holds_the_others_back() {
    let container = json!({
        "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 100},
        "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1},
    });
    let bench = Bench::prepare(app(container), &[], &[]);
    *bench.fake.exec_code.lock().unwrap() = 1;
    let mut bench = bench.begin(Left::Nothing).await;
    bench.after(20).await;
    assert_eq!(bench.state("a"), "running 0");
    *bench.fake.exec_code.lock().unwrap() = 0;
    bench.after(2).await;
    assert_eq!(bench.state("a"), "running 0 ready");
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_keeps_the_verdicts_of_probes() {
    let probe = json!({"readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1}});
    for (code, state) in [(0, "running 0 ready"), (1, "running 0")] {
        let bench = Bench::prepare(app(probe.clone()), &[], &[]);
        let engine = FakeEngine(bench.fake.clone());
        let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
        *bench.fake.exec_code.lock().unwrap() = code;
        let mut bench = bench.begin(Left::Live(sandbox.clone())).await;
        bench.after(3).await;
        assert_eq!(bench.state("a"), state);
        // The first look of the new daemon lies in the future.
        bench.order(|m| m.pod["spec"]["containers"][0]["readinessProbe"]["initialDelaySeconds"] = json!(60), false);
        let bench = bench.begin(Left::Live(sandbox)).await;
        assert_eq!(bench.state("a"), state);
    }
}
