//! The figures.

use std::fmt;

use serde::Serialize;

use crate::meter::Sample;

/// The figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    servers: Vec<String>,
    figures: Vec<Figure>,
}

/// One workload.
#[derive(Debug)]
pub(crate) struct Figure {
    backend: &'static str,
    workload: &'static str,
    asked: Option<f64>,
    ours: Vec<Sample>,
    raw: Vec<Sample>,
}

/// What came out of a workload.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The backend.
    pub(crate) backend: &'static str,
    /// The workload.
    pub(crate) workload: &'static str,
    /// Messages a second.
    pub(crate) rate: f64,
    /// Those of the raw client, where there is one.
    pub(crate) raw_rate: Option<f64>,
    /// Ours by theirs.
    pub(crate) ratio: Option<f64>,
    /// The least ratio that is asked for.
    pub(crate) asked: Option<f64>,
    /// CPU time of this process for each message, in microseconds.
    pub(crate) cpu_us: f64,
    /// The same of the raw client.
    pub(crate) raw_cpu_us: Option<f64>,
}

impl Figure {
    /// A workload; `asked` is the least ratio by the raw client.
    pub(crate) fn new(backend: &'static str, workload: &'static str, asked: Option<f64>) -> Self {
        Self {
            backend,
            workload,
            asked,
            ours: Vec::new(),
            raw: Vec::new(),
        }
    }

    /// Notes a round.
    pub(crate) fn round(&mut self, ours: Sample, raw: Option<Sample>) {
        self.ours.push(ours);
        self.raw.extend(raw);
    }

    fn row(&self) -> Row {
        let of = |samples: &[Sample], what: fn(&Sample) -> f64| {
            median(&samples.iter().map(what).collect::<Vec<_>>())
        };
        let pairs = self.ours.iter().zip(&self.raw);
        let ratios: Vec<_> = pairs.map(|(ours, raw)| ours.rate / raw.rate).collect();
        Row {
            backend: self.backend,
            workload: self.workload,
            rate: of(&self.ours, |s| s.rate).unwrap_or_default().round(),
            raw_rate: of(&self.raw, |s| s.rate).map(f64::round),
            ratio: median(&ratios).map(thousandths),
            asked: self.asked,
            cpu_us: thousandths(of(&self.ours, |s| s.cpu).unwrap_or_default()),
            raw_cpu_us: of(&self.raw, |s| s.cpu).map(thousandths),
        }
    }
}

fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Row {
    /// The workload and its backend.
    pub(crate) fn title(&self) -> String {
        format!("{} ({})", self.workload, self.backend)
    }

    fn holds(&self) -> bool {
        match (self.ratio, self.asked) {
            (Some(ratio), Some(asked)) => ratio >= asked,
            _ => true,
        }
    }
}

impl Report {
    /// Names a broker.
    pub(crate) fn server(&mut self, server: String) {
        self.servers.push(server);
    }

    /// Adds a workload, and shows it to those who wait.
    pub(crate) fn add(&mut self, figure: Figure) {
        let row = figure.row();
        eprintln!("{} {}: {:.0}/s", row.backend, row.workload, row.rate);
        self.figures.push(figure);
    }

    /// Whether every ratio is as asked.
    pub(crate) fn holds(&self) -> bool {
        self.figures.iter().all(|figure| figure.row().holds())
    }

    /// The brokers' names; empty where none was asked.
    pub(crate) fn server_names(&self) -> String {
        self.servers.join(", ")
    }

    /// What came out, workload by workload.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.figures.iter().map(Figure::row).collect()
    }

    /// One line.
    pub(crate) fn json(&self) -> String {
        serde_json::json!({
            "server": self.server_names(),
            "payload": crate::PAYLOAD,
            "figures": self.rows(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            writeln!(f, "{server}")?;
        }
        write!(
            f,
            "{:<8}{:<40}{:>11}{:>11}{:>7}{:>7}{:>9}{:>9}",
            "backend", "workload", "msg/s", "raw msg/s", "ratio", "asked", "cpu us", "raw cpu"
        )?;
        for row in self.figures.iter().map(Figure::row) {
            let number = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            write!(
                f,
                "\n{:<8}{:<40}{:>11.0}{:>11}{:>7}{:>7}{:>9.2}{:>9}{}",
                row.backend,
                row.workload,
                row.rate,
                number(row.raw_rate, 0),
                number(row.ratio, 2),
                number(row.asked, 2),
                row.cpu_us,
                number(row.raw_cpu_us, 2),
                if row.holds() { "" } else { "  below" },
            )?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rate: f64) -> Sample {
        Sample { rate, cpu: 1.5 }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let mut figure = Figure::new("redis", "publish", Some(0.9));
        // Ratios 0.5, 1.0 and 2.0; the second round was on a busy machine.
        for (ours, raw) in [(100.0, 200.0), (10.0, 10.0), (400.0, 200.0)] {
            figure.round(sample(ours), Some(sample(raw)));
        }
        let row = figure.row();
        assert_eq!(
            (row.rate, row.raw_rate, row.ratio),
            (100.0, Some(200.0), Some(1.0))
        );
        assert!(row.holds());
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn the_table_and_the_json() {
        let mut report = Report::default();
        report.server("redis 7.0.15".into());
        let mut low = Figure::new("redis", "publish", Some(0.9));
        low.round(sample(100.0), Some(sample(200.0)));
        report.add(low);
        let mut alone = Figure::new("memory", "fetch", None);
        alone.round(sample(5_000_000.0), None);
        report.add(alone);
        assert!(!report.holds());
        let table = report.to_string();
        assert!(
            table.contains("100        200   0.50   0.90     1.50     1.50  below"),
            "{table}"
        );
        assert_eq!(
            report.json(),
            concat!(
                r#"{"figures":[{"asked":0.9,"backend":"redis","cpu_us":1.5,"rate":100.0,"#,
                r#""ratio":0.5,"raw_cpu_us":1.5,"raw_rate":200.0,"workload":"publish"},"#,
                r#"{"asked":null,"backend":"memory","cpu_us":1.5,"rate":5000000.0,"#,
                r#""ratio":null,"raw_cpu_us":null,"raw_rate":null,"workload":"fetch"}],"#,
                r#""payload":256,"server":"redis 7.0.15"}"#
            )
        );
    }
}
