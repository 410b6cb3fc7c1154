//! The commands of the guides, run as they are written against real servers, and what they print.
//!
//! A page is one session of a shell: each `$ ` line of its `console` blocks is run in order, with the
//! `> ` lines that go on with it, and the lines below it are what it prints. `…` stands for anything,
//! on a line of its own for any lines. A page gets a server of each broker that its commands name.
#![cfg(all(unix, feature = "memory", feature = "nats", feature = "redis"))]

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use conformance_tests::Failure;
use conformance_tests::fixtures::{NatsOptions, NatsServer, RedisServer, output_within};

/// Longer than the commands of one page take together, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A server's address, and what stops it when it is dropped.
type Started = (String, Box<dyn Any>);

/// A broker of the guides.
struct Broker {
    /// What the commands call it, and its variables.
    name: &'static str,
    /// The address in the guides, for which the one of the test's server is put.
    address: &'static str,
    /// The port of servers that a page starts itself, for which a free one is put.
    own_port: &'static str,
    /// The names that people have its programs by; the first is the server.
    programs: &'static [&'static str],
    /// The server's program.
    program: fn() -> Result<PathBuf, Failure>,
    start: fn() -> Result<Started, Failure>,
}

const BROKERS: &[Broker] = &[
    Broker {
        name: "redis",
        address: "127.0.0.1:6379",
        own_port: "6380",
        programs: &["redis-server", "redis-cli"],
        program: RedisServer::program,
        start: || {
            let server = RedisServer::start(&[("appendonly", "no")])?;
            Ok((server.address(), Box::new(server)))
        },
    },
    Broker {
        name: "nats",
        address: "127.0.0.1:4222",
        own_port: "4223",
        programs: &["nats-server"],
        program: NatsServer::program,
        start: || {
            let server = NatsServer::start(&NatsOptions::new())?;
            Ok((server.address(), Box::new(server)))
        },
    },
];

/// What is not run here, by what it begins with, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("./scripts/test", "it is the script that runs this test"),
    (
        "cargo install ",
        "it builds for minutes what runs here, and installs it for the user",
    ),
    (
        "cargo run -p benches ",
        "it measures for minutes; tests/quick.rs of benches runs its workloads",
    ),
    (
        "docker compose ",
        "it needs a Docker daemon and a registry; scripts/test checks the file where there is Compose",
    ),
];

/// What stands in the guides for `mas` where it is not installed yet, and is the same.
const FROM_SOURCE: &str = "cargo run --release -p mas-cli -- ";

/// What runs an example: tests/examples.rs of mas-transport does, against the file that is compared
/// here.
const EXAMPLE: &str = "cargo run -p mas-transport ";

/// A command, and the lines that stand below it.
#[derive(Debug)]
struct Step {
    command: String,
    written: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The README and every page below docs.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.extension().is_some_and(|e| e == "md") => pages.push(path),
                false => {}
            }
        }
    }
    pages.sort();
    pages
}

/// The commands of a page.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let before = steps.len();
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step {
                    command: command.to_owned(),
                    written: Vec::new(),
                });
                continue;
            }
            assert!(
                steps.len() > before,
                "a block begins with a command: {line}"
            );
            let step = steps.last_mut().unwrap();
            match line.strip_prefix("> ") {
                Some(more) if step.written.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                _ => step.written.push(line.to_owned()),
            }
        }
    }
    steps
}

/// Whether the command is left to others, which is noted.
fn is_exempt(step: &Step, used: &mut BTreeSet<&str>) -> bool {
    let found = EXEMPT
        .iter()
        .find(|(start, _)| step.command.starts_with(start));
    used.extend(found.map(|(start, _)| *start));
    found.is_some()
}

/// Whether the command runs an example; what stands below it is what the example's own test compares.
fn is_example(step: &Step) -> bool {
    let Some((_, name)) = step.command.split_once(" --example ") else {
        return false;
    };
    assert!(step.command.contains(EXAMPLE), "{}", step.command);
    let expected = format!("crates/mas-transport/examples/expected/{name}.txt");
    let expected = fs::read_to_string(root().join(expected)).unwrap();
    assert!(
        are_like(&expected.lines().collect::<Vec<_>>(), &step.written),
        "{name} prints\n{expected}"
    );
    true
}

/// Whether the commands name this broker.
fn speak_of(steps: &[Step], broker: &Broker) -> bool {
    let names = |step: &Step| step.command.to_lowercase().contains(broker.name);
    steps.iter().any(names)
}

/// Whether there is a server's program; where it is required, there has to be.
fn is_there(broker: &Broker) -> bool {
    let Err(why) = (broker.program)() else {
        return true;
    };
    let variable = format!("REQUIRE_{}", broker.name.to_uppercase());
    let required = std::env::var(&variable).is_ok_and(|value| value == "1");
    assert!(!required, "{variable}=1 and there is no server: {why}");
    println!("SKIPPED the guides that use {}: {why}", broker.name);
    false
}

