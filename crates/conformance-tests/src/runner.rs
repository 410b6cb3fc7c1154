//! Running trials: one by one, as a suite, and as a program.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use mas_transport_core::{Capabilities, Namespace, TransportInfo};

use crate::child;
use crate::clauses::CLAUSES;
use crate::ctx::{Ctx, Parts};
use crate::harness::{Failure, Harness, Setup, Variant, Verdict};
use crate::history::History;
use crate::logs;
use crate::registry::{Tier, TrialDef};
use crate::trials::all;

/// How much virtual time a trial may take: only one that will never end takes that much.
const VIRTUAL_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How many trials run side by side: on a real broker they mostly wait.
const SIDE_BY_SIDE: usize = 8;
/// How much of the history a failure shows, unless `MAS_TAIL` says otherwise.
const TAIL: usize = 40;

/// How many panics of one trial are remembered.
const MOST_PANICS: usize = 10_000;

/// How to run a trial.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How its transports are put together.
    pub variant: Variant,
    /// Its seed.
    pub seed: u64,
    /// Yields are inserted.
    pub shaken: bool,
    /// Another limit of real time than the trial's own.
    pub limit: Option<Duration>,
}

impl Run {
    /// Bare, with the seed of the environment (`MAS_SEED`) or the default one.
    pub fn new() -> Self {
        Self {
            variant: Variant::Bare,
            seed: base_seed(),
            shaken: false,
            limit: None,
        }
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

fn base_seed() -> u64 {
    let text = std::env::var("MAS_SEED").unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one trial, on a thread and a runtime of its own, and judges its history.
///
/// # Errors
/// Why it failed, with the backend, the seed and the end of the transcript. A trial that is still
/// running at its limit of real time has failed; its thread is left behind.
pub fn run(harness: &Arc<dyn Harness>, def: &TrialDef, how: Run) -> Result<(), String> {
    listen_for_panics();
    let thread = format!("{}-{}", def.id(), THREADS.fetch_add(1, Ordering::Relaxed));
    let history = Arc::new(OnceLock::new());
    let (done, wait) = mpsc::sync_channel(1);
    let spawned = {
        let (harness, history, def) = (Arc::clone(harness), Arc::clone(&history), *def);
        let name = thread.clone();
        thread::Builder::new().name(thread.clone()).spawn(move || {
            let work = || {
                block_on(
                    &name,
                    harness.timing().paused,
                    drive(harness, def, how, history),
                )
            };
            let verdict = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|panic| Err(format!("it panicked: {}", words(&panic)).into()));
            // Nobody waits any more when the limit has passed.
            let _ = done.send(verdict);
        })
    };
    let limit = how.limit.unwrap_or(def.limit + harness.timing().slower);
    let mut verdict = match spawned {
        Ok(_) => wait.recv_timeout(limit).unwrap_or_else(|_| {
            Err(
                format!("it was still running after {limit:?} of real time: stuck, or spinning")
                    .into(),
            )
        }),
        Err(e) => Err(e.into()),
    };
    for panic in lock(&PANICS).remove(&thread).unwrap_or_default() {
        if let Some(reason) = harness.known_panic(&panic) {
            println!(
                "KNOWN FAULT trial={}::{} reason={reason}",
                harness.name(),
                def.id()
            );
        } else if verdict.is_ok() {
            verdict = Err(format!("a task panicked: {panic}").into());
        }
    }
    verdict.map_err(|why| {
        let tail = std::env::var("MAS_TAIL").ok();
        let tail = tail.and_then(|t| t.parse().ok()).unwrap_or(TAIL);
        let transcript = history.get().map(|h: &Arc<History>| h.tail(tail));
        format!(
            "{why}\n  backend {}{}, seed {} (MAS_SEED={}){}\n  transcript:\n{}",
            harness.name(),
            how.variant.suffix(),
            how.seed,
            how.seed,
            if how.shaken {
                ", with inserted yields"
            } else {
                ""
            },
            transcript.unwrap_or_default(),
        )
    })
}

static THREADS: AtomicU64 = AtomicU64::new(0);

fn block_on<T>(
    name: &str,
    paused: bool,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = if paused {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()?
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()?
    };
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::from_secs(1));
    output
}

async fn drive(
    harness: Arc<dyn Harness>,
    def: TrialDef,
    how: Run,
    slot: Arc<OnceLock<Arc<History>>>,
) -> Verdict {
    let history = Arc::new(History::new());
    let _ = slot.set(Arc::clone(&history));
    let setup = Setup {
        namespace: fresh_namespace()?,
        own: def.own,
        seed: how.seed,
        needs: def.needs,
    };
    let broker = harness.broker(&setup).await?;
    let first = broker.connect().await?;
    let info = first.info();
    first
        .close(tokio::time::Instant::now() + Duration::from_secs(5))
        .await?;
    drop(first);
    let ctx = Ctx::new(Parts {
        harness: harness.name().to_owned(),
        broker: Arc::clone(&broker),
        namespace: setup.namespace,
        timing: harness.timing(),
        variant: how.variant,
        shaken: how.shaken,
        seed: how.seed,
        history,
        info,
    });
    let limit = if harness.timing().paused {
        VIRTUAL_LIMIT
    } else {
        def.limit + harness.timing().slower
    };
    let mut verdict = match tokio::time::timeout(limit, (def.run)(ctx.clone())).await {
        Ok(verdict) => verdict,
        Err(_) => Err(format!("it did not end within {limit:?}").into()),
    };
    if verdict.is_ok() {
        verdict = ctx.judge();
    }
    broker.end().await;
    verdict
}

/// A namespace that nobody else has: of this process, this run and this trial.
fn fresh_namespace() -> Result<Namespace, Failure> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| rand::random::<u64>() >> 24);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(Namespace::new(format!("t{:010x}-{number:x}", *PROCESS))?)
}

