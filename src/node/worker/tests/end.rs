//! What ends a pod, and how.

use super::*;

#[tokio::test(start_paused = true)]
async fn policies_decide_the_end() {
    for (policy, code, phase, runs) in [
        ("Never", 0, "Succeeded", 1),
        ("Never", 5, "Failed", 1),
        ("OnFailure", 0, "Succeeded", 1),
        ("OnFailure", 1, "Running", 2),
        ("Always", 0, "Running", 2),
    ] {
        let mut spec = app(json!({}));
        spec["restartPolicy"] = json!(policy);
        let mut bench = Bench::start(spec, &[("a", Script::Ends(2, code))]).await;
        bench.after(5).await;
        assert_eq!(bench.phase(), phase, "{policy} {code}");
        let calls = bench.fake.calls();
        assert_eq!(calls.iter().filter(|c| c.contains("run")).count(), runs, "{policy} {code}");
        let over = phase != "Running";
        assert_eq!(calls.iter().any(|c| c.contains("destroy")), over, "{policy} {code}");
        if over {
            // A finished pod stays finished over restarts of the node.
            let mut bench = bench.begin(Left::Nothing).await;
            bench.after(5).await;
            assert_eq!(bench.phase(), phase);
            assert!(!bench.fake.calls().iter().any(|c| c.contains("run")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_with_a_sidecar_ends() {
    let scripts =
        [("i1", Script::Ends(0, 0)), ("i2", Script::Ends(0, 0)), ("a", Script::Ends(3, 0)), ("b", Script::Ends(5, 0))];
    let mut bench = Bench::start(staged("OnFailure"), &scripts).await;
    bench.after(8).await;
    assert_eq!(bench.phase(), "Succeeded");
    assert!(bench.fake.calls().iter().any(|c| c.contains("signal side-0 15")));
}

#[tokio::test(start_paused = true)]
async fn deletion_asks_waits_and_kills() {
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["hook"]}}}});
    let mut bench = Bench::start(app(hook), &[("a", Script::Stubborn)]).await;
    bench.fake.calls();
    bench.delete(10);
    bench.after(1).await;
    assert_eq!((bench.state("a").as_str(), bench.gone), ("running 0 ready", false));
    bench.after(12).await;
    assert_eq!(bench.fake.calls(), ["0 hook a-0", "3 signal a-0 15", "10 signal a-0 9", "10 destroy", "10 detach"]);
    assert!(bench.gone && bench.saw("Killing: Stopping container a"));
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Failed", "Error 0"));
    bench.order(|_| {}, true);
    bench.after(1).await;
    assert!(bench.worker.take().unwrap().is_finished());
    assert!(!bench.dir.path().join("pods/u-1").exists());
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_hastens() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::Stubborn)]).await;
    // Longer than any clock counts.
    bench.delete(i64::MAX.unsigned_abs());
    bench.after(5).await;
    bench.fake.calls();
    bench.delete(0);
    bench.after(3).await;
    assert_eq!(bench.fake.calls()[..2], ["5 signal a-0 15", "7 signal a-0 9"]);
    assert!(bench.gone);
}

#[tokio::test(start_paused = true)]
async fn a_removed_pod_goes_at_once() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    bench.order(|_| {}, true);
    bench.after(1).await;
    assert!(bench.worker.take().unwrap().is_finished() && !bench.gone);
    assert!(!bench.dir.path().join("pods/u-1").exists());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let mut spec = app(json!({}));
    spec["activeDeadlineSeconds"] = json!(5);
    let mut bench = Bench::start(spec, &[]).await;
    bench.after(4).await;
    assert_eq!(bench.phase(), "Running");
    bench.after(1).await;
    assert_eq!((bench.phase(), bench.status["reason"].as_str()), ("Failed", Some("DeadlineExceeded")));
}
