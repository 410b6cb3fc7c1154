//! The figures as pictures.

use charts_rs::{HorizontalBarChart, Series, THEME_LIGHT};

use crate::Result;
use crate::report::Row;

/// Width of a chart.
const WIDTH: f32 = 900.0;
/// Height of what is around the bars.
const FRAME: f32 = 110.0;
/// Height of one bar, with the space around it.
const BAR: f32 = 26.0;

/// Ours by the raw client's, of every workload that has both; `None` where none has.
pub(crate) fn ratios(rows: &[Row]) -> Result<Option<String>> {
    // Charts count their bars from below.
    let both: Vec<_> = rows
        .iter()
        .rev()
        .filter(|row| row.ratio.is_some())
        .collect();
    let names = both.iter().map(|row| row.title()).collect();
    let values = both.iter().map(|row| row.ratio.map(|r| r as f32)).collect();
    let series = vec![Series::new_nullable("ratio".to_owned(), values)];
    bars(
        "Messages a second, by those of the raw client",
        HUNDREDTHS,
        series,
        names,
    )
}

/// Messages a second on one backend, beside the raw client's where there are any; `None` where
/// nothing was measured.
pub(crate) fn rates(rows: &[Row], backend: &str) -> Result<Option<String>> {
    let rows: Vec<_> = rows
        .iter()
        .rev()
        .filter(|row| row.backend == backend)
        .collect();
    let names = rows.iter().map(|row| row.title()).collect();
    let ours = rows.iter().map(|row| row.rate as f32).collect();
    let mut series = vec![Series::new("mas-transport".to_owned(), ours)];
    let raw: Vec<_> = rows
        .iter()
        .map(|row| row.raw_rate.map(|r| r as f32))
        .collect();
    if raw.iter().any(Option::is_some) {
        series.push(Series::new_nullable("raw client".to_owned(), raw));
    }
    bars(
        &format!("Messages a second, {backend}"),
        THOUSANDS,
        series,
        names,
    )
}

/// Two digits after the point.
const HUNDREDTHS: &str = "{:.2}";
/// Thousands apart.
const THOUSANDS: &str = "{t}";

fn bars(
    title: &str,
    format: &str,
    mut series: Vec<Series>,
    names: Vec<String>,
) -> Result<Option<String>> {
    if names.is_empty() {
        return Ok(None);
    }
    let count = names.len() * series.len();
    for one in &mut series {
        one.label_show = true;
    }
    let alone = series.len() == 1;
    let mut chart = HorizontalBarChart::new_with_theme(series, names, THEME_LIGHT);
    chart.width = WIDTH;
    chart.height = FRAME + BAR * count as f32;
    chart.title.text = title.to_owned();
    chart.legend.show = Some(!alone);
    // The longest bar ends at the last tick: room for its label.
    chart.margin.right = 60.0;
    chart.series.label.formatter = format.to_owned();
    for axis in &mut chart.y_axis_configs {
        axis.min = Some(0.0);
        // The ticks of ratios are few enough to say as they are.
        axis.formatter = (format == THOUSANDS).then(|| format.to_owned());
    }
    let svg = chart.svg().map_err(|e| e.to_string())?;
    // Measured with a font that not every reader has.
    Ok(Some(svg.replace("\"Roboto\"", "\"Roboto, sans-serif\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &'static str, ratio: Option<f64>) -> Row {
        Row {
            backend,
            workload: "publish <all>",
            rate: 120_000.0,
            raw_rate: ratio.map(|r| 120_000.0 / r),
            ratio,
            asked: None,
            cpu_us: 1.0,
            raw_cpu_us: None,
        }
    }

    #[test]
    fn charts_show_what_was_measured() {
        let rows = [row("redis", Some(1.25)), row("memory", None)];
        let chart = ratios(&rows).unwrap().unwrap();
        assert!(
            chart.starts_with("<svg") && chart.ends_with("</svg>"),
            "{chart}"
        );
        assert!(chart.contains("\n1.25\n"), "{chart}");
        // Names are text, not markup.
        assert!(chart.contains("publish &lt;all&gt;"), "{chart}");
        assert!(
            !chart.contains("\nraw client\n"),
            "one series has no legend: {chart}"
        );
        let chart = rates(&rows, "redis").unwrap().unwrap();
        assert!(chart.contains("\nraw client\n"), "{chart}");
        let chart = rates(&rows, "memory").unwrap().unwrap();
        assert!(!chart.contains("\nraw client\n"), "{chart}");
        assert_eq!(rates(&rows, "kafka").unwrap(), None);
        assert_eq!(ratios(&rows[1..]).unwrap(), None);
    }
}
