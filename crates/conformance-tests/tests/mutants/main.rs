//! The suite's own proof: deliberately broken transports, pumps and codecs, each of which the
//! trials of its clause have to find.
//!
//! Every mutant runs against every trial that memory runs, in virtual time, under one seed. It has
//! to be killed by a trial of the clause that it breaks; where nothing else kills it, the clause
//! holds something that no other clause does. To keep this short, trials that are not repeated over
//! seeds (`.once()`, the heavy ones) run only against mutants of their own clause, and a mutant that
//! trials of several other clauses have killed is not run against the rest (`MAS_FULL=1` does both).
//!
//! `cargo test -p conformance-tests mutants -- --nocapture` prints the table, without `--nocapture`
//! only its last lines. `MAS_MUTANT=name` runs one mutant and prints why each trial failed.
//! `MAS_FULL=1 UPDATE_DOCS=1` writes the columns of mutants in docs/reference/clauses.md.

mod closing;
mod codec;
mod delivering;
mod edits;
mod grouping;
mod harness;
mod leasing;
#[path = "../reference/page.rs"]
mod page;
mod publishing;
mod settling;
#[path = "../reference/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use conformance_tests::clauses::CLAUSES;
use conformance_tests::harnesses::MemoryHarness;
use conformance_tests::layers::Hooks;
use conformance_tests::{Broker, Harness, Run, TrialDef, Variant, run, selected};

use libtest_mimic::{Arguments, Failed, Trial};

use edits::{Edits, lock};
use harness::Mutated;

/// A mutant: a bug, and the clause that it breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutant {
    /// The clause.
    pub(crate) clause: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
    /// The bug that it stands for.
    pub(crate) bug: &'static str,
    /// Makes it, for the broker of one trial.
    pub(crate) make: fn(&Arc<dyn Broker>) -> Arc<dyn Hooks>,
}

/// Lists mutants: clause, name, the bug, and how it is made.
macro_rules! mutants {
    ($($clause:ident $name:ident $bug:literal = $make:expr;)*) => {
        pub(crate) const MUTANTS: &[$crate::Mutant] = &[$($crate::Mutant {
            clause: stringify!($clause),
            name: stringify!($name),
            bug: $bug,
            make: $make,
        },)*];
    };
}
pub(crate) use mutants;

/// It re-encodes every message and changes nothing: what it fails is noise.
const CONTROL: Mutant = Mutant {
    clause: "",
    name: "unmutated",
    bug: "none",
    make: |_| Edits::fields(|_, _| {}),
};

/// In the page of clauses, where a clause has no mutant that only its trials kill.
const NONE: &str = "none";
/// Fewest mutants.
const LEAST: usize = 40;
/// How many other clauses have to kill a mutant before the rest is left out.
const ENOUGH: usize = 3;
/// How long a mutated trial may take, in real time: far more than any does that waits only for
/// virtual time.
const LIMIT: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Killed {
    /// Trials that failed, by clause.
    by: BTreeMap<&'static str, Vec<&'static str>>,
    /// How many trials of its clause were run.
    own: usize,
    /// Trials that were given up at the limit.
    stuck: Vec<String>,
    /// How long all of them took, one after the other.
    took: Duration,
}

impl Killed {
    fn others(&self, clause: &str) -> Vec<&'static str> {
        self.by.keys().copied().filter(|c| *c != clause).collect()
    }

    /// The other clauses that killed it by a trial that came to its end.
    fn others_for_certain(&self, clause: &str) -> Vec<&'static str> {
        let ended = |(clause, trials): (&&'static str, &Vec<&str>)| {
            let stuck = |t: &&str| self.stuck.contains(&format!("{clause}_{t}"));
            (!trials.iter().all(stuck)).then_some(*clause)
        };
        let by = self.by.iter().filter_map(ended);
        by.filter(|c| *c != clause).collect()
    }

    fn is_exclusive(&self, clause: &str) -> bool {
        self.by.contains_key(clause) && self.others(clause).is_empty()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let table = arguments.nocapture;
    let name = "mutants_are_killed_by_trials_of_their_clauses";
    let test = Trial::test(name, move || {
        // Trials that fail by a panic are expected here by the hundred.
        std::panic::set_hook(Box::new(|_| {}));
        judge(table).map_err(Failed::from)
    });
    libtest_mimic::run(&arguments, vec![test]).exit_code()
}

