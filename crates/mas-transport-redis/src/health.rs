//! How the server is, in words for whoever runs it.

use mas_transport_core::{Health, Result};
use redis::{Cmd, InfoDict, Pipeline, Value};
use tokio::time::Instant;

use crate::connection::Link;
use crate::info::{Version, dict, setting};

/// From this share of `maxmemory` on it is time to look.
const NEARLY_FULL: u64 = 80;

/// Asks the server.
///
/// # Errors
/// What keeps it from answering.
pub(crate) async fn ask(link: &Link) -> Result<Health> {
    let mut ping = Cmd::new();
    ping.arg("PING");
    let asked = Instant::now();
    link.command("health", ping).await?;
    let latency = asked.elapsed();

    let mut ask = Pipeline::new();
    ask.cmd("INFO");
    for name in ["appendfsync", "save"] {
        ask.cmd("CONFIG").arg("GET").arg(name);
    }
    let mut answers = link.send("health", &ask).await?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let told = dict(&link.check("health", next())?);
    // Many hosted servers forbid CONFIG.
    let [fsync, save] = [(); 2].map(|()| setting(&next()));
    let health = Health::new(Version::of(&told).name, latency);
    Ok(judge(health, &told, fsync.as_deref(), save.as_deref()))
}

fn judge(health: Health, told: &InfoDict, fsync: Option<&str>, save: Option<&str>) -> Health {
    let health = persistence(health, told, fsync, save);
    let health = memory(health, told);
    let clients = told.get::<String>("connected_clients").unwrap_or_default();
    let role = told.get::<String>("role").unwrap_or_default();
    let mut health = health
        .fact("connected-clients", clients)
        .fact("role", &role);
    if role == "slave" {
        health = health.fail(
            "the server is a read-only replica: it refuses every publish and every settlement",
            "connect to its primary",
        );
    }
    if !Version::of(told).counts_entries() {
        health = health.note(
            "the server is older than 7.0: it cannot tell that entries were removed by others before \
             a group had read them, and no gap is raised for them",
            "upgrade to Redis 7.0 or later, or to Valkey; until then let nobody trim the streams (XTRIM, XADD MAXLEN)",
        );
    }
    health
}

fn persistence(health: Health, told: &InfoDict, fsync: Option<&str>, save: Option<&str>) -> Health {
    let is = |name: &str, value: &str| told.get::<String>(name).as_deref() == Some(value);
    let logs = is("aof_enabled", "1");
    let unknown = "unknown: CONFIG is not allowed";
    let snapshots = save.is_some_and(|save| !save.is_empty());
    let mut health = health
        .fact("appendonly", if logs { "yes" } else { "no" })
        .fact("appendfsync", fsync.unwrap_or(unknown))
        .fact(
            "save",
            match save {
                Some("") => "off",
                Some(save) => save,
                None => unknown,
            },
        );
    health = match (logs, fsync) {
        (false, _) => health.warn(
            if snapshots {
                "the append-only file is off: when the server ends, what was published and acknowledged \
                 since its last snapshot is lost, receipts or not"
            } else {
                "the append-only file is off: when the server ends, everything that was published is \
                 lost, receipts or not"
            },
            "set appendonly yes (and appendfsync always where no receipt may be lost)",
        ),
        (true, Some("always")) => health,
        (true, Some("no")) => health.warn(
            "appendfsync is no: receipts survive the end of the server's process, but when its machine \
             dies, what the system had not flushed yet is lost, usually the last 30 s",
            "set appendfsync always, or everysec to lose 2 s at most",
        ),
        // A process that dies loses only what it could not write because the disk was busy.
        (true, Some(_)) => health.note(
            "appendfsync is everysec: when the server's machine loses power, or its disk is so slow that \
             writes wait, receipts of the last second or two may be lost",
            "set appendfsync always where no receipt may be lost; it makes every publish wait for the disk",
        ),
        // Nothing is known to be wrong, and who runs a hosted server cannot look any closer.
        (true, None) => health.note(
            "the server does not tell its appendfsync: whether the last receipts survive the death of its \
             machine cannot be judged, so receipts promise as little as with everysec",
            "allow the user +config|get, or see to it that appendfsync is everysec or always",
        ),
    };
    if logs && is("aof_last_write_status", "err") {
        health = health.fail(
            "the server could not write its append-only file: it refuses every publish (MISCONF)",
            "make room on its disk, or see its log for the reason",
        );
    }
    if snapshots && is("rdb_last_bgsave_status", "err") {
        health = health.warn(
            "the server's last snapshot failed: with stop-writes-on-bgsave-error it refuses every publish \
             (MISCONF)",
            "make room on its disk and in its memory, or see its log for the reason",
        );
    }
    health
}

