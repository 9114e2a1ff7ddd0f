//! What comes up, and what does not.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_runs() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    assert_eq!(bench.fake.calls(), ["0 create", "0 run a-0"]);
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Running", "running 0 ready"));
    assert!(bench.condition("Ready"));
    assert_eq!(bench.status["podIP"], "10.42.0.7");
    let expected = [
        "Pulled: Container image \"img:1\" already present on machine",
        "Created: Created container: a",
        "Started: Started container a",
    ];
    assert_eq!(bench.events, expected);
    bench.after(3600).await;
    assert!(bench.fake.calls().is_empty(), "idle is idle");
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::Ends(1, 3))]).await;
    bench.after(5).await;
    assert_eq!(bench.state("a"), "CrashLoopBackOff 1");
    assert!(bench.saw("BackOff: Back-off restarting failed container a in pod pod_ns(u-1)"));
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(3), json!("Error")));
    bench.after(100).await;
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("run")).collect();
    // At once, then 10, 20 and 40 s after each end.
    assert_eq!(runs, ["0 run a-0", "1 run a-1", "12 run a-2", "33 run a-3", "74 run a-4"]);
}

#[tokio::test(start_paused = true)]
async fn init_containers_come_first_and_sidecars_go_last() {
    let scripts = [("i1", Script::Ends(2, 0)), ("i2", Script::Ends(3, 0))];
    let mut bench = Bench::start(staged("Always"), &scripts).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "PodInitializing 0"));
    bench.after(6).await;
    assert_eq!(bench.fake.calls(), ["0 create", "0 run i1-0", "2 run side-0", "2 run i2-0", "5 run a-0", "5 run b-0"]);
    assert_eq!((bench.phase(), bench.state("i1").as_str()), ("Running", "Completed 0 ready"));
    bench.delete(30);
    bench.after(1).await;
    let calls: Vec<_> = bench.fake.calls().into_iter().map(|c| c.split_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(calls, ["signal a-0 15", "signal b-0 15", "signal side-0 15", "destroy", "detach"]);
    assert!(bench.gone);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_the_pod_or_comes_again() {
    let mut bench = Bench::start(staged("Never"), &[("i1", Script::Ends(1, 4))]).await;
    bench.after(3).await;
    assert_eq!(bench.phase(), "Failed");
    let mut bench = Bench::start(staged("Always"), &[("i1", Script::Ends(1, 4))]).await;
    bench.after(15).await;
    assert_eq!((bench.phase(), bench.state("i1").as_str()), ("Pending", "CrashLoopBackOff 2"));
    assert!(!bench.fake.calls().iter().any(|c| c.contains("run a")));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_missing_is_waited_for() {
    let mut bench = Bench::start(app(json!({"image": "later:1"})), &[]).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "ErrImagePull 0"));
    assert!(bench.status.to_string().contains("umiak image import"));
    bench.after(11).await;
    assert_eq!(bench.state("a"), "ImagePullBackOff 0");
    bench.fake.images.lock().unwrap().insert("docker.io/library/later:1".into());
    bench.images.send_modify(|n| *n += 1);
    bench.after(0).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    let never = Bench::start(app(json!({"image": "x:1", "imagePullPolicy": "Never"})), &[]).await;
    assert_eq!(never.state("a"), "ErrImageNeverPull 0");
    let bad = Bench::start(app(json!({"image": "Bad Name"})), &[]).await;
    assert_eq!(bad.state("a"), "InvalidImageName 0");
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_waited_for() {
    let reference = json!([{"configMapRef": {"name": "late"}}]);
    let mut bench = Bench::start(app(json!({"envFrom": reference})), &[]).await;
    assert_eq!(bench.state("a"), "CreateContainerConfigError 0");
    assert!(bench.saw("Failed: Error: configmap \"late\" not found"));
    let late = desired_message(json!({}), &[("configmaps/late", json!({"data": {"k": "v"}}))]);
    bench.order(|message| message.objects = late.objects, false);
    bench.after(0).await;
    assert_eq!(bench.state("a"), "running 0 ready");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::NoCommand)]).await;
    bench.after(0).await;
    assert_eq!(bench.state("a"), "RunContainerError 0");
    bench.after(5).await;
    assert_eq!(bench.state("a"), "CrashLoopBackOff 1");
    assert!(bench.saw("BackOff: Back-off restarting failed container a in pod pod_ns(u-1)"));
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(127), json!("StartError")));
    bench.after(30).await;
    assert_eq!(bench.phase(), "Running");
    let mut bench = Bench::start(app(json!({})), &[("a", Script::NotMade)]).await;
    bench.after(11).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "CreateContainerError 0"));
    let message = &bench.status["containerStatuses"][0]["state"]["waiting"]["message"];
    assert!(message.as_str().is_some_and(|text| text.contains("memory")), "{message}");
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("run")).collect();
    assert_eq!(runs, ["0 run a-0", "10 run a-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_not_supported_is_named() {
    let mut spec = app(json!({}));
    spec["runtimeClassName"] = json!("gvisor");
    let bench = Bench::start(spec, &[]).await;
    assert_eq!(bench.state("a"), "CreateContainerConfigError 0");
    assert!(bench.status.to_string().contains("spec.runtimeClassName is not supported"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_image_restarts_its_container() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    bench.fake.images.lock().unwrap().insert("docker.io/library/img:2".into());
    bench.order(|message| message.pod["spec"]["containers"][0]["image"] = json!("img:2"), false);
    bench.after(1).await;
    assert!(bench.saw("Killing: Container a definition changed, will be restarted"));
    assert_eq!(bench.state("a"), "running 1 ready");
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_sysctl_is_refused() {
    for (name, phase, reason) in [
        ("kernel.msgmax", "Failed", Some("SysctlForbidden")),
        ("net.ipv4.ip_forward", "Failed", Some("SysctlForbidden")),
        ("kernel.shm_rmid_forced", "Running", None),
        ("net/ipv4/tcp_syncookies", "Running", None),
    ] {
        let mut spec = app(json!({}));
        spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
        let mut bench = Bench::start(spec, &[]).await;
        bench.after(1).await;
        assert_eq!((bench.phase(), bench.status["reason"].as_str()), (phase, reason), "{name}");
        assert_eq!(bench.status["containerStatuses"].is_null(), reason.is_some(), "{name}");
    }
}