fn judge(table: bool) -> Result<(), String> {
    let memory: Arc<dyn Harness> = Arc::new(MemoryHarness::queue());
    let mut trials = selected(&memory).map_err(|e| e.to_string())?;
    let wanted = std::env::var("MAS_MUTANT").ok();
    let mutants: Vec<Mutant> = [
        publishing::MUTANTS,
        delivering::MUTANTS,
        grouping::MUTANTS,
        leasing::MUTANTS,
        settling::MUTANTS,
        codec::MUTANTS,
        closing::MUTANTS,
    ]
    .concat()
    .into_iter()
    .filter(|m| wanted.as_deref().is_none_or(|w| w == m.name))
    .collect();
    let start = Instant::now();
    let noise = run_all(&memory, &[CONTROL], &trials, true);
    let baseline = start.elapsed();
    // What fails anyway proves nothing about mutants.
    let noise = noise.into_iter().next().unwrap_or_default().by;
    let is_noise = |t: &TrialDef| noise.get(t.clause).is_some_and(|n| n.contains(&t.name));
    trials.retain(|t| !is_noise(t));
    let results = run_all(&memory, &mutants, &trials, wanted.is_some());
    if table {
        print_table(&mutants, &results);
    }
    let mut problems = problems(&mutants, &results, wanted.is_some());
    if wanted.is_none()
        && let Err(why) = page_of_clauses(&mutants, &results)
    {
        problems.push(why);
    }
    if !noise.is_empty() {
        problems.push(format!("trials that fail without a mutant: {noise:?}"));
    }
    println!(
        "{} trials, {:.1?} without a mutant, {:.1?} in all",
        trials.len(),
        baseline,
        start.elapsed()
    );
    let mut slow: Vec<_> = results.iter().map(|k| k.took).zip(&mutants).collect();
    slow.sort_by_key(|(took, _)| std::cmp::Reverse(*took));
    for (took, mutant) in slow.iter().take(3) {
        println!("slowest mutants: {took:.1?} {}", mutant.name);
    }
    for (mutant, killed) in mutants.iter().zip(&results) {
        if !killed.stuck.is_empty() {
            println!("given up: {} in {}", mutant.name, killed.stuck.join(", "));
        }
    }
    summary(&mutants, &results);
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("\n")),
    }
}

