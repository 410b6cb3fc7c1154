//! The programs of other clients, and the broker between them and us.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conformance_tests::fixtures::{KafkaOptions, KafkaServer, target_dir};
use mas_transport_core::{
    Consumer, Delivery, Namespace, PublishOptions, Publisher, Subscription, Topic, TopicSpec,
    Transport as _,
};
use mas_transport_kafka::{Compression, KafkaConfig, KafkaNative, KafkaTransport};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

/// Within this a broker on the same machine answers, also when the machine is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What the group of every test is called.
pub(crate) const GROUP: &str = "billing";

const PYTHON: &str = "kafka-python==3.0.12";

fn required() -> bool {
    std::env::var_os("REQUIRE_KAFKA").is_some_and(|value| value == "1")
}

/// One broker for all tests, which use namespaces of their own. It ends with this process.
static BROKER: LazyLock<Option<String>> = LazyLock::new(|| {
    if let Some(given) = KafkaServer::given() {
        return Some(given);
    }
    match KafkaServer::start(&KafkaOptions::new()) {
        Ok(server) => {
            let address = server.address();
            std::mem::forget(server);
            Some(address)
        }
        Err(why) => {
            assert!(!required(), "REQUIRE_KAFKA=1 and {why}");
            println!("SKIPPED backend=kafka reason={why}");
            None
        }
    }
});

/// The clients of this machine. Python is required where the broker is. Java is not: what is fetched to run
/// the broker need not have a compiler, and the hashes of Java are also in a unit test.
static CLIENTS: LazyLock<Vec<Client>> = LazyLock::new(|| {
    let (python, java) = (python(), java());
    if let Err(why) = &python {
        assert!(!required(), "REQUIRE_KAFKA=1 and {why}");
    }
    let mut clients = Vec::new();
    for (name, reads, found) in [
        // Snappy, the default, is a package of its own there.
        ("python", Compression::Gzip, python),
        ("java", Compression::Snappy, java),
    ] {
        match found {
            Ok(command) => clients.push(Client {
                name,
                reads,
                command,
            }),
            Err(why) => println!("SKIPPED backend=kafka client={name} reason={why}"),
        }
    }
    clients
});

/// A program that publishes and reads records; kafka_client.py tells how.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    reads: Compression,
    command: Vec<OsString>,
}

fn here(file: &str) -> OsString {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    tests.join(file).into_os_string()
}

/// Python with its client, in an environment of its own.
fn python() -> Result<Vec<OsString>, String> {
    let there = Command::new("python3").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        return Err("python3 is not here".to_owned());
    }
    let home = target_dir().join("tools").join(PYTHON.replace("==", "-"));
    let python = home.join("bin/python3");
    if !python.is_file() {
        // Moved to its place when it is complete.
        let fresh = home.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::create_dir_all(&fresh).unwrap();
        run(Command::new("python3").args(["-m", "venv"]).arg(&fresh));
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ];
        run(Command::new(fresh.join("bin/python3"))
            .args(pip)
            .arg(PYTHON));
        // Another process may have been faster.
        if std::fs::rename(&fresh, &home).is_err() {
            std::fs::remove_dir_all(&fresh).unwrap();
        }
    }
    Ok(vec![python.into(), here("kafka_client.py")])
}

/// Java with the client that came with the broker.
fn java() -> Result<Vec<OsString>, String> {
    let server = KafkaServer::program().map_err(|why| why.to_string())?;
    let jars = server.with_file_name("libs");
    let names = std::fs::read_dir(&jars).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    if !names.any(|name| name.starts_with("kafka-clients-")) {
        return Err(format!("no kafka-clients in {}", jars.display()));
    }
    let java = match std::env::var_os("JAVA_HOME") {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => PathBuf::from("java"),
    };
    let modules = Command::new(&java).arg("--list-modules").output();
    let modules = modules.map_err(|why| format!("{}: {why}", java.display()))?;
    if !String::from_utf8_lossy(&modules.stdout).contains("jdk.compiler") {
        return Err(format!("{} comes without a compiler", java.display()));
    }
    Ok(vec![
        java.into(),
        "-XX:TieredStopAtLevel=1".into(),
        // It would write among the records.
        "-Dlog4j2.level=OFF".into(),
        "-cp".into(),
        jars.join("*").into_os_string(),
        here("KafkaClient.java"),
    ])
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Bytes, which are base64 in JSON.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Data(pub(crate) Vec<u8>);

impl From<Data> for String {
    fn from(data: Data) -> Self {
        STANDARD.encode(data.0)
    }
}

impl TryFrom<String> for Data {
    type Error = base64::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Data {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) => write!(f, "{text:?}"),
            Err(_) => write!(f, "b\"{}\"", self.0.escape_ascii()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: Data,
}

/// A record as it is on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wire {
    /// Where it was read.
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Data>,
    pub(crate) headers: Vec<Header>,
    pub(crate) value: Option<Data>,
}

impl Wire {
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push(Header {
            name: name.to_owned(),
            value: Data::from(&value),
        });
        self
    }

    pub(crate) fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(Data::from(&key));
        self
    }

    pub(crate) fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        self.value = Some(Data::from(&value));
        self
    }

    /// With its headers in the order of their names: that of attributes means nothing.
    pub(crate) fn sorted(mut self) -> Self {
        self.headers.sort();
        self
    }
}

