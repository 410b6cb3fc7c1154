//! The outcome of a run, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::tally::Percentiles;
use crate::text::grouped;

/// The outcome of a run. As JSON it is one object with these names; durations end in their unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// `memory`, `redis`, …
    pub(crate) backend: String,
    /// The server and its version.
    pub(crate) server: String,
    pub(crate) agents: usize,
    /// Bytes of each payload.
    pub(crate) payload: usize,
    /// Messages a second that were asked for, of all agents together.
    pub(crate) target_rate: u64,
    /// Messages with a receipt.
    pub(crate) published: u64,
    /// Messages that arrived, each counted once.
    pub(crate) delivered: u64,
    /// Messages with a receipt that did not arrive.
    pub(crate) lost: u64,
    /// Further deliveries of messages that had arrived.
    pub(crate) duplicates: u64,
    /// Of these, how many are explained: sent again after an unknown outcome, delivered again with a
    /// higher attempt, or by a broker that may have forgotten the ack when it died.
    pub(crate) duplicates_explained: u64,
    pub(crate) duplicates_resent: u64,
    pub(crate) duplicates_redelivered: u64,
    /// Came again after a reconnect to a broker that writes acks behind (`ack_durability`).
    pub(crate) duplicates_forgotten: u64,
    /// Deliveries of an attempt later than the first, duplicates or not.
    pub(crate) redelivered: u64,
    /// Deliveries with a wrong byte.
    pub(crate) corrupted: u64,
    /// Messages whose time had come, and that have no receipt.
    pub(crate) unconfirmed: u64,
    /// Publishes that failed and were tried again.
    pub(crate) publish_errors: u64,
    /// Of these, how many had an unknown outcome.
    pub(crate) publish_unknown: u64,
    pub(crate) ack_errors: u64,
    pub(crate) reconnects: u64,
    /// Losses that the backend reported.
    pub(crate) gaps: u64,
    pub(crate) dead_lettered: u64,
    /// Messages that were delivered and are still pending for their group.
    pub(crate) unsettled: Option<u64>,
    /// Messages a second that arrived, from the start to the last arrival.
    pub(crate) rate: f64,
    /// Latencies: from the scheduled send to the handler.
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// CPU time of this process during the run; 100 is one core.
    pub(crate) cpu_percent: Option<f64>,
    pub(crate) cpu_seconds: Option<f64>,
    /// The most memory that this process had resident.
    pub(crate) memory_mb: Option<f64>,
    /// From the start to the end of the drain.
    pub(crate) duration_s: f64,
    /// The run was stopped before its time.
    pub(crate) interrupted: bool,
}

/// Three decimals: a microsecond where the unit is a millisecond.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Report {
    /// Takes over latencies.
    pub(crate) fn latencies(mut self, told: Percentiles) -> Self {
        self.p50_ms = round(told.p50);
        self.p95_ms = round(told.p95);
        self.p99_ms = round(told.p99);
        self.max_ms = round(told.max);
        self
    }

    /// What makes the run a failure; empty when nothing does.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut tell = |count: u64, what: &str| {
            if count > 0 {
                failures.push(format!("{} {what}", grouped(count)));
            }
        };
        tell(
            self.lost,
            "messages have a receipt and did not arrive: they are lost, or later than --drain waits",
        );
        tell(
            self.corrupted,
            "deliveries are not what was sent: wrong bytes, or another program writes to these topics",
        );
        tell(
            self.unconfirmed,
            "messages could not be published before the end of --drain: the broker is away or too slow",
        );
        failures
    }

    /// What is worth a word and no failure.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let unexplained = self.duplicates - self.duplicates_explained;
        if unexplained > 0 {
            warnings.push(format!(
                "{} duplicates are unexplained: no publish was sent again, and they came as first attempts",
                grouped(unexplained)
            ));
        }
        if let Some(unsettled @ 1..) = self.unsettled {
            warnings.push(format!(
                "{} messages are still pending for their group: their acks did not take effect yet",
                grouped(unsettled)
            ));
        }
        warnings
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} agents, {} B payload, {}/s asked for{}",
            self.server,
            self.agents,
            grouped(self.payload as u64),
            grouped(self.target_rate),
            if self.interrupted {
                ", interrupted"
            } else {
                ""
            },
        )?;
        let mut row = |name: &str, count: u64, note: String| {
            let note = if note.is_empty() {
                note
            } else {
                format!("   {note}")
            };
            writeln!(f, "  {name:<16}{:>15}{note}", grouped(count))
        };
        row(
            "published",
            self.published,
            match self.publish_errors {
                0 => String::new(),
                errors => format!(
                    "{} failed and were tried again, {} of them with an unknown outcome",
                    grouped(errors),
                    grouped(self.publish_unknown)
                ),
            },
        )?;
        row(
            "delivered",
            self.delivered,
            format!("{}/s", grouped(self.rate.round() as u64)),
        )?;
        row("lost", self.lost, String::new())?;
        row(
            "duplicates",
            self.duplicates,
            match self.duplicates {
                0 => String::new(),
                all => format!(
                    "{} sent again after an unknown outcome, {} redelivered, {} whose acks a broker forgot, {} unexplained",
                    grouped(self.duplicates_resent),
                    grouped(self.duplicates_redelivered),
                    grouped(self.duplicates_forgotten),
                    grouped(all - self.duplicates_explained)
                ),
            },
        )?;
        for (name, count) in [
            ("redelivered", self.redelivered),
            ("corrupted", self.corrupted),
            ("unconfirmed", self.unconfirmed),
            ("ack errors", self.ack_errors),
            ("reconnects", self.reconnects),
            ("gaps", self.gaps),
            ("dead-lettered", self.dead_lettered),
        ] {
            if count > 0 {
                row(name, count, String::new())?;
            }
        }
        writeln!(
            f,
            "  {:<16}p50 {} ms   p95 {} ms   p99 {} ms   max {} ms",
            "latency",
            millis(self.p50_ms),
            millis(self.p95_ms),
            millis(self.p99_ms),
            millis(self.max_ms)
        )?;
        let mut process = Vec::new();
        if let (Some(percent), Some(seconds)) = (self.cpu_percent, self.cpu_seconds) {
            process.push(format!("cpu {percent:.0} % of a core ({seconds:.1} s)"));
        }
        if let Some(memory) = self.memory_mb {
            process.push(format!("memory {memory:.1} MB at most"));
        }
        if !process.is_empty() {
            writeln!(f, "  {:<16}{}", "this process", process.join("   "))?;
        }
        write!(f, "  {:<16}{:.1} s", "duration", self.duration_s)
    }
}

