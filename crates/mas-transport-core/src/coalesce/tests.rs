use super::*;
use tokio::sync::mpsc;

type Answer = tokio::sync::oneshot::Sender<()>;
type Told = Result<u32, &'static str>;
type Batches = mpsc::UnboundedReceiver<(Vec<u32>, Answer)>;

/// What was told when a batch was done: its results and its bytes.
type Done = Arc<Mutex<Vec<(Vec<Told>, usize)>>>;

/// Shows each batch to the test, which answers it when it likes.
struct Shown(mpsc::UnboundedSender<(Vec<u32>, Answer)>, Done);

#[async_trait]
impl Sink<u32, Told> for Shown {
    async fn send(&self, batch: Vec<u32>, _: Instant) -> BoxFuture<'static, Vec<Told>> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.0.send((batch.clone(), answer)).unwrap();
        Box::pin(async move {
            match answered.await {
                Ok(()) => batch.into_iter().map(Ok).collect(),
                Err(_) => Vec::new(),
            }
        })
    }
    fn unsent(&self, _: u32) -> Told {
        Err("unsent")
    }
    fn unanswered(&self) -> Told {
        Err("unanswered")
    }
    fn done(&self, results: &[Told], bytes: usize, _: Instant) {
        lock(&self.1).push((results.to_vec(), bytes));
    }
}

fn line(in_flight: usize) -> (Line<u32, Told>, Batches) {
    let (line, batches, _) = watched(in_flight);
    (line, batches)
}

fn watched(in_flight: usize) -> (Line<u32, Told>, Batches, Done) {
    with(Bounds {
        entries: 4,
        bytes: 100,
        in_flight,
        timeout: Duration::from_secs(10),
        gathers: false,
    })
}

fn with(bounds: Bounds) -> (Line<u32, Told>, Batches, Done) {
    let (shown, batches) = mpsc::unbounded_channel();
    let done = Done::default();
    let sink = Arc::new(Shown(shown, done.clone()));
    (Line::start(sink, bounds), batches, done)
}

/// A line that gathers: up to 64 entries in each of four batches in flight.
fn gathering() -> (Line<u32, Told>, Batches) {
    let (line, batches, _) = with(Bounds {
        entries: 64,
        bytes: 1000,
        in_flight: 4,
        timeout: Duration::from_secs(10),
        gathers: true,
    });
    (line, batches)
}

#[tokio::test(start_paused = true)]
async fn few_entries_wait_for_the_answer_before_them_or_a_moment() {
    let (line, mut batches) = gathering();
    let start = Instant::now();
    let push = |n| drop(line.push(n, 1, Instant::now()).unwrap());
    push(0);
    let (first, answer) = batches.recv().await.unwrap();
    assert_eq!((first, start.elapsed()), (vec![0], Duration::ZERO));
    push(1);
    tokio::time::sleep(GATHER / 2).await;
    push(2);
    answer.send(()).unwrap();
    let (second, unanswered) = batches.recv().await.unwrap();
    assert_eq!((second, start.elapsed()), (vec![1, 2], GATHER / 2));
    push(3);
    let (third, _unanswered) = batches.recv().await.unwrap();
    assert_eq!(third, [3], "without an answer it does not wait longer");
    let waited = start.elapsed() - GATHER / 2;
    assert!((GATHER..GATHER * 2).contains(&waited), "{waited:?}");
    drop(unanswered);
}

