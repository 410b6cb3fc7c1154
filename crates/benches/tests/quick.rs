//! The benches compile and run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where they write.
fn out(backend: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("benchmarks")
        .join(backend)
}

/// A file that they have written.
fn written(backend: &str, file: &str) -> String {
    std::fs::read_to_string(out(backend).join(file)).unwrap()
}

/// What the benches print; `None`, when there is no broker and none is required.
fn quick(backend: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args(["--quick", "--only", backend, "--out"])
        .arg(out(backend))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let variable = format!("REQUIRE_{}", backend.to_uppercase());
    let required = std::env::var(variable).is_ok_and(|value| value == "1");
    if errors.contains(&format!("no {backend}-server in")) && !required {
        println!("SKIPPED backend={backend} reason={errors}");
        return None;
    }
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn memory() {
    let out = quick("memory").unwrap();
    assert!(out.contains("backend: publish, fetch, ack by 256"), "{out}");
    let page = written("memory", "README.md");
    assert!(page.contains("![Messages a second](memory.svg)"), "{page}");
    assert!(
        !page.contains("ratio.svg"),
        "there is no raw client: {page}"
    );
    assert!(page.contains("The figures mean nothing"), "{page}");
    assert!(written("memory", "memory.svg").contains("<svg"));
}

fn on_a_broker(backend: &str) {
    let Some(out) = quick(backend) else {
        return;
    };
    for workload in ["64 awaiting", "publish_batch(100)", "window", "confirmed"] {
        assert!(out.contains(workload), "{out}");
    }
    let last = out.lines().last().unwrap();
    assert!(last.starts_with('{') && last.ends_with('}'), "{out}");
    assert_eq!(written(backend, "figures.json").trim_end(), last);
    let page = written(backend, "README.md");
    assert!(page.contains("| server | "), "{page}");
    for file in ["ratio.svg", &format!("{backend}.svg")] {
        assert!(page.contains(file), "{page}");
        assert!(written(backend, file).contains("raw client"));
    }
}

#[test]
fn redis() {
    on_a_broker("redis");
}

#[test]
fn nats() {
    on_a_broker("nats");
}

#[cfg(feature = "kafka")]
#[test]
fn kafka() {
    on_a_broker("kafka");
}

#[cfg(not(feature = "kafka"))]
#[test]
fn a_build_without_kafka_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args(["--quick", "--only", "kafka"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("--features kafka"),
        "{errors}"
    );
}
