//! Figures for the promises.

use std::fs;

use umiak::runtime::*;

use crate::fixture::{Fixture, captured, exit_of};

/// Prints figures: `cargo test --release --test runtime figures -- --ignored --nocapture`. crun must be installed.
#[tokio::test]
#[ignore = "takes its time and depends on the load"]
async fn figures() {
    const RUNS: u32 = 50;
    let fixture = Fixture::new("figures");
    let begin = std::time::Instant::now();
    let sandbox = fixture.sandbox("uid-1").await;
    println!("sandbox: {:?}", begin.elapsed());
    let (mut started, mut ended) = (Vec::new(), Vec::new());
    for attempt in 0..RUNS {
        let config = ContainerConfig { attempt, ..fixture.container("main", &["true"]) };
        let begin = std::time::Instant::now();
        sandbox.create_container(&config).await.unwrap();
        sandbox.start(&config.id()).await.unwrap();
        started.push(begin.elapsed());
        exit_of(&sandbox, &config.id()).await;
        sandbox.remove_container(&config.id()).await.unwrap();
        ended.push(begin.elapsed());
    }
    let config = fixture.container("stay", &["sleep", "1000"]);
    sandbox.create_container(&config).await.unwrap();
    sandbox.start(&config.id()).await.unwrap();
    let mut execs = Vec::new();
    for _ in 0..RUNS {
        let begin = std::time::Instant::now();
        assert_eq!(captured(&sandbox, &config.id(), "true").await.code, Some(0));
        execs.push(begin.elapsed());
    }
    let mut others = Vec::new();
    let bundle = fixture.dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    assert!(std::process::Command::new("crun").arg("spec").current_dir(&bundle).status().unwrap().success());
    let text = fs::read_to_string(bundle.join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    spec["root"]["path"] = fixture.layer().to_str().unwrap().into();
    spec["process"]["args"] = serde_json::json!(["true"]);
    spec["process"]["terminal"] = false.into();
    spec["process"]["rlimits"] = serde_json::json!([]);
    fs::create_dir(fixture.layer().join("proc")).unwrap();
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    for _ in 0..RUNS {
        let name = format!("umiak-figures-{}", std::process::id());
        let begin = std::time::Instant::now();
        let run = std::process::Command::new("crun").args(["run", &name]).current_dir(&bundle).output().unwrap();
        if !run.status.success() {
            println!("crun: {run:?}");
            break;
        }
        others.push(begin.elapsed());
    }
    for (what, mut times) in
        [("create + start", started), ("create … remove", ended), ("exec", execs), ("crun run", others)]
    {
        times.sort();
        println!("{what}: median {:?}", times.get(times.len() / 2));
    }
    let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", sandbox.pid())).unwrap();
    memory.lines().filter(|l| l.starts_with("P")).for_each(|l| println!("shim: {l}"));
    let mut part = String::new();
    for line in fs::read_to_string(format!("/proc/{}/smaps", sandbox.pid())).unwrap().lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            ["Private_Dirty:", kilobytes, _] if kilobytes != "0" => println!("shim: {kilobytes} kB dirty in {part}"),
            [range, access, ..] if range.contains('-') => part = format!("{access} {}", fields.get(5).unwrap_or(&"")),
            _ => {}
        }
    }
    println!("pod with one container: {:?}", sandbox.pod_stats().unwrap());
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}
