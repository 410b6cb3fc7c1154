//! The real `mas topics`, `lag`, `purge`, `completions`, and what `--help` says.

mod common;

use common::{finish, mas, on_each_broker, text};

const COMMANDS: [&str; 7] = [
    "pub",
    "sub",
    "topics",
    "lag",
    "purge",
    "load",
    "completions",
];

#[test]
fn each_command_has_help_with_its_exit_codes() {
    let all = finish(mas(&["--help"]).spawn().unwrap());
    assert!(all.status.success());
    for command in COMMANDS {
        assert!(
            text(&all.stdout).contains(&format!("\n  {command}")),
            "{command}"
        );
        let output = finish(mas(&[command, "--help"]).spawn().unwrap());
        assert!(output.status.success(), "{command}");
        let help = text(&output.stdout);
        // Nothing but text where there is no terminal.
        assert!(!help.contains('\u{1b}'), "{command}");
        if command != "load" {
            assert!(help.contains("Examples:"), "{command}: {help}");
        }
        if command != "completions" {
            assert!(
                help.to_lowercase().contains("exit code"),
                "{command}: {help}"
            );
        }
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = finish(mas(&["completions", shell]).spawn().unwrap());
        assert!(output.status.success(), "{shell}");
        for command in COMMANDS {
            assert!(text(&output.stdout).contains(command), "{shell}: {command}");
        }
    }
}

#[cfg(feature = "memory")]
#[test]
fn a_broker_that_is_named_and_not_chosen_is_told() {
    let commands = [
        &["lag"][..],
        &["topics"],
        &["purge", "t"],
        &["sub", "t"],
        &["pub", "t", "x"],
    ];
    for (variable, value, backend) in [
        ("REDIS_ADDR", "there:6379", "redis"),
        ("REDIS_URL", "redis://:hush@there:6379", "redis"),
        ("NATS_URL", "nats://ann:hush@there:4222", "nats"),
        ("KAFKA_BROKERS", "there:9092", "kafka"),
    ] {
        for arguments in commands {
            let run = |chosen: &[(&str, &str)]| {
                let mut command = mas(arguments);
                command.env(variable, value).envs(chosen.iter().copied());
                text(&finish(command.spawn().unwrap()).stderr).to_owned()
            };
            let told = run(&[]);
            let caution = format!(
                "mas: warning: PROTOCOL_TYPE=inmemory: nobody chose a backend, so messages stay in \
                 this process, though {variable} is set; set PROTOCOL_TYPE={backend} to use it\n"
            );
            assert!(told.starts_with(&caution), "{arguments:?}: {told}");
            assert!(!told.contains("hush"), "{arguments:?}: {told}");
            // Who says memory means memory.
            let told = run(&[("PROTOCOL_TYPE", "inmemory")]);
            assert!(!told.contains(variable), "{arguments:?}: {told}");
        }
    }
}

#[cfg(feature = "memory")]
#[test]
fn memory_is_said_to_be_empty() {
    for arguments in [&["lag"][..], &["topics"], &["purge", "t"]] {
        let output = finish(mas(arguments).spawn().unwrap());
        let told = text(&output.stderr);
        let expected = format!(
            "mas {}: the memory backend lives within one process",
            arguments[0]
        );
        assert!(told.starts_with(&expected), "{told}");
    }
}

/// What holds on every broker.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
mod brokers {
    use serde_json::json;

    use super::common::{Broker, json, json_lines, run, succeed};
    use super::*;

    pub(super) fn topics_groups_and_lag_are_told(server: &dyn Broker) {
        succeed(server, &["pub", "b.two", "1", "2", "3"]);
        succeed(server, &["sub", "b.two", "-g", "g", "-n", "1"]);
        succeed(server, &["pub", "a.one", "1"]);
        assert_eq!(
            json_lines(&succeed(server, &["topics", "--json"])),
            [
                json!({"topic": "a.one", "internal": false, "groups": []}),
                json!({"topic": "b.two", "internal": false, "groups":
                    [{"topic": "b.two", "group": "g", "waiting": 2, "pending": 0}]}),
            ]
        );
        assert_eq!(
            text(&succeed(server, &["topics"]).stdout),
            "TOPIC  LAG  GROUPS\na.one    -\nb.two    2  g\n"
        );
        let expected = "TOPIC  GROUP  WAITING  PENDING\nb.two  g            2        0\n";
        for arguments in [&["lag"][..], &["lag", "b.two"], &["lag", "b.two", "g"]] {
            assert_eq!(text(&succeed(server, arguments).stdout), expected);
        }
        assert_eq!(json(&succeed(server, &["lag", "--json"]))["waiting"], 2);
    }

    pub(super) fn what_is_not_there_is_told(server: &dyn Broker) {
        succeed(server, &["pub", "t", "1"]);
        for (arguments, why) in [
            (&["lag", "x"][..], "there is no topic x"),
            (&["lag", "t", "g"], "group"),
            (&["purge", "x", "--yes"], "there is no topic x"),
        ] {
            let output = run(server, arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            assert!(text(&output.stderr).contains(why), "{arguments:?}");
        }
    }

    pub(super) fn a_topic_is_purged_when_that_is_meant(server: &dyn Broker) {
        succeed(server, &["pub", "t", "1", "2", "3"]);
        succeed(server, &["sub", "t", "-g", "g", "-n", "1"]);
        let output = run(server, &["purge", "t"]);
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stdout);
        assert!(told.contains("group g: 2 messages waiting"), "{told}");
        assert!(text(&output.stderr).contains("--yes"));
        let output = run(server, &["purge", "t", "--json"]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(json(&output)["purged"], false);
        assert_eq!(
            json(&succeed(server, &["lag", "t", "g", "--json"]))["waiting"],
            2
        );
        let purged = json(&succeed(server, &["purge", "t", "--yes", "--json"]));
        assert_eq!(purged["purged"], true);
        assert_eq!(purged["groups"][0]["waiting"], 2);
        assert_eq!(
            json(&succeed(server, &["lag", "t", "g", "--json"]))["waiting"],
            0
        );
    }
}

on_each_broker! {
    topics_groups_and_lag_are_told,
    what_is_not_there_is_told,
    a_topic_is_purged_when_that_is_meant,
}