/// One test's part of the broker, with one of the clients.
pub(crate) struct Bench {
    pub(crate) client: &'static Client,
    pub(crate) publisher: Publisher,
    transport: Arc<KafkaTransport>,
    partitions: u32,
    brokers: String,
}

impl Bench {
    /// One for each client, with topics of so many partitions; none where there is no broker and none is
    /// required.
    pub(crate) async fn all(name: &str, partitions: u32) -> Vec<Self> {
        let found = tokio::task::spawn_blocking(|| BROKER.clone().map(|at| (at, &**CLIENTS)));
        let Some((brokers, clients)) = found.await.unwrap() else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for client in clients {
            let namespace = format!("t{}-{name}", std::process::id());
            let config = KafkaConfig::new(&brokers)
                .namespace(Namespace::new(namespace).unwrap())
                .partitions(i32::try_from(partitions).unwrap())
                .compression(client.reads);
            let transport = Arc::new(KafkaTransport::connect(config).await.unwrap());
            all.push(Self {
                client,
                publisher: Publisher::new(transport.clone(), PublishOptions::default()),
                transport,
                partitions,
                brokers: brokers.clone(),
            });
        }
        all
    }

    /// The topic of the two, which is there.
    pub(crate) async fn topic(&self) -> Topic {
        let topic = Topic::new(self.client.name).unwrap();
        let mut spec = TopicSpec::new(topic.clone());
        spec.partitions = self.partitions;
        self.transport.admin().declare(&spec).await.unwrap();
        topic
    }

    pub(crate) async fn consumer(&self, topic: &Topic) -> Consumer {
        let subscription = Subscription::new(topic.as_str()).group(GROUP);
        let started = Consumer::start(self.transport.clone(), subscription);
        started.await.unwrap()
    }

    /// The client writes these records: the partition of each.
    pub(crate) fn write(&self, topic: &Topic, records: &[Wire]) -> Vec<i32> {
        let said = self.say("publish", topic, records);
        let partitions: Vec<i32> = said.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(partitions.len(), records.len(), "{said}");
        partitions
    }

    /// Every record that the client finds in a topic.
    pub(crate) fn read(&self, topic: &Topic) -> Vec<Wire> {
        let said = self.say("read", topic, &[]);
        let read = said.lines().map(|line| serde_json::from_str(line).unwrap());
        read.collect()
    }

    /// What the client says, given this. It ends by itself: what it waits for has a limit.
    fn say(&self, what: &str, topic: &Topic, input: &[Wire]) -> String {
        let native = self.transport.native();
        let native = native.and_then(|n| n.downcast_ref::<KafkaNative>());
        let name = native.unwrap().topic(topic);
        let (program, arguments) = self.client.command.split_first().unwrap();
        let mut child = Command::new(program)
            .args(arguments)
            .args([what, self.brokers.as_str(), name.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = String::new();
        for record in input {
            lines += &serde_json::to_string(record).unwrap();
            lines.push('\n');
        }
        let output = tokio::task::block_in_place(|| {
            // One that ends early tells why below.
            let _ = stdin.write_all(lines.as_bytes());
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        let errors = String::from_utf8_lossy(&output.stderr);
        let name = self.client.name;
        assert!(output.status.success(), "{name}, {what}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn close(self) {
        self.publisher.close(Instant::now() + SOON).await.unwrap();
        self.transport.close(Instant::now() + SOON).await.unwrap();
    }
}

pub(crate) async fn next(consumer: &Consumer) -> Delivery {
    let received = timeout(SOON, consumer.recv()).await;
    received.expect("a message in time").unwrap().unwrap()
}