static PANICS: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

/// Panics in spawned tasks are seen by nobody else: their threads carry the trial's name.
fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(name) = thread::current().name() {
                let mut panics = lock(&PANICS);
                let panics = panics.entry(name.to_owned()).or_default();
                // A task that panics again and again is told once or twice.
                if panics.len() < MOST_PANICS {
                    panics.push(panic.to_string());
                }
            }
            usual(panic);
        }));
    });
}

fn words(panic: &Box<dyn Any + Send>) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// Why a trial is left out.
enum Left {
    /// The backend does not declare what it is about.
    Capability(&'static str),
    /// The harness cannot do what it needs.
    Ability(String),
    /// It is for another day.
    Tier,
}

fn left_out(harness: &dyn Harness, can: &Capabilities, def: &TrialDef) -> Option<Left> {
    if let Some((why, declared)) = def.when
        && !declared(can)
    {
        return Some(Left::Capability(why));
    }
    let missing: Vec<_> = def
        .needs
        .iter()
        .filter(|n| !harness.abilities().contains(n))
        .collect();
    if !missing.is_empty() {
        return Some(Left::Ability(format!("the harness cannot {missing:?}")));
    }
    (def.tier == Tier::Soak && !full()).then_some(Left::Tier)
}

fn full() -> bool {
    std::env::var("MAS_FULL").is_ok_and(|v| v == "1")
}

/// The trials of a backend, for `libtest_mimic::run`: every trial in every variant, the repeats
/// over seeds where time is virtual, and the check that no clause is left out without a reason.
pub fn suite(harness: Arc<dyn Harness>) -> Vec<Trial> {
    let name = harness.name().to_owned();
    let info = match probe(&harness) {
        Ok(info) => info,
        Err(why) => {
            eprintln!("SKIPPED backend={name} reason={why}");
            // Profiles of a backend (`redis-capped`) need the same broker.
            let backend = name.split('-').next().unwrap_or_default();
            let variable = format!("REQUIRE_{}", backend.to_uppercase());
            let required = std::env::var(&variable).is_ok_and(|v| v == "1");
            let message = format!("{variable}=1 and there is no broker: {why}");
            let there = Trial::test(format!("{name}::a_broker_is_there"), || Err(message.into()));
            return vec![there.with_ignored_flag(!required)];
        }
    };
    let can = info.capabilities;
    let concerned = |clause: &str| harness.clauses().is_none_or(|c| c.contains(&clause));
    let mut defs = all();
    defs.retain(|def| concerned(def.clause));
    let mut trials = Vec::new();
    let mut uncovered: HashMap<&str, Option<String>> = CLAUSES
        .iter()
        .filter(|c| concerned(c.id))
        .map(|c| (c.id, Some("it has no trial".to_owned())))
        .collect();
    for def in &defs {
        let left = left_out(harness.as_ref(), &can, def);
        let reason = match &left {
            None | Some(Left::Capability(_) | Left::Tier) => {
                uncovered.insert(def.clause, None);
                None
            }
            Some(Left::Ability(why)) => Some(why.clone()),
        };
        if let (Some(why), Some(Some(known))) = (reason, uncovered.get_mut(def.clause)) {
            *known = why;
        }
        let left = left.map(|l| match l {
            Left::Capability(why) => format!("{} does not declare it: {why}", info.server),
            Left::Ability(why) => why,
            Left::Tier => "only with MAS_FULL=1".to_owned(),
        });
        for &variant in harness.variants() {
            let test = format!("{name}{}::{}", variant.suffix(), def.id());
            if let Some(why) = left.clone() {
                eprintln!("SKIPPED trial={test} reason={why}");
                let skipped = Trial::test(test, move || Err(why.into()));
                trials.push(skipped.with_ignored_flag(true));
                continue;
            }
            let (harness, def) = (Arc::clone(&harness), *def);
            let how = Run {
                variant,
                ..Run::new()
            };
            trials.push(Trial::test(test.clone(), move || {
                timed(test, || run(&harness, &def, how))
            }));
        }
    }
    let uncovered: Vec<_> = CLAUSES
        .iter()
        .filter_map(|c| Some((c.id, uncovered.get(c.id)?.clone()?)))
        .collect();
    trials.push(Trial::test(
        format!("{name}::every_clause_is_covered"),
        move || {
            if uncovered.is_empty() {
                return Ok(());
            }
            Err(format!(
                "clauses without a trial here, and no capability explains it: {uncovered:?}"
            )
            .into())
        },
    ));
    if harness.timing().paused {
        trials.extend(over_seeds(&harness, &can, &defs));
    }
    trials
}

/// The trials that apply to a backend, as [`suite`] picks them.
///
/// # Errors
/// When there is no broker to be had.
pub fn selected(harness: &Arc<dyn Harness>) -> Result<Vec<TrialDef>, Failure> {
    let can = probe(harness)?.capabilities;
    let applies = |def: &TrialDef| left_out(harness.as_ref(), &can, def).is_none();
    Ok(all().into_iter().filter(applies).collect())
}

/// The trials of one clause on one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Coverage {
    /// The id of the clause.
    pub clause: &'static str,
    /// How many run, those of the soak tier included.
    pub run: usize,
    /// How many the backend's capabilities leave out.
    pub declared_away: usize,
    /// How many the harness is not able to run.
    pub unable: usize,
}

