//! Members in processes of their own, which can be killed.
//!
//! The test program starts itself again with [`VARIABLE`] set; [`crate::main`] sees it and does the
//! job instead of running trials. What the child does it writes to its standard output, a line of
//! JSON each; the parent puts that into the trial's history. The child ends when its standard input
//! closes, so that none outlives the program that started it.

use std::io::Write as _;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mas_transport_core::{Consumer, Namespace, Position, Subscription};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ctx::Ctx;
use crate::harness::{Failure, Harness, Verdict};
use crate::history::{Ended, Happened, How, MemberId, digest};

/// Carries the job to the child.
const VARIABLE: &str = "MAS_CHILD";

/// What a child does with its deliveries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    /// Takes so many and holds them.
    Hold(usize),
    /// Acks them, one after the other.
    Ack,
    /// Acks them, and aborts its process at the first whose payload begins so.
    AbortAt(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    harness: String,
    address: String,
    namespace: String,
    topic: String,
    group: String,
    lease: Duration,
    prefetch: usize,
    max_attempts: u32,
    job: Job,
}

/// What a child says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Line {
    /// It has joined its group.
    Joined,
    /// It was handed a message.
    Delivered {
        /// The message.
        id: String,
        /// The topic it says it is from.
        topic: String,
        /// Its contents.
        digest: u64,
        /// Its key.
        key: Option<String>,
        /// Where it stands.
        position: (u64, u64),
        /// Which attempt it is.
        attempt: u32,
        /// When its lease ends, by the clock that the processes of a machine share. How long it still is
        /// would be out of date by as much as the parent is late to read it.
        deadline: SystemTime,
    },
    /// It acked a message, and the broker confirmed it.
    Acked {
        /// The message.
        id: String,
        /// Which attempt it was.
        attempt: u32,
        /// When it asked for that, by the clock that the processes of a machine share.
        called: SystemTime,
    },
    /// It failed.
    Failed(String),
}

/// A member in a process of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    ctx: Ctx,
    member: MemberId,
    process: tokio::process::Child,
    /// What it has said and nobody has asked for yet. A trial publishes only so much.
    lines: mpsc::UnboundedReceiver<Result<Line, String>>,
}

/// Hears what a child says and records it at once, whether or not the trial asks for it: a child that is
/// not listened to stands still when the pipe is full, and what is recorded late stands in the wrong place.
struct Listener {
    ctx: Ctx,
    member: MemberId,
    subscription: Subscription,
    tell: mpsc::UnboundedSender<Result<Line, String>>,
}

impl Ctx {
    /// Starts a process that joins a group ([`Ability::Child`](crate::Ability::Child)).
    ///
    /// # Errors
    /// When the broker has no address, or the process cannot be started.
    pub fn child(&self, subscription: &Subscription, job: Job) -> Result<Child, Failure> {
        let address = self.broker().address();
        let order = Order {
            harness: self.harness().to_owned(),
            address: address.ok_or("the broker has no address for other processes")?,
            namespace: self.namespace().to_string(),
            topic: subscription.pattern().to_owned(),
            group: subscription.get_group()?.to_string(),
            lease: subscription.get_lease(),
            prefetch: subscription.get_prefetch(),
            max_attempts: subscription.get_max_attempts(),
            job,
        };
        let mut process = Command::new(std::env::current_exe()?)
            .env(VARIABLE, serde_json::to_string(&order)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("the child has no output")?;
        let (tell, lines) = mpsc::unbounded_channel();
        let member = self.next_number();
        let listener = Listener {
            ctx: self.clone(),
            member,
            subscription: subscription.clone(),
            tell,
        };
        tokio::spawn(listener.listen(output));
        Ok(Child {
            ctx: self.clone(),
            member,
            process,
            lines,
        })
    }
}

impl Listener {
    async fn listen(self, output: ChildStdout) {
        let mut lines = BufReader::new(output).lines();
        loop {
            let said = match lines.next_line().await {
                Ok(None) => return,
                Ok(Some(line)) => serde_json::from_str(&line).map_err(|e| format!("{line:?}: {e}")),
                Err(error) => Err(error.to_string()),
            };
            if let Ok(line) = &said {
                self.record(line);
            }
            let ends = said.is_err();
            if self.tell.send(said).is_err() || ends {
                return;
            }
        }
    }

    fn record(&self, line: &Line) {
        let history = self.ctx.history();
        match line {
            Line::Joined => history.joined(self.member, &self.subscription),
            Line::Delivered {
                id,
                topic,
                digest,
                key,
                position,
                attempt,
                deadline,
            } => history.push(Happened::Delivered {
                member: self.member,
                id: id.clone(),
                topic: topic.clone(),
                digest: *digest,
                key: key.clone(),
                position: Position {
                    major: position.0,
                    minor: position.1,
                },
                attempt: *attempt,
                deadline: history.at(instant(*deadline)),
            }),
            Line::Acked {
                id,
                attempt,
                called,
            } => {
                history.push(Happened::Settling {
                    member: self.member,
                    id: id.clone(),
                    attempt: *attempt,
                    how: How::Ack,
                    called: Some(history.at(instant(*called))),
                });
                history.settled(self.member, id.clone(), *attempt, How::Ack, Ended::Done);
            }
            Line::Failed(why) => self.ctx.note(format!("a child failed: {why}")),
        }
    }
}

impl Child {
    /// What it says next, within the trial's patience; `None` when it has ended.
    ///
    /// # Errors
    /// When it says nothing, or nothing that can be read.
    pub async fn line(&mut self) -> Result<Option<Line>, Failure> {
        let line = self.ctx.soon("a line of the child", self.lines.recv());
        Ok(line.await?.transpose()?)
    }

