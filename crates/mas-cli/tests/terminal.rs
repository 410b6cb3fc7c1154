//! Colours and progress: on a terminal, and only there.
#![cfg(all(unix, feature = "memory"))]

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use common::{LIMIT, finish, json, mas, text};
use conformance_tests::fixtures::finish_within;
use nix::pty::openpty;

/// What every sequence that a terminal obeys begins with.
const ESCAPE: char = '\u{1b}';
/// Back to the beginning of the line, which is cleared.
const AGAIN: &str = "\r\u{1b}[2K";

/// The command, with a terminal's idea of what a terminal can show.
fn mas_of_a_person(arguments: &[&str]) -> Command {
    let mut command = mas(arguments);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm-256color");
    command
}

/// Where the terminal is.
#[derive(Clone, Copy, Debug)]
enum On {
    Both,
    StderrAlone,
}

/// Runs a command on a terminal; its output elsewhere, and what the terminal got.
fn on_terminal(mut command: Command, on: On) -> (Output, String) {
    let terminal = openpty(None, None).unwrap();
    let slave = |end: &OwnedFd| Stdio::from(end.try_clone().unwrap());
    command.stderr(slave(&terminal.slave));
    if let On::Both = on {
        command.stdout(slave(&terminal.slave));
    }
    let child = command.spawn().unwrap();
    // Ours are closed, so that what is read ends with the child.
    drop((command, terminal.slave));
    let mut master = File::from(terminal.master);
    let reading = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // The end is an error on Linux, and none elsewhere.
        let _ = master.read_to_end(&mut shown);
        String::from_utf8(shown).unwrap()
    });
    let output = finish_within(child, LIMIT).unwrap();
    (output, reading.join().unwrap())
}

#[test]
fn the_doctor_colours_what_a_terminal_shows() {
    let (output, shown) = on_terminal(mas_of_a_person(&["doctor"]), On::Both);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("\u{1b}[1mVerdict\u{1b}[0m"), "{shown:?}");
    assert!(shown.contains("nothing is wrong"), "{shown:?}");
    // Who does not want colours gets none.
    let mut command = mas_of_a_person(&["doctor"]);
    command.env("NO_COLOR", "1");
    let (_, shown) = on_terminal(command, On::Both);
    assert!(shown.contains("nothing is wrong"), "{shown:?}");
    assert!(!shown.contains(ESCAPE), "{shown:?}");
}

#[test]
fn what_goes_into_a_pipe_has_no_colours_though_stderr_is_a_terminal() {
    let (output, shown) = on_terminal(mas_of_a_person(&["doctor"]), On::StderrAlone);
    assert!(text(&output.stdout).contains("nothing is wrong"));
    assert!(!text(&output.stdout).contains(ESCAPE));
    assert_eq!(shown, "");
}

#[test]
fn a_load_shows_its_progress_in_one_line_of_a_terminal() {
    let arguments = ["load", "--agents", "2", "--rate", "100", "--json"];
    let run = || {
        let mut command = mas_of_a_person(&arguments);
        command.args(["--duration", "2500ms"]);
        command
    };
    let (output, shown) = on_terminal(run(), On::StderrAlone);
    assert!(output.status.success(), "{shown}");
    assert_eq!(json(&output)["delivered"], 250);
    assert!(!text(&output.stdout).contains(ESCAPE));
    // Each stands in place of the one before; the last one stays. A busy machine leaves some out.
    let lines: Vec<_> = shown.split(AGAIN).collect();
    assert!(lines.len() >= 3, "{shown:?}");
    assert_eq!(lines[0], "", "{shown:?}");
    let (last, before) = lines[1..].split_last().unwrap();
    for line in before {
        assert!(
            line.contains("   p99 ") && !line.contains('\n'),
            "{shown:?}"
        );
    }
    assert!(
        last.starts_with("done ") && last.ends_with("\r\n"),
        "{shown:?}"
    );
    // Elsewhere they are lines one below the other.
    let output = finish(run().spawn().unwrap());
    let told = text(&output.stderr);
    assert!(told.ends_with('\n') && told.contains("\ndone "), "{told:?}");
    assert!(!told.contains(['\r', ESCAPE]), "{told:?}");
}

#[test]
fn long_input_shows_its_progress_on_a_terminal_only() {
    let lines: String = "x\n".repeat(41);
    let path = std::env::temp_dir().join(format!("mas-lines-{}", std::process::id()));
    std::fs::write(&path, &lines).unwrap();
    let run = || {
        let mut command = mas_of_a_person(&["pub", "t", "--rate", "20"]);
        command.stdin(File::open(&path).unwrap());
        command
    };
    let (output, shown) = on_terminal(run(), On::StderrAlone);
    let elsewhere = finish(run().spawn().unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success(), "{shown}");
    let mut parts = shown.split(AGAIN).skip(1);
    let first = parts.next().unwrap_or_default();
    assert!(first.contains(" s   published "), "{shown:?}");
    // The summary stands where the progress was.
    let last = parts.last().unwrap_or_default();
    assert!(last.starts_with("published 41 messages to t"), "{shown:?}");
    let told = text(&elsewhere.stderr);
    assert!(told.contains("published 41 messages to t"), "{told:?}");
    assert!(!told.contains(['\r', ESCAPE]), "{told:?}");
}
