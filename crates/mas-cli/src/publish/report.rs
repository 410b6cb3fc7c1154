//! What came of a run.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use mas_transport::{Durability, Error, Receipt, Stored, Topic, TransportInfo};
use serde::Serialize;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::output::{self, tell};
use crate::text::{count, grouped};

/// How many failures are told one by one.
const TOLD: usize = 10;
/// How often progress is shown, which is also when it begins.
const EVERY: Duration = Duration::from_secs(1);

/// What came of a run. As JSON it is one object with these names.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    topic: String,
    backend: &'static str,
    server: String,
    /// How many entries of the input were read.
    pub(super) read: u64,
    /// Messages with a receipt.
    published: u64,
    /// Of these, those that the broker had already, by their idempotency key.
    duplicates: u64,
    /// Messages without a receipt.
    failed: u64,
    /// Payload bytes of messages with a receipt.
    bytes: u64,
    /// The weakest durability of a receipt.
    durability: Option<&'static str>,
    #[serde(skip)]
    weakest: Option<Durability>,
    pub(super) seconds: f64,
    /// The command was stopped before the input ended.
    pub(super) interrupted: bool,
    /// The broker failed: the first entry that has no receipt.
    pub(super) resume: Option<u64>,
    /// The first entries that failed.
    failures: Vec<Failed>,
    #[serde(skip)]
    pub(super) noun: &'static str,
}

#[derive(Debug, Serialize)]
struct Failed {
    /// Where in the input it stands; the first is 1. None when the input itself failed.
    number: Option<u64>,
    error: String,
    /// It may be stored all the same: the broker's answer was lost.
    maybe_stored: bool,
}

impl Report {
    pub(super) fn new(topic: &Topic, info: &TransportInfo) -> Self {
        Self {
            topic: topic.to_string(),
            backend: info.backend,
            server: info.server.clone(),
            read: 0,
            published: 0,
            duplicates: 0,
            failed: 0,
            bytes: 0,
            durability: None,
            weakest: None,
            seconds: 0.0,
            interrupted: false,
            resume: None,
            failures: Vec::new(),
            noun: "line",
        }
    }

    /// A message has its receipt.
    pub(super) fn published(&mut self, bytes: usize, receipt: Receipt) {
        self.published += 1;
        self.duplicates += u64::from(receipt.duplicate);
        self.bytes += bytes as u64;
        if self
            .weakest
            .is_none_or(|weakest| receipt.durability < weakest)
        {
            self.weakest = Some(receipt.durability);
            self.durability = Some(durability(receipt.durability).0);
        }
    }

    /// A message has none.
    pub(super) fn failed(&mut self, number: u64, error: &Error) {
        self.failed += 1;
        self.enter(Failed {
            number: Some(number),
            error: error.to_string(),
            maybe_stored: error.stored() == Stored::Unknown,
        });
    }

    /// The input could not be read further.
    pub(super) fn input_failed(&mut self, error: &std::io::Error) {
        self.failed += 1;
        self.failures.truncate(TOLD - 1);
        self.enter(Failed {
            number: None,
            error: format!("the input cannot be read: {error}"),
            maybe_stored: false,
        });
    }

    fn enter(&mut self, failed: Failed) {
        if self.failures.len() < TOLD {
            self.failures.push(failed);
        }
    }

    /// Trying further would fail likewise.
    pub(super) fn give_up_at(&mut self, number: u64) {
        self.resume = Some(self.resume.map_or(number, |resume| resume.min(number)));
    }

    /// This entry was read and not published.
    pub(super) fn stopped_before(&mut self, number: u64, interrupted: bool) {
        self.interrupted |= interrupted;
        self.read = number - 1;
    }

