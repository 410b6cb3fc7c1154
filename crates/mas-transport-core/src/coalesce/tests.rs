use super::*;
use tokio::sync::mpsc;

pub(super) type Answer = tokio::sync::oneshot::Sender<()>;
pub(super) type Told = Result<u32, &'static str>;
pub(super) type Batches = mpsc::UnboundedReceiver<(Vec<u32>, Answer)>;

/// What was told when a batch was done: its results and its bytes.
pub(super) type Done = Arc<Mutex<Vec<(Vec<Told>, usize)>>>;

/// Shows each batch to the test, which answers it when it likes.
pub(super) struct Shown(
    pub(super) mpsc::UnboundedSender<(Vec<u32>, Answer)>,
    pub(super) Done,
);

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

pub(super) fn line(in_flight: usize) -> (Line<u32, Told>, Batches) {
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
pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}
