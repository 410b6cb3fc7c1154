//! One program, two backends, one output.
#![cfg(all(feature = "memory", feature = "redis"))]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use conformance_tests::fixtures::{RedisServer, output_within};

/// Longer than the example takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// An example of this crate, which `cargo test` has built beside this test.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("examples");
    path.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.is_file(),
        "{} has not been built: a run of one test leaves the examples out, so run cargo build -p \
         mas-transport --examples --all-features first",
        path.display()
    );
    path
}

fn run(name: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(example(name));
    // Nothing of the environment of the test, which may have settings of its own.
    command.env_clear().envs(variables.iter().copied());
    let output = output_within(&mut command, LIMIT).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variables:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_program_prints_the_same_on_memory_and_on_redis() {
    let server = match RedisServer::start(&[]) {
        Ok(server) => server,
        Err(why) if std::env::var_os("REQUIRE_REDIS").is_none_or(|v| v != "1") => {
            println!("SKIPPED backend=redis reason={why}");
            return;
        }
        Err(why) => panic!("{why}"),
    };
    let address = server.address();
    let in_memory = run("quick_start", &[("PROTOCOL_TYPE", "inmemory")]);
    let redis = [("PROTOCOL_TYPE", "redis"), ("REDIS_ADDR", address.as_str())];
    let on_redis = run("quick_start", &redis);
    assert!(in_memory.contains("charged order 1"), "{in_memory}");
    assert_eq!(in_memory, on_redis);
    // By URL, in a namespace of its own.
    let url = format!("redis://{address}/0?namespace=again");
    assert_eq!(run("quick_start", &[("TRANSPORT_URL", &url)]), in_memory);
}
