//! What was found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use mas_transport::{Error, Finding, Health, Origin, Settings, Severity, TransportInfo};
use serde::Serialize;

use super::capabilities::{Row, rows};
use crate::failure::Failure;
use crate::text::{Table, harmless};

const HEADING: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default().bold();

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    verdict: Verdict,
    backend: String,
    settings: Vec<Setting>,
    /// What keeps it from working.
    problems: Vec<Problem>,
    connection: Option<Connection>,
    /// What loses messages, or has no effect.
    warnings: Vec<Remark>,
    /// What may lose messages in rare cases: to be weighed, and no reason to fail.
    notes: Vec<Remark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warnings,
    Broken,
}

#[derive(Debug, Serialize)]
struct Setting {
    name: &'static str,
    value: Option<String>,
    origin: String,
    set: bool,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// The setting; none when it is about the backend or the connection.
    name: Option<String>,
    value: Option<String>,
    origin: Option<String>,
    problem: String,
    advice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Remark {
    /// The setting; none when it is about the server.
    name: Option<String>,
    problem: String,
    advice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Connection {
    server: String,
    latency_ms: f64,
    facts: BTreeMap<&'static str, String>,
    capabilities: Vec<Row>,
}

/// What a connection told.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) info: Arc<TransportInfo>,
    pub(super) health: Health,
}

impl Report {
    fn new(settings: &Settings) -> Self {
        let shown = |setting: &mas_transport::Setting| Setting {
            name: setting.name(),
            value: setting.shown().map(harmless),
            origin: harmless(&setting.origin().to_string()),
            set: setting.is_set(),
        };
        let warnings = settings.cautions().iter().map(|caution| Remark {
            name: Some(harmless(&caution.name)),
            problem: caution.what.clone(),
            advice: None,
        });
        Self {
            verdict: Verdict::Ok,
            backend: settings.backend().to_owned(),
            settings: settings.iter().map(shown).collect(),
            problems: Vec::new(),
            connection: None,
            warnings: warnings.collect(),
            notes: Vec::new(),
        }
    }

    /// The configuration cannot be used.
    pub(super) fn refused(settings: &Settings, error: &Error) -> Self {
        let mut report = Self::new(settings);
        let problems = settings.problems().iter().map(|problem| Problem {
            name: Some(harmless(&problem.name)),
            value: problem.value.as_deref().map(harmless),
            origin: match &problem.origin {
                Origin::Default => None,
                // The name says it.
                Origin::Environment(name) if *name == problem.name => None,
                found => Some(harmless(&found.to_string())),
            },
            problem: problem.what.clone(),
            advice: problem.allowed.clone(),
        });
        report.problems = problems.collect();
        if report.problems.is_empty() {
            report.add(error.to_string(), None);
        }
        report.judged()
    }

    /// The broker cannot be used.
    pub(super) fn unreachable(settings: &Settings, failure: &Failure) -> Self {
        let mut report = Self::new(settings);
        report.add(
            failure.message().to_owned(),
            failure.advice().map(str::to_owned),
        );
        report.judged()
    }

    /// The broker answers.
    pub(super) fn connected(settings: &Settings, connected: Connected) -> Self {
        let Connected { info, health } = connected;
        let mut report = Self::new(settings);
        for Finding {
            severity,
            problem,
            advice,
            ..
        } in health.findings
        {
            let remarks = match severity {
                Severity::Note => &mut report.notes,
                Severity::Warning => &mut report.warnings,
                // Worse, or not known to be harmless.
                _ => {
                    report.add(problem, Some(advice));
                    continue;
                }
            };
            remarks.push(Remark {
                name: None,
                problem,
                advice: Some(advice),
            });
        }
        report.connection = Some(Connection {
            server: health.server,
            latency_ms: (health.latency.as_secs_f64() * 1e6).round() / 1e3,
            facts: health.facts,
            capabilities: rows(&info.capabilities),
        });
        report.judged()
    }

    fn add(&mut self, problem: String, advice: Option<String>) {
        self.problems.push(Problem {
            name: None,
            value: None,
            origin: None,
            problem,
            advice,
        });
    }

    fn judged(mut self) -> Self {
        self.verdict = match (self.problems.is_empty(), self.warnings.is_empty()) {
            (false, _) => Verdict::Broken,
            (true, false) => Verdict::Warnings,
            (true, true) => Verdict::Ok,
        };
        self
    }

    /// The exit code.
    pub(super) fn exit(&self) -> ExitCode {
        match self.verdict {
            Verdict::Ok => ExitCode::SUCCESS,
            Verdict::Warnings => ExitCode::FAILURE,
            Verdict::Broken => ExitCode::from(Failure::EXIT),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading =
            |f: &mut fmt::Formatter<'_>, text: &str| writeln!(f, "{HEADING}{text}{HEADING:#}");
        heading(f, &format!("Configuration of {}", harmless(&self.backend)))?;
        let mut table = Table::new(["  NAME", "VALUE", "ORIGIN"]);
        for setting in &self.settings {
            table.row([
                format!("  {}", setting.name),
                setting.value.clone().unwrap_or_else(|| "-".to_owned()),
                setting.origin.clone(),
            ]);
        }
        writeln!(f, "{table}")?;
        if let Some(connection) = &self.connection {
            heading(f, "Server")?;
            let mut table = Table::new(["  NAME", "VALUE"]);
            table.row(["  server".to_owned(), connection.server.clone()]);
            let latency = format!("{:.2} ms", connection.latency_ms);
            table.row(["  latency".to_owned(), latency]);
            for (name, value) in &connection.facts {
                table.row([format!("  {name}"), harmless(value)]);
            }
            writeln!(f, "{table}")?;
            heading(f, "Capabilities")?;
            let mut table = Table::new(["  NAME", "VALUE", "MEANING"]);
            for row in &connection.capabilities {
                table.row([
                    format!("  {}", row.name),
                    row.shown.clone(),
                    row.about.to_owned(),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        heading(f, "Verdict")?;
        for problem in &self.problems {
            let mut what = String::new();
            if let Some(name) = &problem.name {
                what.push_str(name);
                if let Some(value) = &problem.value {
                    what.push_str(&format!("={value}"));
                }
                if let Some(origin) = &problem.origin {
                    what.push_str(&format!(" ({origin})"));
                }
                what.push_str(": ");
            }
            what.push_str(&problem.problem);
            writeln!(f, "  {BAD}wrong{BAD:#}    {what}")?;
            if let Some(advice) = &problem.advice {
                writeln!(f, "           {advice}")?;
            }
        }
        if self.verdict == Verdict::Ok {
            writeln!(f, "  {GOOD}fine{GOOD:#}     nothing is wrong")?;
        }
        for (remarks, label, style) in [
            (&self.warnings, "warning", DOUBTFUL),
            (&self.notes, "note   ", HEADING),
        ] {
            for remark in remarks {
                let name = remark.name.as_ref().map(|name| format!("{name}: "));
                let name = name.unwrap_or_default();
                writeln!(f, "  {style}{label}{style:#}  {name}{}", remark.problem)?;
                if let Some(advice) = &remark.advice {
                    writeln!(f, "           {advice}")?;
                }
            }
        }
        Ok(())
    }
}
