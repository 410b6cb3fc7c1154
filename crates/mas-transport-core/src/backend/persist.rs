//! Doing again what may be done again, while a broker is away and leases last.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind, Result, Stored};

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before the next attempt: 50 ms, doubling, up to 1 s.
#[derive(Debug)]
pub struct Wait(Duration);

impl Wait {
    /// The shortest.
    #[expect(
        clippy::new_without_default,
        reason = "what it begins with is no default"
    )]
    pub fn new() -> Self {
        Self(FIRST_WAIT)
    }

    /// Before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (self.0 * 2).min(LONGEST_WAIT);
        wait
    }
}

/// Repeats what may be repeated for as long as the broker cannot take it, until a time.
///
/// # Errors
/// The last one; of unknown outcome when one before it was. `Timeout` when nothing came in time.
pub async fn persist<T, F>(
    backend: &'static str,
    until: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut wait = Wait::new();
    let mut unknown = false;
    loop {
        // An attempt that still waits for a connection when the lease ends must not go out later:
        // by then the entry may be somebody else's.
        let error = match timeout_at(until, attempt()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => {
                let why = "the server did not answer before the lease ended";
                return Err(Error::new(ErrorKind::Timeout, "settle", why)
                    .on(backend)
                    .maybe_stored());
            }
        };
        unknown |= error.stored() == Stored::Unknown;
        let again = Instant::now() + wait.next();
        if !error.is_retryable() || again >= until {
            return Err(if unknown { error.maybe_stored() } else { error });
        }
        sleep(again - Instant::now()).await;
    }
}

/// Does something to items, the way [`persist`] does it, until their leases end: those whose end is
/// nearer than `step` to the first's give up with it, and the rest goes on without them. Each item
/// comes to `finish` once, with what became of it.
pub async fn persist_each<I, T, F>(
    backend: &'static str,
    step: Duration,
    mut items: Vec<I>,
    deadline: impl Fn(&I) -> Instant,
    mut attempt: impl FnMut(Vec<I>) -> F,
    mut finish: impl FnMut(Vec<I>, Result<T>),
) where
    I: Clone,
    F: Future<Output = Result<T>>,
{
    let mut unknown = false;
    while !items.is_empty() {
        let first = items.iter().map(&deadline).min();
        let until = first.unwrap_or_else(Instant::now);
        match persist(backend, until, || attempt(items.clone())).await {
            Err(error) if error.is_retryable() => {
                unknown |= error.stored() == Stored::Unknown;
                let near = |item: &I| deadline(item) <= until + step;
                let (ended, rest) = items.into_iter().partition(near);
                let error = if unknown { error.maybe_stored() } else { error };
                finish(ended, Err(error));
                items = rest;
            }
            Err(error) => {
                let error = if unknown { error.maybe_stored() } else { error };
                return finish(items, Err(error));
            }
            outcome => return finish(items, outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let mut wait = Wait::new();
        assert_eq!(wait.next(), FIRST_WAIT);
        assert_eq!(wait.next(), FIRST_WAIT * 2);
        for _ in 0..20 {
            wait.next();
        }
        assert_eq!(wait.next(), LONGEST_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn each_lasts_as_long_as_its_lease() {
        let now = Instant::now();
        let items = vec![1u64, 1, 30];
        let mut ended = Vec::new();
        persist_each(
            "test",
            Duration::from_secs(1),
            items,
            |seconds| now + Duration::from_secs(*seconds),
            |_| async {
                match now.elapsed() < Duration::from_secs(5) {
                    true => {
                        Err(Error::new(ErrorKind::Unavailable, "settle", "away").maybe_stored())
                    }
                    false => Ok(()),
                }
            },
            |items, outcome| ended.push((items, outcome.map_err(|e| e.stored()))),
        )
        .await;
        assert_eq!(
            ended,
            [(vec![1, 1], Err(Stored::Unknown)), (vec![30], Ok(()))]
        );
    }
}
