//! The table of clauses, whose columns come from two tests: each keeps those of the other.

use std::collections::BTreeMap;

use conformance_tests::clauses::CLAUSES;

use crate::page::{Page, table};

pub(crate) const NAME: &str = "clauses.md";
/// A column for each backend, or class of its servers.
pub(crate) const BACKENDS: [&str; 6] = [
    "memory",
    "memory-log",
    "redis 6.2",
    "redis 7.0 and newer",
    "nats",
    "kafka",
];
/// The mutants of the clause.
pub(crate) const MUTANTS: &str = "mutants";
/// Those that only the clause's trials kill.
pub(crate) const ALONE: &str = "which no other clause's trials kill";

/// What was found out, by clause and column.
pub(crate) type Columns = BTreeMap<(&'static str, &'static str), String>;

/// The page, with what was found out, and the rest as it was.
pub(crate) fn generate(page: &Page, columns: &Columns) -> String {
    let names = BACKENDS.into_iter().chain([MUTANTS, ALONE]);
    let mut header = vec!["clause".to_owned(), "promise".to_owned()];
    header.extend(names.clone().map(str::to_owned));
    let rows: Vec<_> = CLAUSES
        .iter()
        .map(|clause| {
            let mut row = vec![clause.id.to_owned(), clause.title.to_owned()];
            row.extend(names.clone().map(|column| {
                let found = columns.get(&(clause.id, column)).cloned();
                found.unwrap_or_else(|| page.cell(clause.id, column))
            }));
            row
        })
        .collect();
    format!(
        "# Clauses

How each clause of [CONTRACT.md](../../CONTRACT.md) is proven: the number of trials that each
backend runs on every push, and the deliberately broken libraries (mutants) that these trials catch.

A trial is *declared away* where the backend's [capabilities](capabilities.md) say so, and *out of
reach* where the test bench cannot do to this backend what the trial needs (memory has no process to
kill). Every mutant is killed by the trials of its own clause; the last column names those that would
live on without them.

Tests compare this page; do not edit it.

{}",
        table(&header, &rows)
    )
}
