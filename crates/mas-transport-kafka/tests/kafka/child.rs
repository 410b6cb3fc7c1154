//! A member in a process of its own, which can be killed.
//!
//! The test program starts itself again with [`VARIABLE`] set, and in it the one test that then has
//! something to do. What that does it says on its standard output, a line each; what the test harness
//! prints there says nothing. It ends when its standard input closes, so that none outlives its parent.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{Consumer, Namespace, Subscription};
use mas_transport_kafka::{GroupProtocol, KafkaConfig, KafkaTransport};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

/// Carries the order to the child.
const VARIABLE: &str = "MAS_KAFKA_CHILD";
/// In front of what it says.
const SAYS: &str = "child: ";

/// What a child does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    /// Takes so many together, acks every second one, and holds the others.
    AckHalf(usize),
    /// Acks each as it comes.
    Ack,
}

/// What a child does, with whom, and where.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) address: String,
    pub(crate) namespace: String,
    pub(crate) protocol: GroupProtocol,
    pub(crate) prefetch: usize,
    pub(crate) job: Job,
}

impl Order {
    fn text(&self) -> String {
        let protocol = match self.protocol {
            GroupProtocol::Consumer => "consumer",
            _ => "classic",
        };
        let (job, count) = match self.job {
            Job::AckHalf(count) => ("half", count),
            Job::Ack => ("ack", 0),
        };
        let Self {
            address,
            namespace,
            prefetch,
            ..
        } = self;
        format!("{address} {namespace} {protocol} {prefetch} {job} {count}")
    }

    fn read(text: &str) -> Self {
        let words: Vec<_> = text.split(' ').collect();
        let [address, namespace, protocol, prefetch, job, count] = words[..] else {
            panic!("{text}");
        };
        let count = count.parse().unwrap();
        Self {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
            protocol: match protocol {
                "consumer" => GroupProtocol::Consumer,
                _ => GroupProtocol::Classic,
            },
            prefetch: prefetch.parse().unwrap(),
            job: match job {
                "half" => Job::AckHalf(count),
                _ => Job::Ack,
            },
        }
    }
}

/// What a child says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It was handed a message: the id, and which attempt it is.
    Delivered(String, u32),
    /// It acked it, and that was confirmed.
    Acked(String),
    /// What it does only once is done.
    Done,
}

fn say(line: &Line) {
    match line {
        Line::Delivered(id, attempt) => println!("{SAYS}delivered {id} {attempt}"),
        Line::Acked(id) => println!("{SAYS}acked {id}"),
        Line::Done => println!("{SAYS}done"),
    }
}

fn heard(line: &str) -> Option<Line> {
    // What the harness has begun to print stands in front of the first one.
    let (_, said) = line.split_once(SAYS)?;
    Some(match said.split(' ').collect::<Vec<_>>()[..] {
        ["delivered", id, attempt] => Line::Delivered(id.to_owned(), attempt.parse().unwrap()),
        ["acked", id] => Line::Acked(id.to_owned()),
        ["done"] => Line::Done,
        _ => panic!("{line}"),
    })
}

/// What all members of a test ask for.
pub(crate) fn subscription(prefetch: usize) -> Subscription {
    Subscription::new("t").group("g").prefetch(prefetch)
}

/// A member in a process of its own. It is killed when this is dropped.
pub(crate) struct Child {
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub(crate) fn start(order: &Order) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::does_its_job", "--nocapture"])
            .env(VARIABLE, order.text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        Self {
            process,
            lines: BufReader::new(output).lines(),
        }
    }

    /// What it says next; `None` when it has ended.
    async fn next(&mut self) -> Option<Line> {
        loop {
            let line = self.lines.next_line().await.unwrap()?;
            if let Some(said) = heard(&line) {
                return Some(said);
            }
        }
    }

    /// What it says next, which it does within this time.
    pub(crate) async fn line(&mut self, within: Duration) -> Line {
        let next = timeout(within, self.next()).await;
        let next = next.unwrap_or_else(|_| panic!("the child said nothing for {within:?}"));
        next.expect("the child has ended")
    }

    /// It says nothing for this long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        let said = timeout(time, self.next()).await;
        assert!(said.is_err(), "{said:?}");
    }

    /// SIGKILL; returns when it is gone, with what it had said before.
    pub(crate) async fn kill(mut self) -> Vec<Line> {
        self.process.kill().await.unwrap();
        let mut said = Vec::new();
        while let Some(line) = self.next().await {
            said.push(line);
        }
        said
    }
}

/// In a process that [`Child::start`] made: does the job. In every other one there is none.
#[tokio::test(flavor = "multi_thread")]
async fn does_its_job() {
    let Ok(order) = std::env::var(VARIABLE) else {
        return;
    };
    std::thread::spawn(|| {
        // Nothing is ever written to it: it closes when the parent is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(2);
    });
    let order = Order::read(&order);
    let config = KafkaConfig::new(&order.address)
        .namespace(Namespace::new(&order.namespace).unwrap())
        .group_protocol(order.protocol);
    let transport = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let consumer = Consumer::start(transport, subscription(order.prefetch));
    let consumer = consumer.await.unwrap();
    let mut held = Vec::new();
    while let Some(delivery) = consumer.recv().await.unwrap() {
        let id = delivery.id().to_owned();
        say(&Line::Delivered(id.clone(), delivery.attempt()));
        let Job::AckHalf(count) = order.job else {
            delivery.ack().await.unwrap();
            say(&Line::Acked(id));
            continue;
        };
        held.push(delivery);
        if held.len() < count {
            continue;
        }
        let mut kept = Vec::new();
        let mut acks = Vec::new();
        for (at, delivery) in held.drain(..).enumerate() {
            match at % 2 {
                0 => kept.push(delivery),
                _ => acks.push((delivery.id().to_owned(), delivery.ack())),
            }
        }
        held = kept;
        for (id, ack) in acks {
            ack.await.unwrap();
            say(&Line::Acked(id));
        }
        say(&Line::Done);
        std::future::pending::<()>().await;
    }
}
