//! The figures as files: JSON, Markdown, SVG.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use crate::report::{Report, Row};
use crate::{PAYLOAD, Result, chart};

/// What a run was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// The arguments that it was started with.
    pub(crate) arguments: &'a str,
    /// Nothing but a check that everything runs.
    pub(crate) quick: bool,
    /// Rounds of each workload.
    pub(crate) rounds: usize,
}

/// Writes `figures.json`, `README.md` and the charts into a directory, which is made if need be.
pub(crate) fn write(report: &Report, run: Run<'_>, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let rows = report.rows();
    let mut charts = Vec::new();
    if let Some(chart) = chart::ratios(&rows)? {
        charts.push((
            "ratio.svg",
            "Messages a second by those of the raw client",
            chart,
        ));
    }
    for (backend, file) in [
        ("redis", "redis.svg"),
        ("nats", "nats.svg"),
        ("kafka", "kafka.svg"),
        ("memory", "memory.svg"),
    ] {
        if let Some(chart) = chart::rates(&rows, backend)? {
            charts.push((file, "Messages a second", chart));
        }
    }
    let pictures: Vec<_> = charts
        .iter()
        .map(|(file, words, _)| (*file, *words))
        .collect();
    std::fs::write(to.join("figures.json"), report.json() + "\n")?;
    std::fs::write(
        to.join("README.md"),
        markdown(report, &rows, run, &pictures),
    )?;
    for (file, _, chart) in charts {
        std::fs::write(to.join(file), chart)?;
    }
    Ok(())
}

fn markdown(report: &Report, rows: &[Row], run: Run<'_>, pictures: &[(&str, &str)]) -> String {
    let date = humantime::format_rfc3339(SystemTime::now()).to_string();
    let date = date.split('T').next().unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let separator = if run.arguments.is_empty() { "" } else { " -- " };
    let features = if cfg!(feature = "kafka") {
        " --features kafka"
    } else {
        ""
    };
    let mut page = format!(
        "# Benchmarks

Throughput of `mas-transport`, beside the raw client doing the same work in the same run: the same
fields and payload, one after the other in each round, so that a busy machine slows both. A ratio is
the median over the rounds, of ours by theirs in the same round. `asked` is the ratio below which
`--check` fails.

```console
$ cargo run -p benches --release{features}{separator}{}
```

| | |
|---|---|
",
        run.arguments
    );
    if run.quick {
        page.insert_str(
            "# Benchmarks\n".len(),
            "\n**A quick run: it shows that everything works. The figures mean nothing.**\n",
        );
    }
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(page, "| {name} | {value} |");
        }
    };
    fact("date", date);
    fact("version", env!("CARGO_PKG_VERSION"));
    fact("server", &report.server_names());
    fact(
        "machine",
        &format!(
            "{cores} cores, {} on {}; server and client share them",
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
    );
    fact("payload", &format!("{PAYLOAD} bytes"));
    fact("rounds", &run.rounds.to_string());
    page.push('\n');
    for (file, words) in pictures {
        let _ = writeln!(page, "![{words}]({file})\n");
    }
    page.push_str(
        "| backend | workload | msg/s | raw client, msg/s | ratio | asked | CPU, µs a message | raw client, CPU |
|---|---|--:|--:|--:|--:|--:|--:|
",
    );
    for row in rows {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
        };
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {:.2} | {} |",
            row.backend,
            row.workload,
            thousands(row.rate),
            row.raw_rate.map_or_else(|| "–".to_owned(), thousands),
            number(row.ratio, 2),
            number(row.asked, 2),
            row.cpu_us,
            number(row.raw_cpu_us, 2),
        );
    }
    page.push_str(
        "\nCPU is that of the client's process, for each message; the server's is not in it.\n",
    );
    page
}

/// A whole number with its thousands apart.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut apart = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(thousands(0.0), "0");
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1_000.0), "1,000");
        assert_eq!(thousands(123_456.0), "123,456");
        assert_eq!(thousands(5_000_000.0), "5,000,000");
    }
}