/// A latency with the digits that mean something.
pub(crate) fn millis(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        grouped(value.round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> Report {
        Report {
            backend: "memory".into(),
            server: "memory 0.1.0".into(),
            agents: 10,
            payload: 256,
            target_rate: 10_000,
            published: 100_000,
            delivered: 100_000,
            lost: 0,
            duplicates: 0,
            duplicates_explained: 0,
            duplicates_resent: 0,
            duplicates_redelivered: 0,
            duplicates_forgotten: 0,
            redelivered: 0,
            corrupted: 0,
            unconfirmed: 0,
            publish_errors: 0,
            publish_unknown: 0,
            ack_errors: 0,
            reconnects: 0,
            gaps: 0,
            dead_lettered: 0,
            unsettled: Some(0),
            rate: 9_999.123,
            p50_ms: 0.0,
            p95_ms: 0.0,
            p99_ms: 0.0,
            max_ms: 0.0,
            cpu_percent: Some(41.2),
            cpu_seconds: Some(4.123),
            memory_mb: Some(23.456),
            duration_s: 10.012,
            interrupted: false,
        }
        .latencies(Percentiles {
            p50: 0.612_34,
            p95: 1.2,
            p99: 1.5,
            max: 1234.5,
        })
    }

    fn troubled() -> Report {
        Report {
            lost: 2,
            delivered: 99_998,
            duplicates: 10,
            duplicates_explained: 9,
            duplicates_resent: 4,
            duplicates_redelivered: 2,
            duplicates_forgotten: 3,
            redelivered: 3,
            unconfirmed: 1,
            publish_errors: 1_200,
            publish_unknown: 40,
            reconnects: 10,
            unsettled: Some(5),
            cpu_percent: None,
            cpu_seconds: None,
            memory_mb: None,
            interrupted: true,
            ..clean()
        }
    }

    #[test]
    fn the_table_of_a_clean_run() {
        let expected = "\
memory 0.1.0, 10 agents, 256 B payload, 10,000/s asked for
  published               100,000
  delivered               100,000   9,999/s
  lost                          0
  duplicates                    0
  latency         p50 0.61 ms   p95 1.20 ms   p99 1.50 ms   max 1,235 ms
  this process    cpu 41 % of a core (4.1 s)   memory 23.5 MB at most
  duration        10.0 s";
        assert_eq!(clean().to_string(), expected);
        assert!(clean().failures().is_empty());
        assert!(clean().warnings().is_empty());
    }

    #[test]
    fn the_table_of_a_run_through_trouble() {
        let expected = "\
memory 0.1.0, 10 agents, 256 B payload, 10,000/s asked for, interrupted
  published               100,000   1,200 failed and were tried again, 40 of them with an unknown outcome
  delivered                99,998   9,999/s
  lost                          2
  duplicates                   10   4 sent again after an unknown outcome, 2 redelivered, 3 whose acks a broker forgot, 1 unexplained
  redelivered                   3
  unconfirmed                   1
  reconnects                   10
  latency         p50 0.61 ms   p95 1.20 ms   p99 1.50 ms   max 1,235 ms
  duration        10.0 s";
        assert_eq!(troubled().to_string(), expected);
        assert_eq!(troubled().failures().len(), 2);
        assert_eq!(troubled().warnings().len(), 2);
    }

    #[test]
    fn the_json_is_one_line_with_every_figure() {
        let json = serde_json::to_string(&clean()).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"backend":"memory","server":"memory 0.1.0","agents":10,"payload":256,"#,
                r#""target_rate":10000,"published":100000,"delivered":100000,"lost":0,"#,
                r#""duplicates":0,"duplicates_explained":0,"duplicates_resent":0,"#,
                r#""duplicates_redelivered":0,"duplicates_forgotten":0,"redelivered":0,"corrupted":0,"unconfirmed":0,"#,
                r#""publish_errors":0,"publish_unknown":0,"ack_errors":0,"reconnects":0,"gaps":0,"#,
                r#""dead_lettered":0,"unsettled":0,"rate":9999.123,"p50_ms":0.612,"p95_ms":1.2,"#,
                r#""p99_ms":1.5,"max_ms":1234.5,"cpu_percent":41.2,"cpu_seconds":4.123,"#,
                r#""memory_mb":23.456,"duration_s":10.012,"interrupted":false}"#,
            )
        );
    }
}
