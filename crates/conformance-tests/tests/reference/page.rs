//! A page of docs/reference: generated, checked in, and compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// In place of a value that nobody has found out yet.
pub(crate) const UNKNOWN: &str = "?";

/// Whether the pages are to be written.
pub(crate) fn updates() -> bool {
    std::env::var("UPDATE_DOCS").is_ok_and(|v| v == "1")
}

/// A page as it stands.
#[derive(Debug)]
pub(crate) struct Page {
    path: PathBuf,
    text: String,
    cells: BTreeMap<(String, String), String>,
}

impl Page {
    /// Reads it; one that is not there yet is empty.
    pub(crate) fn read(name: &str) -> Self {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
        let path = docs.join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let cells = cells(&text);
        Self { path, text, cells }
    }

    /// What stands in the row whose first cell is `row`, under `column`.
    pub(crate) fn cell(&self, row: &str, column: &str) -> String {
        let key = (row.to_owned(), column.to_owned());
        self.cells
            .get(&key)
            .map_or(UNKNOWN, String::as_str)
            .to_owned()
    }

    /// Writes the page when `UPDATE_DOCS=1` is set, or else compares it.
    ///
    /// # Errors
    /// Where it differs, or what is unknown in it.
    pub(crate) fn settle(self, new: &str) -> Result<(), String> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        if updates() {
            // Another test may be reading it: it sees the old one or the new one.
            let next = self.path.with_extension("new");
            let written = std::fs::write(&next, new);
            written
                .and_then(|()| std::fs::rename(&next, &self.path))
                .map_err(|e| format!("{}: {e}", self.path.display()))?;
        } else if self.text != new {
            let mut lines = new.lines().zip(self.text.lines());
            let differs = lines.find(|(new, old)| new != old);
            return Err(format!(
                "docs/reference/{name} is not what the code and the servers say. UPDATE_DOCS=1 \
                 scripts/test --full writes it. First difference, wanted and found: {differs:#?}"
            ));
        }
        let unknown = cells(new).into_iter().find(|(_, value)| value == UNKNOWN);
        match unknown {
            Some(((row, column), _)) => Err(format!(
                "docs/reference/{name}: {row} under {column} has not been found out: UPDATE_DOCS=1 \
                 scripts/test --full writes it"
            )),
            None => Ok(()),
        }
    }
}

/// A table of Markdown.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(header.len()));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("{}{rule}{rows}", line(header))
}

/// Every cell of every table, by the first cell of its row and the head of its column.
fn cells(text: &str) -> BTreeMap<(String, String), String> {
    let mut cells = BTreeMap::new();
    let mut header: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some(inner) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            if !line.starts_with("|---") {
                header.clear();
            }
            continue;
        };
        let row: Vec<_> = inner.split(" | ").map(str::to_owned).collect();
        if header.is_empty() {
            header = row;
            continue;
        }
        let first = row.first().cloned().unwrap_or_default();
        for (column, value) in header.iter().zip(row) {
            cells.insert((first.clone(), column.clone()), value);
        }
    }
    cells
}
