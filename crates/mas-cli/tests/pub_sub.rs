//! The real `mas pub` and `mas sub`.

mod common;

#[cfg(any(
    feature = "memory",
    all(unix, any(feature = "kafka", feature = "nats", feature = "redis"))
))]
use common::{feed, json};
use common::{finish, mas, on_each_broker, text};

#[test]
fn arguments_are_checked() {
    for (arguments, why) in [
        (&["pub", "a b", "x"][..], "letters, digits"),
        (&["pub", "t", "x", "--header", "novalue"], "NAME=VALUE"),
        (&["pub", "t", "x", "--header", "Bad Name=1"], "header name"),
        (&["pub", "t", "x", "--priority", "6"], "background"),
        (&["pub", "t", "x", "-a", "nonsense=1"], "correlationid"),
        (
            &["pub", "t", "x", "y", "--id", "one"],
            "--id names one message",
        ),
        (&["pub", "t", "x", "-"], "stands alone"),
        (&["pub", "t", "x", "--file", "y"], "cannot be used with"),
        (&["pub", "t", "x", "--batch", "0"], "--batch"),
        (&["pub", "t", "x", "--source", ""], "attribute=source"),
        (
            &["sub", "t", "--group", "a.b", "--timeout", "0s"],
            "more than nothing",
        ),
        (&["sub", "t", "--ack", "before"], "after, never"),
    ] {
        let output = finish(mas(arguments).spawn().unwrap());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains(why), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[cfg(feature = "memory")]
#[test]
fn publishing_to_memory_works_and_says_what_becomes_of_it() {
    let output = feed(mas(&["pub", "t", "--json"]), b"a\n\nb");
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("ends with this process"));
    let json = json(&output);
    for (name, expected) in [("read", 3), ("published", 3), ("failed", 0), ("bytes", 2)] {
        assert_eq!(json[name], expected, "{name} in {json}");
    }
    assert_eq!(json["backend"], "memory");
    assert_eq!(json["durability"], "volatile");
    assert_eq!(json["resume"], serde_json::Value::Null);
}

#[cfg(feature = "memory")]
#[test]
fn subscribing_to_memory_is_refused_rather_than_waiting_for_ever() {
    let output = finish(mas(&["sub", "t"]).spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(errors.contains("nobody can publish"), "{errors}");
    assert!(errors.contains("PROTOCOL_TYPE"), "{errors}");
}

#[cfg(feature = "memory")]
#[test]
fn lines_that_are_refused_fail_alone_and_are_named() {
    let mut input = b"{\"good\": 1}\n{bad\n".to_vec();
    input.extend(std::iter::repeat_n(b'1', 3 << 20));
    input.extend(b"\n[]\n");
    let command = ["pub", "t", "--json", "--content-type", "application/json"];
    let output = feed(mas(&command), &input);
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(errors.contains("mas pub: line 2: "), "{errors}");
    assert!(errors.contains("mas pub: line 3: "), "{errors}");
    let json = json(&output);
    for (name, expected) in [("read", 4), ("published", 2), ("failed", 2)] {
        assert_eq!(json[name], expected, "{name} in {json}");
    }
    let failures = json["failures"].as_array().unwrap();
    assert_eq!(failures[0]["number"], 2);
    assert_eq!(failures[0]["maybe_stored"], false);
    assert!(failures[1]["error"].as_str().unwrap().contains("larger"));
}

#[cfg(feature = "memory")]
#[test]
fn a_file_that_is_not_there_is_told() {
    let output = finish(mas(&["pub", "t", "--file", "no/such"]).spawn().unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no/such"));
}

#[cfg(feature = "memory")]
#[test]
fn a_rate_is_not_exceeded() {
    let command = mas(&["pub", "t", "--rate", "20", "--json"]);
    let output = feed(command, "x\n".repeat(21).as_bytes());
    assert!(output.status.success());
    let json = json(&output);
    assert_eq!(json["published"], 21);
    // The first goes at once, and what is made up for is a tenth of a second. How much longer it
    // takes is the machine's matter; when each is due, the tests of the pace tell.
    let seconds = json["seconds"].as_f64().unwrap();
    assert!(seconds >= 0.9, "{json}");
}

/// What holds on every broker.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
mod brokers {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Stdio;

    use super::common::{Broker, json_lines, on, run, signal, succeed};
    use super::*;

    pub(super) fn every_attribute_arrives(server: &dyn Broker) {
        let published = succeed(
            server,
            &[
                "pub",
                "orders.created",
                "{\"id\": 7}",
                "--content-type",
                "application/json",
                "--header",
                "region=eu",
                "--header",
                "empty=",
                "--key",
                "customer-7",
                "--type",
                "order.created",
                "--id",
                "one",
                "--source",
                "/shop",
                "--tag",
                "a",
                "--tag",
                "b",
                "-a",
                "correlationid=c",
                "-a",
                "subject=s",
            ],
        );
        assert!(published.stdout.is_empty());
        let told = text(&published.stderr);
        assert!(
            told.starts_with("published 1 message to orders.created"),
            "{told}"
        );
        let output = succeed(
            server,
            &[
                "sub",
                "orders.created",
                "--group",
                "g",
                "--count",
                "1",
                "--json",
            ],
        );
        let mut message = json(&output);
        assert!(
            message["position"]
                .take()
                .as_str()
                .is_some_and(|p| p.contains('-'))
        );
        assert_eq!(
            message,
            serde_json::json!({
                "topic": "orders.created", "id": "one", "source": "/shop",
                "type": "order.created", "position": null, "attempt": 1, "priority": 3,
                "key": "customer-7", "content_type": "application/json", "tags": ["a", "b"],
                "headers": {"region": "eu", "empty": ""}, "subject": "s",
                "correlationid": "c", "payload": "{\"id\": 7}",
            })
        );
    }

    pub(super) fn many_lines_arrive_once_each(server: &dyn Broker) {
        let lines: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        let output = feed(on(server, &["pub", "numbers", "--json"]), lines.as_bytes());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(json(&output)["published"], 20_000);
        let output = succeed(
            server,
            &[
                "sub", "numbers", "--group", "g", "--count", "20000", "--json",
            ],
        );
        let messages = json_lines(&output);
        assert_eq!(messages.len(), 20_000);
        let numbers: BTreeSet<u32> = messages
            .iter()
            .map(|m| m["payload"].as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers.len(), 20_000);
        assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&20_000)));
        // Every ack was confirmed before it ended.
        let lag = json(&succeed(server, &["lag", "numbers", "g", "--json"]));
        assert_eq!(
            (&lag["waiting"], &lag["pending"]),
            (&0.into(), &0.into()),
            "{lag}"
        );
    }

    pub(super) fn batches_and_binary_payloads_arrive(server: &dyn Broker) {
        let output = feed(
            on(server, &["pub", "t", "--batch", "3"]),
            b"\xff\x00\n1\n2\n3",
        );
        assert!(output.status.success(), "{}", text(&output.stderr));
        let output = succeed(server, &["sub", "t", "-g", "g", "-n", "4", "--json"]);
        let messages = json_lines(&output);
        assert_eq!(messages[0]["payload_base64"], "/wA=");
        assert_eq!(messages[0].get("payload"), None);
        let lines = b"\xff\x00\n1\n\n2\n";
        let output = feed(on(server, &["pub", "plain"]), lines);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let plain = succeed(server, &["sub", "plain", "-g", "g", "-n", "4"]);
        assert_eq!(plain.stdout, lines);
    }

    pub(super) fn what_is_only_looked_at_comes_back(server: &dyn Broker) {
        succeed(server, &["pub", "t", "a", "b", "c"]);
        let look = ["sub", "t", "-g", "g", "-n", "2", "--json", "--ack", "never"];
        assert_eq!(json_lines(&succeed(server, &look)).len(), 2);
        let lag = json(&succeed(server, &["lag", "t", "g", "--json"]));
        let open = lag["waiting"].as_u64().unwrap() + lag["pending"].as_u64().unwrap();
        assert_eq!(open, 3, "{lag}");
        let all = succeed(server, &["sub", "t", "-g", "g", "-n", "3", "--json"]);
        let all = json_lines(&all);
        let payloads: BTreeSet<_> = all.iter().map(|m| m["payload"].as_str().unwrap()).collect();
        assert_eq!(payloads, BTreeSet::from(["a", "b", "c"]));
        let again = all.iter().filter(|m| m["attempt"] == 2).count();
        assert_eq!(again, 2, "{all:?}");
    }

    pub(super) fn too_few_messages_are_told_by_the_exit_code(server: &dyn Broker) {
        succeed(server, &["pub", "t", "a"]);
        let arguments = ["sub", "t", "-g", "g", "-n", "2", "--timeout", "3s"];
        let output = run(server, &arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"a\n");
        assert!(text(&output.stderr).contains("1 of 2 messages came"));
        // Without a count, the end of the messages is no failure.
        let output = succeed(server, &["sub", "t", "-g", "g", "--timeout", "200ms"]);
        assert!(output.stdout.is_empty());
    }

    pub(super) fn from_latest_leaves_what_is_there(server: &dyn Broker) {
        succeed(server, &["pub", "t", "old"]);
        let arguments = [
            "sub",
            "t",
            "-g",
            "g",
            "--from",
            "latest",
            "--timeout",
            "200ms",
        ];
        assert!(succeed(server, &arguments).stdout.is_empty());
        succeed(server, &["pub", "t", "new"]);
        let output = succeed(server, &["sub", "t", "-g", "g", "-n", "1"]);
        assert_eq!(output.stdout, b"new\n");
    }

    pub(super) fn ctrl_c_drains_the_subscriber(server: &dyn Broker) {
        succeed(server, &["pub", "t", "a", "b"]);
        let mut child = on(server, &["sub", "t", "-g", "g"]).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        for expected in ["a\n", "b\n"] {
            line.clear();
            out.read_line(&mut line).unwrap();
            assert_eq!(line, expected);
        }
        signal(child.id(), "INT");
        let output = finish(child);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let lag = json(&succeed(server, &["lag", "t", "g", "--json"]));
        assert_eq!(
            (&lag["waiting"], &lag["pending"]),
            (&0.into(), &0.into()),
            "{lag}"
        );
    }

    pub(super) fn ctrl_c_ends_endless_input_with_every_line_confirmed(server: &dyn Broker) {
        let mut command = on(server, &["pub", "t", "--json"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"a\nb\n").unwrap();
        // They went out although the input is open.
        let output = succeed(server, &["sub", "t", "-g", "g", "-n", "2"]);
        assert_eq!(output.stdout, b"a\nb\n");
        signal(child.id(), "INT");
        let output = finish(child);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let json = json(&output);
        assert_eq!(json["published"], 2, "{json}");
        assert_eq!(json["interrupted"], true, "{json}");
        drop(stdin);
    }

    pub(super) fn a_reader_that_goes_away_ends_it_quietly_and_loses_nothing(server: &dyn Broker) {
        // More than a pipe holds.
        let long = "x".repeat(1000);
        let lines: String = (0..1000).map(|n| format!("{n} {long}\n")).collect();
        let output = feed(on(server, &["pub", "t"]), lines.as_bytes());
        assert!(output.status.success());
        let mut child = on(server, &["sub", "t", "-g", "g"]).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("0 x"), "{line}");
        drop(out);
        let output = finish(child);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr), "");
        // What nobody could have read is still there.
        let lag = json(&succeed(server, &["lag", "t", "g", "--json"]));
        let open = lag["waiting"].as_u64().unwrap() + lag["pending"].as_u64().unwrap();
        assert!((1..1000).contains(&open), "{lag}");
    }

    pub(super) fn a_broker_that_dies_ends_it_with_the_line_to_go_on_with(server: &dyn Broker) {
        let mut command = on(server, &["pub", "t", "--json"]);
        command
            .env("PUBLISH_TIMEOUT", "500ms")
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"a\n").unwrap();
        let output = succeed(server, &["sub", "t", "-g", "g", "-n", "1"]);
        assert_eq!(output.stdout, b"a\n");
        server.kill();
        stdin.write_all(b"b\n").unwrap();
        // The input is open: it ends all the same.
        let output = finish(child);
        drop(stdin);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.contains("line 2 is the first that has no receipt"),
            "{errors}"
        );
        let json = json(&output);
        assert_eq!(
            (&json["resume"], &json["published"]),
            (&2.into(), &1.into()),
            "{json}"
        );
    }

    pub(super) fn a_second_ctrl_c_ends_at_once(server: &dyn Broker) {
        let mut child = on(server, &["pub", "t"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"a\n").unwrap();
        let output = succeed(server, &["sub", "t", "-g", "g", "-n", "1"]);
        assert_eq!(output.stdout, b"a\n");
        // What is read now has no answer.
        server.freeze(true);
        stdin.write_all(b"b\n").unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        signal(child.id(), "INT");
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("once more ends at once"), "{line}");
        signal(child.id(), "INT");
        let output = finish(child);
        server.freeze(false);
        assert_eq!(output.status.code(), Some(130));
        let mut rest = String::new();
        errors.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

on_each_broker! {
    every_attribute_arrives,
    many_lines_arrive_once_each,
    batches_and_binary_payloads_arrive,
    what_is_only_looked_at_comes_back,
    too_few_messages_are_told_by_the_exit_code,
    from_latest_leaves_what_is_there,
    ctrl_c_drains_the_subscriber,
    ctrl_c_ends_endless_input_with_every_line_confirmed,
    a_reader_that_goes_away_ends_it_quietly_and_loses_nothing,
    a_broker_that_dies_ends_it_with_the_line_to_go_on_with,
    a_second_ctrl_c_ends_at_once,
}
