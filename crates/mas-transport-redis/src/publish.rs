//! Publishing: a batch is one pipeline, and each of its commands has an outcome of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use mas_transport_core::codec::fields;
use mas_transport_core::{Confirm, Error, ErrorKind, Message, Receipt, Result, Topic};
use redis::{Cmd, Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::BACKEND;
use crate::cap;
use crate::decode;
use crate::keys;
use crate::transport::Shared;

/// Room in a command for what most messages have: five fields, often a content type and a key.
const FIELDS: usize = 7;
/// Room for their names, and for that of the command.
const NAMES: usize = 96;

/// A batch on its way.
struct Batch {
    shared: Arc<Shared>,
    commands: Pipeline,
    topics: Vec<Topic>,
    /// For each message, what is already known; `None` for those that are sent, in order.
    outcomes: Vec<Option<Result<Receipt>>>,
    deadline: Instant,
    /// The commands have been handed to the connection: their place is fixed.
    placed: Arc<AtomicBool>,
    _room: OwnedSemaphorePermit,
}

/// What came of a batch, as soon as the server has answered.
type Outcomes = BoxFuture<'static, Vec<Result<Receipt>>>;

/// A batch whose place is fixed. Whoever wants its outcomes polls it, which saves a task. When it is
/// dropped, a task sees it through: the client does not send a command whose answer nobody awaits.
struct Placed {
    outcomes: Option<Outcomes>,
    tasks: TaskTracker,
    _token: TaskTrackerToken,
}

impl Future for Placed {
    type Output = Vec<Result<Receipt>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(outcomes) = &mut self.outcomes else {
            return Poll::Pending;
        };
        let ready = outcomes.as_mut().poll(cx);
        if ready.is_ready() {
            self.outcomes = None;
        }
        ready
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // Without a runtime there is no connection either.
        if let (Some(outcomes), Ok(runtime)) = (self.outcomes.take(), Handle::try_current()) {
            self.tasks.spawn_on(outcomes, &runtime);
        }
    }
}

/// Sends a batch and returns when its place in line is fixed.
pub(crate) async fn publish(
    shared: &Arc<Shared>,
    messages: Vec<Message>,
    deadline: Instant,
) -> Confirm {
    if shared.is_closed() {
        return ready(vec![
            Err(Error::closed("publish").on(BACKEND));
            messages.len()
        ]);
    }
    let checked = |message: &Message| shared.info.check_message(message).err();
    let outcomes: Vec<Option<Result<Receipt>>> =
        messages.iter().map(|m| checked(m).map(Err)).collect();
    let late = || late(shared, false);
    let room = timeout_at(deadline, shared.room.clone().acquire_owned()).await;
    let room = match room {
        Ok(Ok(room)) if Instant::now() < deadline => room,
        Ok(Err(_)) => {
            return ready(vec![
                Err(Error::closed("publish").on(BACKEND));
                outcomes.len()
            ]);
        }
        _ => {
            let each = |o: Option<_>| o.unwrap_or_else(|| Err(late()));
            return ready(outcomes.into_iter().map(each).collect());
        }
    };
    let mut commands = Pipeline::with_capacity(messages.len() + 1);
    let topics = shared.unregistered(&messages, &outcomes);
    for topic in &topics {
        commands.add_command(shared.registration(topic));
    }
    let cap = shared.link.config.cap;
    let mut first = true;
    let mut stream: Option<(Topic, String)> = None;
    for (message, outcome) in messages.iter().zip(&outcomes) {
        if outcome.is_some() {
            continue;
        }
        let key = match &mut stream {
            Some((topic, key)) if topic == message.topic() => key,
            _ => {
                let topic = message.topic().clone();
                let key = keys::stream(&shared.link.config.namespace, &topic);
                &mut stream.insert((topic, key)).1
            }
        };
        commands.add_command(match cap {
            None => append(key, message),
            Some(cap) => cap::append(cap, key, message, std::mem::take(&mut first)),
        });
    }
    let batch = Batch {
        shared: shared.clone(),
        topics,
        commands,
        outcomes,
        deadline,
        placed: Arc::default(),
        _room: room,
    };
    let placed = Arc::clone(&batch.placed);
    // Polled once, it stands in line.
    let mut sending: Outcomes = Box::pin(unconstrained(batch.send()));
    let first = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(outcomes) => ready(outcomes),
        // Where it has the last of the room, others wait for it, whether or not somebody polls it.
        Poll::Pending if placed.load(Ordering::Relaxed) && shared.has_room() => Box::pin(Placed {
            outcomes: Some(sending),
            tasks: shared.tasks.clone(),
            _token: shared.tasks.token(),
        }),
        // It waits for its turn or for a connection: it has to move on though nobody polls it, or
        // it would hold up those behind it.
        Poll::Pending => {
            let task = shared.tasks.spawn(sending);
            Box::pin(async move {
                // It neither panics nor is it aborted; a runtime that shuts down drops it.
                task.await.unwrap_or_default()
            })
        }
    }
}