/// Runs every mutant against every trial, side by side on every core.
fn run_all(
    inner: &Arc<dyn Harness>,
    mutants: &[Mutant],
    trials: &[TrialDef],
    talks: bool,
) -> Vec<Killed> {
    let full = std::env::var("MAS_FULL").is_ok_and(|v| v == "1");
    let trials = dealt(trials);
    let mut jobs: Vec<(usize, TrialDef)> = Vec::new();
    for (at, mutant) in mutants.iter().enumerate() {
        let (own, others): (Vec<_>, Vec<_>) = trials
            .iter()
            .copied()
            .partition(|t| t.clause == mutant.clause);
        let light = |t: &TrialDef| t.seeded || full || mutant.clause.is_empty();
        jobs.extend(own.into_iter().map(|t| (at, t)));
        jobs.extend(others.into_iter().filter(light).map(|t| (at, t)));
    }
    let killed: Vec<Mutex<Killed>> = mutants.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((at, trial)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (Some(mutant), Some(slot)) = (mutants.get(*at), killed.get(*at)) else {
                continue;
            };
            let own = trial.clause == mutant.clause;
            let enough =
                !own && !talks && !full && lock(slot).others(mutant.clause).len() >= ENOUGH;
            if enough {
                continue;
            }
            let harness: Arc<dyn Harness> = Arc::new(Mutated {
                inner: Arc::clone(inner),
                mutant: *mutant,
            });
            let how = Run {
                variant: Variant::Bare,
                seed: 0,
                shaken: false,
                limit: Some(LIMIT),
            };
            let start = Instant::now();
            let verdict = run(&harness, trial, how);
            let mut killed = lock(slot);
            killed.took += start.elapsed();
            killed.own += usize::from(own);
            if let Err(why) = verdict {
                if start.elapsed() >= LIMIT {
                    killed.stuck.push(trial.id());
                }
                killed.by.entry(trial.clause).or_default().push(trial.name);
                if talks {
                    println!("{} {}: {why}", mutant.name, trial.id());
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    killed
        .into_iter()
        .map(|k| k.into_inner().unwrap_or_default())
        .collect()
}

/// The first trial of each clause, then the second of each, and so on: what several clauses kill
/// shows early.
fn dealt(trials: &[TrialDef]) -> Vec<TrialDef> {
    let mut round = BTreeMap::new();
    let mut dealt: Vec<_> = trials
        .iter()
        .map(|trial| {
            let count = round.entry(trial.clause).or_insert(0);
            *count += 1;
            (*count, *trial)
        })
        .collect();
    dealt.sort_by_key(|(round, _)| *round);
    dealt.into_iter().map(|(_, trial)| trial).collect()
}

/// Prints every mutant, by clause.
fn print_table(mutants: &[Mutant], results: &[Killed]) {
    println!("clause | mutant | killed by its own trials | only by them | the bug");
    for clause in CLAUSES {
        let pairs = mutants.iter().zip(results);
        for (mutant, killed) in pairs.filter(|(m, _)| m.clause == clause.id) {
            let own = killed.by.get(clause.id).map_or(&[][..], Vec::as_slice);
            let alone = match killed.is_exclusive(clause.id) {
                true => "yes".to_owned(),
                false => format!("no: {}", killed.others(clause.id).join(" ")),
            };
            println!(
                "{} | {} | {} of {}: {} | {} | {}",
                clause.id,
                mutant.name,
                own.len(),
                killed.own,
                cut(&own.join(", "), 90),
                alone,
                mutant.bug,
            );
        }
    }
}

/// What is wrong with the mutants, or with the trials.
fn problems(mutants: &[Mutant], results: &[Killed], partial: bool) -> Vec<String> {
    let mut problems = Vec::new();
    for clause in CLAUSES {
        let pairs = mutants.iter().zip(results);
        let mut any = false;
        for (mutant, killed) in pairs.filter(|(m, _)| m.clause == clause.id) {
            let dead = killed.by.contains_key(clause.id);
            any |= dead;
            if !dead {
                problems.push(format!(
                    "{} survived the trials of {} ({}): {}",
                    mutant.name, clause.id, clause.title, mutant.bug
                ));
            }
        }
        if !any && !partial {
            problems.push(format!("{} has no mutant that its trials kill", clause.id));
        }
    }
    if partial {
        return problems;
    }
    let names: BTreeSet<_> = mutants.iter().map(|m| m.name).collect();
    if names.len() < mutants.len() {
        problems.push("two mutants have one name".to_owned());
    }
    if mutants.len() < LEAST {
        problems.push(format!("there are {} mutants, not {LEAST}", mutants.len()));
    }
    let alone = with_exclusive(mutants, results).len();
    if alone * 3 < CLAUSES.len() * 2 {
        problems.push(format!(
            "{alone} of {} clauses have a mutant that nothing else kills: two thirds are asked for",
            CLAUSES.len()
        ));
    }
    problems
}

/// The columns of mutants in docs/reference/clauses.md are true. An ordinary run does not try every
/// mutant on every trial, so it sees more of them killed by one clause alone than there are: what the
/// page names has to be among those.
fn page_of_clauses(mutants: &[Mutant], results: &[Killed]) -> Result<(), String> {
    let page = page::Page::read(table::NAME);
    let update = page::updates();
    let mut columns = table::Columns::new();
    for clause in CLAUSES {
        let pairs = mutants.iter().zip(results);
        let own: Vec<_> = pairs.filter(|(m, _)| m.clause == clause.id).collect();
        columns.insert((clause.id, table::MUTANTS), own.len().to_string());
        let alone: Vec<_> = own
            .iter()
            .filter(|(_, killed)| match update {
                true => killed.is_exclusive(clause.id),
                // A trial that was given up on a busy machine says nothing.
                false => killed.others_for_certain(clause.id).is_empty(),
            })
            .map(|(mutant, _)| format!("`{}`", mutant.name))
            .collect();
        let claimed = page.cell(clause.id, table::ALONE);
        let holds = |name: &str| name == NONE || alone.iter().any(|a| a == name);
        let named = match alone.is_empty() {
            true => NONE.to_owned(),
            false => alone.join(", "),
        };
        let column = match !update && claimed.split(", ").all(holds) {
            true => claimed,
            false => named,
        };
        columns.insert((clause.id, table::ALONE), column);
    }
    let new = table::generate(&page, &columns);
    page.settle(&new)
}

/// The clauses that have a mutant which only their own trials kill.
fn with_exclusive(mutants: &[Mutant], results: &[Killed]) -> BTreeSet<&'static str> {
    let pairs = mutants.iter().zip(results);
    pairs
        .filter(|(m, k)| k.is_exclusive(m.clause))
        .map(|(m, _)| m.clause)
        .collect()
}

fn summary(mutants: &[Mutant], results: &[Killed]) {
    let pairs = mutants.iter().zip(results);
    let dead = pairs.filter(|(m, k)| k.by.contains_key(m.clause)).count();
    let alone = with_exclusive(mutants, results);
    let without: Vec<_> = CLAUSES
        .iter()
        .map(|c| c.id)
        .filter(|id| !alone.contains(id))
        .collect();
    println!("clauses without an exclusive mutant: {}", without.join(" "));
    println!(
        "mutants: {dead} killed of {}, clauses with an exclusive mutant: {} of {}",
        mutants.len(),
        alone.len(),
        CLAUSES.len()
    );
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