#[tokio::test(start_paused = true)]
async fn many_entries_do_not_wait() {
    let (line, mut batches) = gathering();
    let start = Instant::now();
    drop(line.push(0, 1, Instant::now()).unwrap());
    let (_, _unanswered) = batches.recv().await.unwrap();
    for n in 0..GATHERED as u32 {
        drop(line.push(n, 1, Instant::now()).unwrap());
    }
    let (second, _unanswered) = batches.recv().await.unwrap();
    assert_eq!(second.len(), GATHERED);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn it_goes_at_once_when_idle_and_gathers_while_busy() {
    let (line, mut batches) = line(1);
    let mut tickets = vec![line.push(0, 1, Instant::now()).unwrap()];
    let (first, answer) = batches.recv().await.unwrap();
    assert_eq!(first, [0]);
    for n in 1..7 {
        tickets.push(line.push(n, 1, Instant::now()).unwrap());
    }
    answer.send(()).unwrap();
    let (second, answer) = batches.recv().await.unwrap();
    assert_eq!(second, [1, 2, 3, 4], "as many as a batch holds");
    answer.send(()).unwrap();
    let (third, answer) = batches.recv().await.unwrap();
    assert_eq!(third, [5, 6]);
    answer.send(()).unwrap();
    for (n, ticket) in (0..).zip(tickets) {
        assert_eq!(ticket.await, Ok(n));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_bound_a_batch_but_never_block_its_first_entry() {
    let (line, mut batches) = line(1);
    let _all: Vec<_> = [(0, 500), (1, 60), (2, 60)]
        .into_iter()
        .map(|(n, bytes)| line.push(n, bytes, Instant::now()).unwrap())
        .collect();
    for n in 0..3 {
        let (batch, answer) = batches.recv().await.unwrap();
        assert_eq!(batch, [n]);
        answer.send(()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_or_not_sent_in_time_says_so() {
    let (line, mut batches) = line(1);
    let sent = line.push(0, 1, Instant::now()).unwrap();
    let (_, _unanswered) = batches.recv().await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    let late = line.push(1, 1, Instant::now()).unwrap();
    let start = Instant::now();
    assert_eq!(sent.await, Err("unanswered"));
    assert_eq!(start.elapsed().as_secs(), 5);
    // The slot is free again, so the next batch is sent, five seconds before its time is up.
    let (_, _unanswered) = batches.recv().await.unwrap();
    let never = line.push(2, 1, Instant::now()).unwrap();
    assert_eq!(late.await, Err("unanswered"));
    drop(batches.recv().await.unwrap());
    assert_eq!(never.await, Err("unanswered"), "a short answer");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_waits_behind_a_stuck_batch_is_unsent() {
    let (line, mut batches) = line(1);
    let stuck = line.push(0, 1, Instant::now()).unwrap();
    let _held = batches.recv().await.unwrap();
    let waits = line.push(1, 1, Instant::now()).unwrap();
    assert_eq!(waits.await, Err("unsent"));
    assert_eq!(stuck.await, Err("unanswered"));
}

#[tokio::test(start_paused = true)]
async fn every_batch_is_done_once_with_a_result_for_each_entry() {
    let (line, mut batches, done) = watched(1);
    let push = |n, bytes| line.push(n, bytes, Instant::now()).unwrap();
    let answered = push(0, 1);
    let (_, answer) = batches.recv().await.unwrap();
    answer.send(()).unwrap();
    assert_eq!(answered.await, Ok(0));
    // No answer at all to two, then one in time for nobody.
    let (first, second) = (push(1, 2), push(2, 3));
    drop(batches.recv().await.unwrap());
    assert_eq!(
        (first.await, second.await),
        (Err("unanswered"), Err("unanswered"))
    );
    let late = push(3, 4);
    let (_, answer) = batches.recv().await.unwrap();
    let waits = push(4, 5);
    assert_eq!(
        (late.await, waits.await),
        (Err("unanswered"), Err("unsent"))
    );
    assert!(answer.send(()).is_err(), "nobody listens any more");
    let done = lock(&done).clone();
    let unanswered = Err("unanswered");
    assert_eq!(
        done,
        [
            (vec![Ok(0)], 1),
            (vec![unanswered, unanswered], 5),
            (vec![unanswered], 4),
            (vec![Err("unsent")], 5),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_what_was_accepted_and_takes_no_more() {
    let (line, mut batches) = line(2);
    let ticket = line.push(7, 1, Instant::now()).unwrap();
    assert!(!line.close(Instant::now()).await, "it has no answer yet");
    assert_eq!(line.push(8, 1, Instant::now()).unwrap_err(), 8);
    let (_, answer) = batches.recv().await.unwrap();
    answer.send(()).unwrap();
    assert!(line.close(Instant::now() + Duration::from_secs(1)).await);
    assert_eq!(ticket.await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_line_sends_what_it_had_and_ends_the_driver() {
    let (line, mut batches) = line(1);
    let ticket = line.push(1, 1, Instant::now()).unwrap();
    drop(line);
    let (_, answer) = batches.recv().await.unwrap();
    answer.send(()).unwrap();
    assert_eq!(ticket.await, Ok(1));
    assert!(
        batches.recv().await.is_none(),
        "the sink is gone with the driver"
    );
}

/// Lets every other task run until it waits.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

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