fn ready(outcomes: Vec<Result<Receipt>>) -> Confirm {
    Box::pin(std::future::ready(outcomes))
}

/// The deadline has passed.
fn late(shared: &Shared, sent: bool) -> Error {
    let what = if sent {
        "the server did not answer in time"
    } else {
        "it was not sent in time"
    };
    let error = Error::new(ErrorKind::Timeout, "publish", what)
        .on(BACKEND)
        .with("address", shared.link.config.address());
    if sent { error.maybe_stored() } else { error }
}

/// `XADD key * field value…`
fn append(key: &str, message: &Message) -> Cmd {
    let fields = FIELDS + message.headers().len();
    let bytes = key.len() + NAMES + message.size();
    let mut command = Cmd::with_capacity(3 + 2 * fields, bytes);
    command.arg("XADD").arg(key).arg("*");
    fields::encode(message, &mut |name, value| {
        command.arg(name).arg(value);
    });
    command
}

impl Batch {
    async fn send(self) -> Vec<Result<Receipt>> {
        if self.commands.is_empty() {
            let each = |o: Option<_>| o.unwrap_or_else(|| Err(late(&self.shared, false)));
            return self.outcomes.into_iter().map(each).collect();
        }
        let mut sent = false;
        let answers = match timeout_at(self.deadline, self.transmit(&mut sent)).await {
            Ok(answers) => answers,
            Err(_) => Err(late(&self.shared, sent)),
        };
        let shared = &self.shared;
        let durability = shared.info.capabilities.durability;
        let mut answers = match answers {
            Ok(answers) => Ok(answers.into_iter()),
            Err(error) => Err(error),
        };
        for topic in &self.topics {
            let registered = match &mut answers {
                Ok(answers) => !matches!(answers.next(), None | Some(Value::ServerError(_))),
                Err(_) => false,
            };
            if !registered {
                shared.forget(topic);
            }
        }
        let mut one = || match &mut answers {
            Err(error) => Err(error.clone()),
            Ok(answers) => match answers.next() {
                Some(Value::ServerError(error)) => Err(shared.link.answered("publish", error)),
                Some(id) => decode::position(&id)
                    .map(|position| Receipt {
                        position,
                        durability,
                        duplicate: false,
                    })
                    .ok_or_else(|| strange(shared)),
                None => Err(strange(shared)),
            },
        };
        let each = |outcome: Option<_>| outcome.unwrap_or_else(&mut one);
        self.outcomes.into_iter().map(each).collect()
    }

    /// Waits for its turn and for a connection, sends, and awaits the answers.
    async fn transmit(&self, sent: &mut bool) -> Result<Vec<Value>> {
        let link = &self.shared.link;
        let line = self.shared.line.lock().await;
        let mut up = link.ready("publish", self.deadline).await?;
        let count = self.commands.len();
        // Unconstrained, because a poll that was only told to yield would leave the line unsent.
        let sending = unconstrained(up.connection.send_packed_commands(&self.commands, 0, count));
        tokio::pin!(sending);
        let first = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        *sent = true;
        self.placed.store(true, Ordering::Relaxed);
        drop(line);
        let answers = match first {
            Poll::Ready(answers) => answers,
            Poll::Pending => sending.await,
        };
        answers.map_err(|error| link.failed("publish", up.epoch, error))
    }
}

fn strange(shared: &Shared) -> Error {
    Error::new(
        ErrorKind::Broker,
        "publish",
        "the answer to a publish has a form that is not known",
    )
    .on(BACKEND)
    .with("address", shared.link.config.address())
    .maybe_stored()
}