    /// Tells it, and the exit code.
    pub(super) fn tell(&self, json: bool) -> Result<ExitCode, Failure> {
        for failed in &self.failures {
            match failed.number {
                Some(number) => tell!("mas pub: {} {number}: {}", self.noun, failed.error),
                None => tell!("mas pub: {}", failed.error),
            }
        }
        let untold = self.failed - self.failures.len() as u64;
        if untold > 0 {
            tell!("mas pub: {} more failed", grouped(untold));
        }
        if let Some(resume) = self.resume {
            tell!(
                "mas pub: stopped, since the broker takes no more; {} {resume} is the first that has no \
                 receipt",
                self.noun
            );
        }
        if self.interrupted {
            tell!("mas pub: stopped after {} {}", self.noun, self.read);
        }
        match json {
            true => output::json_line(self)?,
            false => tell!("{}", self.summary()),
        }
        Ok(match self.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "published {} to {} in {:.1} s",
            count(self.published, "message"),
            self.topic,
            self.seconds
        );
        if self.published > 1 {
            text.push_str(&format!(", {}/s", self.rate()));
        }
        if self.duplicates > 0 {
            text.push_str(&format!(", {} known already", grouped(self.duplicates)));
        }
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", grouped(self.failed)));
        }
        if let Some(weakest) = self.weakest {
            text.push_str(&format!("; receipts survive {}", durability(weakest).1));
        }
        text
    }

    fn rate(&self) -> String {
        grouped((self.published as f64 / self.seconds.max(0.001)).round() as u64)
    }
}

/// The name of a durability, and what it survives.
fn durability(durability: Durability) -> (&'static str, &'static str) {
    match durability {
        Durability::Volatile => (
            "volatile",
            "nothing: they live as long as the broker's process",
        ),
        Durability::WriteBehind => (
            "write_behind",
            "the death of the broker's process, but for the last seconds",
        ),
        Durability::Process => ("process", "the death of the broker's process"),
        Durability::Disk => ("disk", "the death of the broker's machine"),
        Durability::Replicated => ("replicated", "the loss of a machine"),
        _ => ("other", "what the backend says"),
    }
}

/// The live line on stderr, for input that takes longer: on a terminal only.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    started: Instant,
    shown: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            terminal: std::io::stderr().is_terminal(),
            started: now,
            shown: now,
        }
    }

    /// Shows how far the run is, once in a while.
    pub(super) fn show(&mut self, report: &Report) {
        if !self.terminal {
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(self.shown) < EVERY {
            return;
        }
        self.shown = now;
        let seconds = now.saturating_duration_since(self.started).as_secs_f64();
        let rate = (report.published as f64 / seconds).round() as u64;
        // Nobody may be reading; the run goes on.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[2K{seconds:.0} s   published {}   {}/s   failed {}",
            grouped(report.published),
            grouped(rate),
            grouped(report.failed)
        );
    }

    /// Clears the line, in favour of the summary.
    pub(super) fn end(&mut self) {
        if self.terminal && self.shown > self.started {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use mas_transport::{ErrorKind, Position};

    use super::*;

    fn report() -> Report {
        let topic = Topic::new("orders").unwrap();
        Report {
            topic: topic.to_string(),
            backend: "redis",
            server: "redis 7.0.15".into(),
            read: 0,
            published: 0,
            duplicates: 0,
            failed: 0,
            bytes: 0,
            durability: None,
            weakest: None,
            seconds: 2.0,
            interrupted: false,
            resume: None,
            failures: Vec::new(),
            noun: "line",
        }
    }

    fn receipt(durability: Durability) -> Receipt {
        Receipt {
            position: Position::default(),
            durability,
            duplicate: false,
        }
    }

    #[test]
    fn the_summary_tells_the_weakest_receipt() {
        let mut report = report();
        report.published(3, receipt(Durability::Disk));
        assert_eq!(
            report.summary(),
            "published 1 message to orders in 2.0 s; receipts survive the death of the broker's \
             machine"
        );
        report.published(3, receipt(Durability::Process));
        report.published(3, receipt(Durability::Disk));
        assert_eq!(
            report.summary(),
            "published 3 messages to orders in 2.0 s, 2/s; receipts survive the death of the \
             broker's process"
        );
        assert_eq!(report.bytes, 9);
    }

    #[test]
    fn the_first_failures_are_kept_and_all_are_counted() {
        let mut report = report();
        let error = Error::new(ErrorKind::Unavailable, "publish", "gone").maybe_stored();
        for number in 3..100 {
            report.failed(number, &error);
            report.give_up_at(number);
        }
        report.give_up_at(2);
        assert_eq!(report.failed, 97);
        assert_eq!(report.resume, Some(2));
        let kept: Vec<_> = report.failures.iter().filter_map(|f| f.number).collect();
        assert_eq!(kept, (3..13).collect::<Vec<_>>());
        assert!(report.failures[0].maybe_stored);
    }
}
