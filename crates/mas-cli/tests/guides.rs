//! The commands of the guides, run as they are written against a real Redis, and what they print.
//!
//! A page is one session of a shell: each `$ ` line of its `console` blocks is run in order, and the
//! lines below it are what it prints. `…` stands for anything, on a line of its own for any lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use conformance_tests::fixtures::RedisServer;

/// The address in the guides, for which the one of the test's server is put.
const ADDRESS: &str = "127.0.0.1:6379";

/// What is not run here, and who does run it.
const ELSEWHERE: &[(&str, &str)] = &[
    ("./scripts/test", "the script that runs this test"),
    ("cargo run --release -p mas-cli -- load", "tests/load.rs"),
    (
        "PROTOCOL_TYPE=redis REDIS_ADDR=127.0.0.1:6379 cargo run -p mas-transport",
        "tests/examples.rs of mas-transport",
    ),
    ("cargo install", "it builds what runs here"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The commands of a page, each with the lines that stand below it.
fn commands(page: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let before = commands.len();
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => commands.push((command.to_owned(), Vec::new())),
                None => {
                    assert!(
                        commands.len() > before,
                        "a block begins with a command: {line}"
                    );
                    commands.last_mut().unwrap().1.push(line.to_owned());
                }
            }
        }
    }
    let here = |command: &str| {
        !ELSEWHERE
            .iter()
            .any(|(start, _)| command.starts_with(start))
    };
    commands.retain(|(command, _)| here(command));
    commands
}

/// Runs the commands in one shell; what each prints, errors included.
fn session(commands: &[(String, Vec<String>)], address: &str, dir: &Path) -> Vec<String> {
    const MARK: &str = "=== the next command ===";
    let mut script = String::from("exec 2>&1\n");
    for (command, _) in commands {
        let command = command.replace(ADDRESS, address);
        script.push_str(&format!("echo '{MARK}'\n{command}\n"));
    }
    let mas = Path::new(env!("CARGO_BIN_EXE_mas")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .args(["-c", &script])
        .env_clear()
        .env("PATH", format!("{}:{path}", mas.display()))
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.replace(address, ADDRESS);
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

#[test]
fn the_commands_of_the_guides_print_what_they_say() {
    // Where Redis is required, the start below fails with the reason.
    let required = std::env::var("REQUIRE_REDIS").is_ok_and(|v| v == "1");
    if let (Err(why), false) = (RedisServer::program(), required) {
        eprintln!("SKIPPED the commands of the guides: {why}");
        return;
    }
    let mut pages = vec![root().join("README.md"), root().join("docs/README.md")];
    for entry in fs::read_dir(root().join("docs/guide")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    pages.sort();
    let mut run = 0;
    let mut wrong = String::new();
    for page in &pages {
        let commands = commands(&fs::read_to_string(page).unwrap());
        if commands.is_empty() {
            continue;
        }
        let server = RedisServer::start(&[("appendonly", "no")]).unwrap();
        let name = format!(
            "guides-{}-{}",
            std::process::id(),
            page.file_stem().unwrap().display()
        );
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        let printed = session(&commands, &server.address(), &dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            printed.len(),
            commands.len(),
            "{}: {printed:?}",
            page.display()
        );
        for ((command, written), printed) in commands.iter().zip(&printed) {
            let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
            if !are_like(&lines, written) {
                let page = page.display();
                wrong.push_str(&format!("{page}:\n$ {command}\n{printed}\n"));
            }
            run += 1;
        }
    }
    assert!(
        wrong.is_empty(),
        "these commands print something else:\n{wrong}"
    );
    assert!(run >= 10, "only {run} commands were found");
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
