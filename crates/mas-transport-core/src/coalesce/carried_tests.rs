use futures::FutureExt as _;
use tokio::sync::mpsc;

use super::tests::{Batches, Done, Shown, Told, line, settle};
use super::*;

/// Lets the driver come to rest, as it does before anybody uses a line for the second time.
async fn idle(in_flight: usize) -> (Line<u32, Told>, Batches) {
    let (line, batches) = line(in_flight);
    settle().await;
    (line, batches)
}

fn push_all(line: &Line<u32, Told>, entries: std::ops::Range<u32>) -> Part<Told> {
    let entries = entries.map(|n| (n, 1)).collect();
    let mut parts = line.push_all(entries, Instant::now()).unwrap();
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

#[tokio::test(start_paused = true)]
async fn a_batch_on_an_idle_line_is_carried_by_who_waits_for_it() {
    let (line, mut batches) = idle(1).await;
    let mut part = push_all(&line, 0..4);
    settle().await;
    assert!(batches.try_recv().is_err(), "nobody has polled it yet");
    assert!(futures::poll!(&mut part).is_pending());
    let (batch, answer) = batches.try_recv().unwrap();
    assert_eq!(batch, [0, 1, 2, 3]);
    answer.send(()).unwrap();
    let told = futures::poll!(&mut part);
    assert_eq!(told, std::task::Poll::Ready((0..4).map(Ok).collect()));
    // The line is idle again.
    let mut part = push_all(&line, 4..8);
    assert!(futures::poll!(&mut part).is_pending());
    assert_eq!(batches.try_recv().unwrap().0, [4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn the_driver_takes_what_a_caller_dropped_before_and_after_it_was_sent() {
    for polled in [false, true] {
        let (line, mut batches) = idle(1).await;
        let mut part = push_all(&line, 0..4);
        if polled {
            assert!(futures::poll!(&mut part).is_pending());
        }
        drop(part);
        let (batch, answer) = batches.recv().await.unwrap();
        assert_eq!(batch, [0, 1, 2, 3]);
        let mut behind = line.push(4, 1, Instant::now()).unwrap();
        settle().await;
        assert!(batches.try_recv().is_err(), "one batch in flight");
        answer.send(()).unwrap();
        let (batch, answer) = batches.recv().await.unwrap();
        assert_eq!(batch, [4]);
        answer.send(()).unwrap();
        settle().await;
        assert_eq!(futures::poll!(&mut behind), std::task::Poll::Ready(Ok(4)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_behind_a_caller_that_does_nothing_keeps_the_order_and_need_not_wait_for_it() {
    for polled in [false, true] {
        let (line, mut batches) = idle(2).await;
        let mut part = push_all(&line, 0..4);
        if polled {
            assert!(futures::poll!(&mut part).is_pending());
        }
        let behind = push_all(&line, 4..8);
        settle().await;
        let (first, answer) = batches.try_recv().unwrap();
        assert_eq!(first, [0, 1, 2, 3]);
        let (second, also) = batches.try_recv().unwrap();
        assert_eq!(second, [4, 5, 6, 7]);
        also.send(()).unwrap();
        assert_eq!(behind.await.len(), 4);
        answer.send(()).unwrap();
        assert_eq!(part.await, (0..4).map(Ok).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_nothing_does_not_hold_up_a_close_nor_outlive_its_time() {
    let (line, mut batches) = idle(1).await;
    let mut part = push_all(&line, 0..4);
    assert!(futures::poll!(&mut part).is_pending());
    assert!(!line.close(Instant::now()).await, "it has no answer yet");
    let (_, _unanswered) = batches.recv().await.unwrap();
    let start = Instant::now();
    assert!(line.close(start + Duration::from_secs(60)).await);
    assert_eq!(start.elapsed(), Duration::from_secs(10), "its time is up");
    assert_eq!(part.await, vec![Err("unanswered"); 4]);
}

#[tokio::test(start_paused = true)]
async fn small_batches_and_those_behind_others_are_the_drivers() {
    let (line, mut batches) = idle(1).await;
    let mut few = push_all(&line, 0..3);
    assert!(futures::poll!(&mut few).is_pending());
    assert!(batches.try_recv().is_err(), "more may join it");
    let (batch, answer) = batches.recv().await.unwrap();
    assert_eq!(batch, [0, 1, 2]);
    let mut behind = push_all(&line, 3..7);
    assert!(futures::poll!(&mut behind).is_pending());
    assert!(batches.try_recv().is_err(), "one batch in flight");
    answer.send(()).unwrap();
    assert_eq!(batches.recv().await.unwrap().0, [3, 4, 5, 6]);
}

/// A runtime that runs only while something blocks on it, so that its driver is where a test left it.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
}

#[test]
fn nobody_carries_on_a_runtime_that_may_end_before_the_line() {
    let (home, elsewhere) = (runtime(), runtime());
    let (line, mut batches) = home.block_on(idle(1));
    let there = elsewhere.enter();
    let on_another = push_all(&line, 0..4);
    drop(there);
    let on_none = push_all(&line, 4..8);
    for part in [on_another, on_none] {
        assert!(part.carrier.is_none());
        home.block_on(async {
            batches.recv().await.unwrap().1.send(()).unwrap();
            assert_eq!(part.await.len(), 4);
            settle().await;
        });
    }
    let _here = home.enter();
    assert!(push_all(&line, 8..12).carrier.is_some());
}

#[test]
fn a_part_that_is_polled_on_another_runtime_is_the_drivers() {
    let (home, elsewhere) = (runtime(), runtime());
    let (_line, mut batches, mut part) = home.block_on(async {
        let (line, batches) = idle(1).await;
        let part = push_all(&line, 0..4);
        (line, batches, part)
    });
    assert!(part.carrier.is_some());
    elsewhere.block_on(async { assert!(futures::poll!(&mut part).is_pending()) });
    assert!(batches.try_recv().is_err(), "nothing of it began there");
    home.block_on(async { batches.recv().await.unwrap().1.send(()).unwrap() });
    home.block_on(settle());
    assert_eq!(elsewhere.block_on(part).len(), 4);
}

/// Counts how often it is woken.
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn who_carries_is_woken_by_the_answer_and_not_by_itself() {
    let (line, mut batches) = idle(1).await;
    let mut part = push_all(&line, 0..4);
    let woken = Arc::new(Woken(0.into()));
    let waker = woken.clone().into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut poll = || std::pin::Pin::new(&mut part).poll(&mut cx).is_ready();
    assert!(!poll());
    batches.recv().await.unwrap().1.send(()).unwrap();
    let count = || woken.0.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(count(), 1);
    assert!(poll());
    assert_eq!(count(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_late_to_carry_sends_nothing() {
    let (line, mut batches) = idle(1).await;
    let part = push_all(&line, 0..4);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(part.await, vec![Err("unsent"); 4]);
    assert!(batches.try_recv().is_err());
}

/// Sends on the second poll, and panics instead of answering where it is told to.
struct Slow(Shown, bool);

#[async_trait]
impl Sink<u32, Told> for Slow {
    async fn send(&self, batch: Vec<u32>, deadline: Instant) -> BoxFuture<'static, Vec<Told>> {
        if self.1 {
            return Box::pin(async { panic!("the backend is broken") });
        }
        tokio::task::yield_now().await;
        self.0.send(batch, deadline).await
    }
    fn unsent(&self, entry: u32) -> Told {
        self.0.unsent(entry)
    }
    fn unanswered(&self) -> Told {
        self.0.unanswered()
    }
    fn done(&self, results: &[Told], bytes: usize, since: Instant) {
        self.0.done(results, bytes, since);
    }
}

async fn slow(panics: bool) -> (Line<u32, Told>, Batches, Done) {
    let (shown, batches) = mpsc::unbounded_channel();
    let done = Done::default();
    let sink = Arc::new(Slow(Shown(shown, done.clone()), panics));
    let bounds = Bounds {
        entries: 4,
        bytes: 100,
        in_flight: 1,
        timeout: Duration::from_secs(10),
        gathers: false,
    };
    let line = Line::start(sink, bounds);
    settle().await;
    (line, batches, done)
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_placed_at_once_is_the_drivers() {
    let (line, mut batches, _) = slow(false).await;
    let mut part = push_all(&line, 0..4);
    assert!(part.carrier.is_some());
    assert!(futures::poll!(&mut part).is_pending());
    settle().await;
    let (batch, answer) = batches.try_recv().expect("though nobody polls it");
    assert_eq!(batch, [0, 1, 2, 3]);
    answer.send(()).unwrap();
    assert_eq!(part.await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_leaves_outcomes_and_a_line_behind() {
    let (line, _batches, done) = slow(true).await;
    for n in 0..2 {
        let begin = 10 * n;
        let mut joined = line.push(begin, 1, Instant::now()).unwrap();
        let mut part = push_all(&line, begin + 1..begin + 4);
        assert!(part.carrier.is_some(), "{n}: the line is idle");
        let poll = || {
            let waker = futures::task::noop_waker();
            std::pin::Pin::new(&mut part).poll(&mut std::task::Context::from_waker(&waker))
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).expect_err("it panics");
        let told = futures::poll!(&mut joined);
        assert_eq!(told, std::task::Poll::Ready(Err("unanswered")));
        assert_eq!(part.await, vec![Err("unanswered"); 3]);
        assert_eq!(
            lock(&done).len(),
            n as usize + 1,
            "what it took is given back"
        );
        settle().await;
    }
}

/// Asks for the turn while it is polled, as the driver would.
struct Asks(Arc<Turns>, bool);

impl Future for Asks {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        assert!(self.0.take().is_err(), "and it does not wait for it");
        assert!(
            self.0
                .carry(|| unreachable!("nor does anybody carry"))
                .is_none()
        );
        match self.1 {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_comes_while_a_caller_is_at_it_is_woken_afterwards() {
    for ready in [true, false] {
        let turns = Turns::new(Handle::current().id());
        assert!(turns.take().unwrap().is_none());
        turns.rest();
        let asks = Asks(turns.clone(), ready);
        let carried = turns.carry(|| Some(Stage::Placed(Box::pin(asks))));
        let mut carrier = carried.unwrap();
        let waker = futures::task::noop_waker();
        carrier.poll(&mut std::task::Context::from_waker(&waker));
        assert!(turns.wake.notified().now_or_never().is_some(), "{ready}");
        assert_eq!(turns.take().unwrap().is_none(), ready);
    }
}