/// Runs the commands in one shell, with `put` in the place of what stands in the guides; what each
/// prints, errors included.
fn session(steps: &[Step], put: &[(&str, String)], dir: &Path, programs: &[&Path]) -> Vec<String> {
    const MARK: &str = "=== the next command ===";
    let mut script = String::from("exec 2>&1\n");
    for step in steps {
        let mut command = step.command.replace(FROM_SOURCE, "mas ");
        for (written, real) in put {
            command = command.replace(written, real);
        }
        script.push_str(&format!("echo '{MARK}'\n{command}\n"));
    }
    // Servers that the page stops still write into the directory, which is removed next.
    script.push_str("exec > /dev/null 2>&1\nwait\n");
    let path = std::env::var_os("PATH").unwrap();
    let path = programs
        .iter()
        .map(|p| (*p).to_owned())
        .chain(std::env::split_paths(&path));
    let mut bash = Command::new("bash");
    bash.args(["-c", &script])
        .env_clear()
        .env("PATH", std::env::join_paths(path).unwrap())
        .current_dir(dir)
        .stdin(Stdio::null());
    let output = output_within(&mut bash, LIMIT).unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    for (written, real) in put {
        text = text.replace(real, written);
    }
    let mark = format!("{MARK}\n");
    text.split(&mark).skip(1).map(str::to_owned).collect()
}

/// Whether a line is as written, where `…` stands for anything.
fn is_like(line: &str, written: &str) -> bool {
    let mut parts = written.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn are_like(lines: &[&str], written: &[String]) -> bool {
    match written.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "…" => {
            (0..=lines.len()).any(|skip| are_like(&lines[skip..], rest))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, lines)| is_like(line, first) && are_like(lines, rest)),
    }
}

/// Puts a broker's programs into the directory, under the names that people have them by.
fn provide(broker: &Broker, dir: &Path) {
    let server = (broker.program)().unwrap();
    for (at, name) in broker.programs.iter().enumerate() {
        let program = match at {
            0 => server.clone(),
            _ => server.with_file_name(name),
        };
        if let Ok(program) = program.canonicalize() {
            // No link: a program may look for its parts beside itself.
            let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display());
            let path = dir.join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

#[test]
fn the_commands_of_the_guides_print_what_they_say() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let scratch = scratch.join(format!("guides-{}", std::process::id()));
    let programs = scratch.join("programs");
    fs::create_dir_all(&programs).unwrap();
    let there: Vec<&Broker> = BROKERS.iter().filter(|broker| is_there(broker)).collect();
    for broker in &there {
        provide(broker, &programs);
    }
    let mas = Path::new(env!("CARGO_BIN_EXE_mas")).parent().unwrap();

    let mut run = 0;
    let mut wrong = String::new();
    let mut exempt = BTreeSet::new();
    for (number, page) in pages().iter().enumerate() {
        let name = page.strip_prefix(root()).unwrap().display();
        let text = fs::read_to_string(page).unwrap();
        for other in ["```sh", "```bash", "```shell"] {
            assert!(
                !text.contains(other),
                "{name}: commands stand in console blocks"
            );
        }
        let mut steps = steps(&text);
        steps.retain(|step| !is_exempt(step, &mut exempt) && !is_example(step));
        let lacks = |broker: &Broker| there.iter().all(|t| t.name != broker.name);
        let missing = BROKERS
            .iter()
            .any(|broker| speak_of(&steps, broker) && lacks(broker));
        if steps.is_empty() || missing {
            continue;
        }
        let mut servers = Vec::new();
        let mut put = Vec::new();
        for broker in there.iter().filter(|broker| speak_of(&steps, broker)) {
            let (address, server) = (broker.start)().unwrap();
            // Held until all are chosen, so that none is chosen twice.
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port().to_string();
            put.extend([(broker.address, address), (broker.own_port, port)]);
            servers.push((server, free));
        }
        let servers: Vec<_> = servers.into_iter().map(|(server, _)| server).collect();
        let dir = scratch.join(number.to_string());
        fs::create_dir_all(&dir).unwrap();
        let printed = session(&steps, &put, &dir, &[mas, &programs]);
        drop(servers);
        assert_eq!(printed.len(), steps.len(), "{name}: {printed:?}");
        for (Step { command, written }, printed) in steps.iter().zip(&printed) {
            let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
            if !are_like(&lines, written) {
                wrong.push_str(&format!("{name}:\n$ {command}\n{printed}\n"));
            }
            run += 1;
        }
    }
    fs::remove_dir_all(&scratch).unwrap();
    assert!(
        wrong.is_empty(),
        "these commands print something else:\n{wrong}"
    );
    let all = there.len() == BROKERS.len();
    assert!(run >= 50 || !all, "only {run} commands were found");
    for (start, why) in EXEMPT {
        assert!(
            exempt.contains(start),
            "nothing begins with {start:?} ({why})"
        );
    }
}

#[test]
fn dots_stand_for_anything() {
    for (line, written, like) in [
        ("abc", "abc", true),
        ("abc", "ab", false),
        ("abc", "a…", true),
        ("abc", "…c", true),
        ("a-b-c", "a…b…c", true),
        ("a-b-c", "a…x…c", false),
        ("abc", "…d", false),
    ] {
        assert_eq!(is_like(line, written), like, "{line} {written}");
    }
    let written = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    assert!(are_like(&["a", "b", "c"], &written(&["a", "…", "c"])));
    assert!(are_like(&["a", "c"], &written(&["a", "…", "c"])));
    assert!(!are_like(&["a", "b"], &written(&["a", "…", "c"])));
    assert!(!are_like(&["a"], &[]));
}

#[test]
fn a_command_may_take_several_lines() {
    let steps = steps("```console\n$ cat <<END\n> a\n> b\nEND?\n> c\n$ d\n```\n");
    assert_eq!(steps[0].command, "cat <<END\na\nb");
    assert_eq!(steps[0].written, ["END?", "> c"]);
    assert_eq!(steps[1].command, "d");
}