    /// Waits until it has joined its group.
    ///
    /// # Errors
    /// When it fails before, or ends.
    pub async fn joined(&mut self) -> Result<(), Failure> {
        loop {
            match self.line().await? {
                Some(Line::Joined) => return Ok(()),
                Some(Line::Failed(why)) => return Err(why.into()),
                Some(_) => {}
                None => return Err("the child has ended".into()),
            }
        }
    }

    /// The next message that it was handed.
    ///
    /// # Errors
    /// When it says something else first that is a failure, or ends.
    pub async fn delivered(&mut self) -> Result<String, Failure> {
        loop {
            match self.line().await? {
                Some(Line::Delivered { id, .. }) => return Ok(id),
                Some(Line::Failed(why)) => return Err(why.into()),
                Some(_) => {}
                None => return Err("the child has ended".into()),
            }
        }
    }

    /// SIGKILL; returns when it is gone, with what it had said before.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<Vec<Line>, Failure> {
        self.process.kill().await?;
        self.ended().await
    }

    /// Waits until it has ended by itself; what it had said before.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn ended(&mut self) -> Result<Vec<Line>, Failure> {
        let mut said = Vec::new();
        while let Some(line) = self.line().await? {
            said.push(line);
        }
        self.ctx
            .soon("the end of the child", self.process.wait())
            .await??;
        self.ctx.history().push(Happened::Crashed {
            member: self.member,
        });
        Ok(said)
    }
}

/// A point in time that is to come, or now, as other processes can read it.
fn system_time(at: Instant) -> SystemTime {
    SystemTime::now() + at.saturating_duration_since(Instant::now())
}

/// A point in time that another process told.
fn instant(at: SystemTime) -> Instant {
    let now = Instant::now();
    match at.duration_since(SystemTime::now()) {
        Ok(left) => now + left,
        Err(past) => now.checked_sub(past.duration()).unwrap_or(now),
    }
}

/// In a child: does the job. `None` when this is no child.
pub(crate) fn run(harnesses: &[Arc<dyn Harness>]) -> Option<ExitCode> {
    let order = std::env::var(VARIABLE).ok()?;
    std::thread::spawn(|| {
        // Nothing is ever written to it: it closes when the parent is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(2);
    });
    let done = obey(harnesses, &order);
    if let Err(why) = &done {
        say(&Line::Failed(why.to_string()));
    }
    Some(ExitCode::from(u8::from(done.is_err())))
}

fn say(line: &Line) {
    if let Ok(text) = serde_json::to_string(line) {
        let mut output = std::io::stdout().lock();
        // A parent that is gone hears nothing, and this process is about to end.
        let _ = writeln!(output, "{text}").and_then(|()| output.flush());
    }
}

fn obey(harnesses: &[Arc<dyn Harness>], order: &str) -> Verdict {
    let order: Order = serde_json::from_str(order)?;
    let harness = harnesses.iter().find(|h| h.name() == order.harness);
    let harness = Arc::clone(harness.ok_or("no harness of that name")?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let namespace = Namespace::new(&order.namespace)?;
        let broker = harness.attach(&order.address, namespace).await?;
        let subscription = Subscription::new(&order.topic)
            .group(&order.group)
            .lease(order.lease)
            .prefetch(order.prefetch)
            .max_attempts(order.max_attempts);
        let consumer = Consumer::start(broker.connect().await?, subscription).await?;
        say(&Line::Joined);
        work(&consumer, &order.job).await
    })
}

async fn work(consumer: &Consumer, job: &Job) -> Verdict {
    let mut held = Vec::new();
    while let Some(delivery) = consumer.recv().await? {
        let (id, attempt) = (delivery.id().to_owned(), delivery.attempt());
        say(&Line::Delivered {
            id: id.clone(),
            topic: delivery.topic().to_string(),
            digest: digest(delivery.message()),
            key: delivery.get_key().map(str::to_owned),
            position: (delivery.position().major, delivery.position().minor),
            attempt,
            deadline: system_time(delivery.deadline()),
        });
        match job {
            Job::Hold(count) => {
                held.push(delivery);
                if held.len() >= *count {
                    std::future::pending::<()>().await;
                }
                continue;
            }
            Job::AbortAt(start) if delivery.payload().starts_with(start.as_bytes()) => {
                std::process::abort();
            }
            Job::Ack | Job::AbortAt(_) => {}
        }
        let called = SystemTime::now();
        delivery.ack().await?;
        say(&Line::Acked {
            id,
            attempt,
            called,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_the_same_however_late_it_is_read() {
        // Reading the clocks takes this long at most.
        let near = Duration::from_millis(100);
        let deadline = Instant::now() + Duration::from_secs(1);
        let told = system_time(deadline);
        let read = instant(told);
        assert!(read.saturating_duration_since(deadline) < near);
        assert!(deadline.saturating_duration_since(read) < near);
        // It has passed by the time it is read.
        let past = instant(told - Duration::from_secs(5));
        let expected = deadline - Duration::from_secs(5);
        assert!(past.saturating_duration_since(expected) < near);
        assert!(expected.saturating_duration_since(past) < near);
    }
}
