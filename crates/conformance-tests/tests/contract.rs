//! CONTRACT.md, the table of clauses and the trials say the same.
//!
//! The lists of trials in CONTRACT.md are written by this test when `UPDATE_CONTRACT=1` is set.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use conformance_tests::clauses::CLAUSES;
use conformance_tests::trials::all;

const FILE: &str = "../../CONTRACT.md";
const TRIALS: &str = "Trials: ";

fn read() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    std::fs::read_to_string(path).unwrap()
}

/// Of each clause, its line of trials.
fn lists() -> BTreeMap<&'static str, String> {
    let mut trials: BTreeMap<_, Vec<_>> = CLAUSES.iter().map(|c| (c.id, Vec::new())).collect();
    for def in all() {
        let clause = trials.get_mut(def.clause);
        let clause = clause.unwrap_or_else(|| panic!("{} is of no clause", def.id()));
        assert!(!clause.contains(&def.name), "{} is there twice", def.id());
        clause.push(def.name);
    }
    trials
        .into_iter()
        .map(|(id, names)| {
            let names: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
            (id, format!("{TRIALS}{}.", names.join(", ")))
        })
        .collect()
}

/// The text with the lists of trials as they are.
fn updated(text: &str) -> String {
    let lists = lists();
    let mut new = String::new();
    let mut pending = None;
    for line in text.lines().filter(|l| !l.starts_with(TRIALS)) {
        if line.starts_with('#')
            && let Some(list) = pending.take()
        {
            new.truncate(new.trim_end().len());
            write!(new, "\n\n{list}\n\n").unwrap();
        }
        if let Some(heading) = line.strip_prefix("### ") {
            let id = heading.split(' ').next().unwrap_or_default();
            pending = lists.get(id);
        }
        new.push_str(line);
        new.push('\n');
    }
    if let Some(list) = pending {
        new.truncate(new.trim_end().len());
        write!(new, "\n\n{list}\n").unwrap();
    }
    new
}

#[test]
fn the_headings_are_the_clauses() {
    let text = read();
    let headings: Vec<_> = text
        .lines()
        .filter_map(|l| l.strip_prefix("### "))
        .collect();
    let clauses: Vec<_> = CLAUSES
        .iter()
        .map(|c| format!("{} {}", c.id, c.title))
        .collect();
    assert_eq!(headings, clauses);
}

#[test]
fn every_clause_has_trials_and_lists_them() {
    let text = read();
    let new = updated(&text);
    if std::env::var("UPDATE_CONTRACT").is_ok() {
        // The other test reads the file meanwhile: it sees the old or the new one.
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        let next = file.with_extension("md.new");
        std::fs::write(&next, &new).unwrap();
        std::fs::rename(next, file).unwrap();
    } else {
        let differs = new.lines().zip(text.lines()).find(|(new, old)| new != old);
        assert_eq!(
            text, new,
            "CONTRACT.md does not list the trials as they are; UPDATE_CONTRACT=1 cargo test -p \
             conformance-tests --test contract writes them. First difference: {differs:?}"
        );
    }
    let bare: Vec<_> = CLAUSES
        .iter()
        .map(|c| c.id)
        .filter(|id| !all().iter().any(|d| d.clause == *id))
        .collect();
    assert_eq!(bare, [""; 0], "clauses without a trial");
}