fn memory(health: Health, told: &InfoDict) -> Health {
    let bytes = |name: &str| told.get::<u64>(name).unwrap_or(0);
    let (used, most) = (bytes("used_memory"), bytes("maxmemory"));
    let policy = told.get::<String>("maxmemory_policy").unwrap_or_default();
    let mut health = health.fact("used-memory", size(used)).fact(
        "maxmemory",
        match most {
            0 => "0 (no limit)".to_owned(),
            most => size(most),
        },
    );
    if policy.starts_with("allkeys") {
        let when = match most {
            0 => "as soon as maxmemory is set",
            _ => "when maxmemory is reached",
        };
        health = health.warn(
            format!(
                "maxmemory-policy is {policy}: {when}, the server deletes whole topics with unsettled \
                 messages"
            ),
            "set maxmemory-policy noeviction: then publishing fails with Full instead",
        );
    }
    if most > 0 && u128::from(used) * 100 >= u128::from(most) * u128::from(NEARLY_FULL) {
        let share = u128::from(used) * 100 / u128::from(most);
        health = health.warn(
            format!("{share} % of maxmemory is used: at 100 % publishing fails with Full"),
            "raise maxmemory, let consumers catch up, or remove topics and groups that nobody uses",
        );
    }
    let policy = match policy.starts_with("volatile") {
        // Nothing of ours expires.
        true => format!("{policy} (touches only keys that expire; no key of a topic does)"),
        false => policy,
    };
    health.fact("maxmemory-policy", policy)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    match unit {
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mas_transport_core::Severity;

    use super::*;

    fn findings(told: &str, fsync: Option<&str>, save: Option<&str>) -> Vec<(Severity, String)> {
        let told = InfoDict::new(&format!("redis_version:7.0.15\r\n{told}"));
        let health = judge(Health::new("redis", Duration::ZERO), &told, fsync, save);
        let findings = health.findings.into_iter();
        findings.map(|f| (f.severity, f.problem)).collect()
    }

    #[test]
    fn nothing_is_wrong_with_a_server_that_keeps_everything() {
        let told = "aof_enabled:1\r\nused_memory:79\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\nrole:master";
        assert_eq!(findings(told, Some("always"), Some("")), []);
        let told = "aof_enabled:1\r\nused_memory:79\r\nmaxmemory:100\r\nmaxmemory_policy:volatile-lru\r\nrole:master";
        assert_eq!(findings(told, Some("always"), Some("3600 1")), []);
    }

    #[test]
    fn what_cannot_be_made_in_a_test_is_judged_too() {
        let failing = "aof_enabled:1\r\naof_last_write_status:err\r\nrdb_last_bgsave_status:err";
        let told = findings(failing, Some("always"), Some("3600 1"));
        let severities: Vec<_> = told.iter().map(|(severity, _)| *severity).collect();
        assert_eq!(severities, [Severity::Error, Severity::Warning], "{told:?}");
        assert!(
            told.iter().all(|(_, what)| what.contains("MISCONF")),
            "{told:?}"
        );
        assert_eq!(findings(failing, Some("always"), Some("")).len(), 1);
        let old = "aof_enabled:1\r\nredis_version:6.2.14";
        let told = findings(old, Some("always"), None);
        assert!(
            matches!(&*told, [(Severity::Note, what)] if what.contains("older than 7.0")),
            "{told:?}"
        );
    }

    #[test]
    fn how_much_is_lost_and_when_decides_how_loud_it_is() {
        for (aof, fsync, expected) in [
            ("0", Some("always"), Some(Severity::Warning)),
            ("1", Some("no"), Some(Severity::Warning)),
            ("1", Some("everysec"), Some(Severity::Note)),
            ("1", None, Some(Severity::Note)),
            ("1", Some("always"), None),
        ] {
            let told = findings(&format!("aof_enabled:{aof}"), fsync, Some(""));
            let severities: Vec<_> = told.iter().map(|(severity, _)| *severity).collect();
            assert_eq!(severities, Vec::from_iter(expected), "{aof} {fsync:?}");
        }
    }

    #[test]
    fn sizes_are_for_people() {
        let all = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
        ];
        for (bytes, text) in all {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with("GiB"));
    }
}
