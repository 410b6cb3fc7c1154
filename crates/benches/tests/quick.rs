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
    let page = written("memory", "README.md");
    assert!(page.contains("![Messages a second](memory.svg)"), "{page}");
    assert!(
        !page.contains("ratio.svg"),
        "there is no raw client: {page}"
    );
    assert!(page.contains("The figures mean nothing"), "{page}");
    assert!(written("memory", "memory.svg").contains("<svg"));
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
    assert_eq!(written("redis", "figures.json").trim_end(), last);
    let page = written("redis", "README.md");
    assert!(page.contains("| server | "), "{page}");
    for file in ["ratio.svg", "redis.svg"] {
        assert!(page.contains(file), "{page}");
        assert!(written("redis", file).contains("raw client"));
    }
}
