//! Text for people: numbers, durations, columns.

use std::fmt;
use std::time::Duration;

/// A number with its thousands set apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 message`, `2,000 messages`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        many => format!("{} {thing}s", grouped(many)),
    }
}

/// Reads a duration that is more than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it is more than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write 500ms, 10s or 2h")),
    }
}

/// Text that another program may have written, without what a terminal would obey.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

/// Columns side by side, under a heading.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
    /// Which columns hold numbers, which stand to the right.
    numbers: [bool; N],
}

impl<const N: usize> Table<N> {
    /// A table with these headings; those that begin with `#` are of numbers.
    pub(crate) fn new(headings: [&str; N]) -> Self {
        Self {
            numbers: headings.map(|heading| heading.starts_with('#')),
            rows: vec![headings.map(|heading| heading.trim_start_matches('#').to_owned())],
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = |cell: &String| cell.chars().count();
        let widths: [usize; N] =
            std::array::from_fn(|i| self.rows.iter().map(|row| wide(&row[i])).max().unwrap_or(0));
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), number) in row.iter().zip(widths).zip(self.numbers) {
                match number {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(count(1, "line"), "1 line");
        assert_eq!(count(2_000, "line"), "2,000 lines");
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let mut table = Table::new(["TOPIC", "#LAG"]);
        table.row(["a".into(), "1,000".into()]);
        table.row(["orders".into(), "2".into()]);
        assert_eq!(
            table.to_string(),
            "TOPIC     LAG\na       1,000\norders      2\n"
        );
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        assert_eq!(harmless("é\u{1b}[2J\n"), "é\\u{1b}[2J\\n");
    }
}