/// What a backend is, and how many trials of each clause it runs, as [`suite`] picks them.
///
/// # Errors
/// When there is no broker to be had.
pub fn coverage(
    harness: &Arc<dyn Harness>,
) -> Result<(Arc<TransportInfo>, Vec<Coverage>), Failure> {
    let info = probe(harness)?;
    let defs = all();
    let of = |clause: &'static str| {
        let mut coverage = Coverage {
            clause,
            run: 0,
            declared_away: 0,
            unable: 0,
        };
        for def in defs.iter().filter(|d| d.clause == clause) {
            match left_out(harness.as_ref(), &info.capabilities, def) {
                None | Some(Left::Tier) => coverage.run += 1,
                Some(Left::Capability(_)) => coverage.declared_away += 1,
                Some(Left::Ability(_)) => coverage.unable += 1,
            }
        }
        coverage
    };
    let counts = CLAUSES.iter().map(|c| of(c.id)).collect();
    Ok((info, counts))
}

fn probe(harness: &Arc<dyn Harness>) -> Result<Arc<TransportInfo>, Failure> {
    let harness = Arc::clone(harness);
    block_on("probe", harness.timing().paused, async move {
        let setup = Setup {
            namespace: fresh_namespace()?,
            own: false,
            seed: 0,
            needs: &[],
        };
        let broker = harness.broker(&setup).await?;
        let transport = broker.connect().await?;
        let info = transport.info();
        transport
            .close(tokio::time::Instant::now() + Duration::from_secs(5))
            .await?;
        broker.end().await;
        Ok(info)
    })
}

