//! The benches compile and run.

use std::process::Command;

/// What the benches print; `None`, when there is no broker and none is required.
fn quick(backend: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args(["--quick", "--only", backend])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let required = std::env::var("REQUIRE_REDIS").is_ok_and(|value| value == "1");
    if errors.contains("no redis-server in") && !required {
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
}

#[test]
fn redis() {
    let Some(out) = quick("redis") else {
        return;
    };
    for workload in ["64 awaiting", "publish_batch(100)", "window", "confirmed"] {
        assert!(out.contains(workload), "{out}");
    }
    let last = out.lines().last().unwrap();
    assert!(last.starts_with('{') && last.ends_with('}'), "{out}");
}