#[derive(Default)]
struct Seeds {
    green: usize,
    all: usize,
    trials: usize,
}

static SEEDS: Mutex<BTreeMap<String, Seeds>> = Mutex::new(BTreeMap::new());

/// Every seeded trial again under other seeds, with inserted yields; one test per seed.
fn over_seeds(harness: &Arc<dyn Harness>, can: &Capabilities, defs: &[TrialDef]) -> Vec<Trial> {
    let count = if full() { 100 } else { 20 };
    let defs: Vec<_> = defs
        .iter()
        .filter(|d| d.seeded && left_out(harness.as_ref(), can, d).is_none())
        .copied()
        .collect();
    let defs = Arc::new(defs);
    let one = |n: u64| {
        let test = format!("{}::seed_{n:03}", harness.name());
        let (harness, defs) = (Arc::clone(harness), Arc::clone(&defs));
        let variants = harness.variants();
        let variant = variants.get(n as usize % variants.len().max(1));
        let how = Run {
            variant: variant.copied().unwrap_or(Variant::Bare),
            seed: base_seed().wrapping_add(n),
            shaken: true,
            limit: None,
        };
        Trial::test(test.clone(), move || {
            let result = timed(test, || {
                let failed = |def: &TrialDef| {
                    let why = run(&harness, def, how).err()?;
                    Some(format!("{}: {why}\n", def.id()))
                };
                let failures: String = defs.iter().filter_map(failed).collect();
                if failures.is_empty() {
                    Ok(())
                } else {
                    Err(failures)
                }
            });
            let mut seeds = lock(&SEEDS);
            let seeds = seeds.entry(harness.name().to_owned()).or_default();
            seeds.all += 1;
            seeds.green += usize::from(result.is_ok());
            seeds.trials = defs.len();
            result
        })
    };
    (1..=count).map(one).collect()
}

static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

fn timed(name: String, work: impl FnOnce() -> Result<(), String>) -> Result<(), Failed> {
    let start = Instant::now();
    let result = work();
    lock(&TIMES).push((start.elapsed(), name));
    result.map_err(Failed::from)
}

/// Runs the suite of every harness as a test program: arguments as `cargo test` gives them, then
/// the slowest ten and the seeds. Call it first thing in `main`: a trial that needs a process of
/// its own starts this program again.
///
/// `RUST_LOG=mas_transport_redis=debug` and the like shows on stderr what backend and client log; each line
/// names its trial.
pub fn main(harnesses: Vec<Arc<dyn Harness>>) -> ExitCode {
    logs::start();
    if let Some(code) = child::run(&harnesses) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    // Trials run in this order. Those on a real clock come first, for themselves: they wait most of
    // the time, and a machine that is busy with the others would answer them late.
    let mut ordered = harnesses.clone();
    ordered.sort_by_key(|h| h.timing().paused);
    let trials = ordered.into_iter().flat_map(suite).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut times = std::mem::take(&mut *lock(&TIMES));
    times.sort_by(|a, b| b.cmp(a));
    if !times.is_empty() {
        println!("slowest:");
    }
    for (time, name) in times.iter().take(10) {
        println!("  {time:>9.3?}  {name}");
    }
    let mut counts = std::collections::BTreeMap::new();
    for (_, name) in &times {
        let backend = name.split("::").next().unwrap_or_default();
        *counts.entry(backend).or_insert(0) += 1;
    }
    for (backend, count) in counts {
        println!("trials run: {count} on {backend}");
    }
    for (name, seeds) in &*lock(&SEEDS) {
        println!(
            "seeds: {} green of {} ({name}, {} trials each)",
            seeds.green, seeds.all, seeds.trials
        );
    }
    for harness in &harnesses {
        harness.finish();
    }
    conclusion.exit_code()
}
