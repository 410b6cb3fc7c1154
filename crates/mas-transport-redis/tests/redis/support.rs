//! A real server on a port and a directory of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mas_transport_core::{
    Event, Fetch, Message, Outcome, RawDelivery, Receipt, Result, Settle, Settled, Source,
    Subscription, Token, Topic, Transport, Want,
};
use mas_transport_redis::{RedisConfig, RedisNative, RedisTransport};
use redis::aio::MultiplexedConnection;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// Within this a server on the same machine answers, also when the machine is busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A server process, killed at the end.
pub(crate) struct Server {
    binary: PathBuf,
    directory: PathBuf,
    pub(crate) port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

/// The server's binary: the environment, what `scripts/brokers` fetched, the PATH.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TEST_REDIS_SERVER") {
        return Some(path.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let mut found: Vec<PathBuf> = std::fs::read_dir(target.join("brokers"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("redis-server"))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|p| p.join("redis-server"));
    found.into_iter().chain(on_path).find(|p| p.is_file())
}

/// Whether the server was built with TLS; says so if not. Of those that `scripts/brokers` fetches some are not.
pub(crate) async fn encrypts() -> bool {
    let Some(binary) = binary() else {
        // Starting one says so.
        return true;
    };
    // It ends at once: without a certificate, too.
    let mut server = Command::new(binary);
    server.args(["--port", "0", "--tls-port", "1", "--save", ""]);
    let ended = timeout(SOON, server.kill_on_drop(true).output()).await;
    let said = ended.expect("it ends").expect("it starts");
    let said = [said.stdout, said.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let without = ["Failed finding TLS support", "Bad directive"];
    let encrypts = !without.iter().any(|text| said.contains(text));
    if !encrypts {
        println!("SKIPPED: this redis-server was built without TLS");
    }
    encrypts
}

impl Server {
    /// Starts a server, or says why there is none.
    pub(crate) async fn start(options: &[&str]) -> Option<Self> {
        Self::start_with(options, &[]).await
    }

    /// Starts a server that finds these files in its directory; `{dir}` and `{port}` in an option
    /// stand for that directory and the server's port.
    pub(crate) async fn start_with(options: &[&str], files: &[(&str, String)]) -> Option<Self> {
        let Some(binary) = binary() else {
            assert!(
                std::env::var_os("REQUIRE_REDIS").is_none_or(|v| v != "1"),
                "REQUIRE_REDIS=1 and no redis-server: run scripts/brokers"
            );
            println!("SKIPPED: no redis-server; run scripts/brokers or set TEST_REDIS_SERVER");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let directory =
            std::env::temp_dir().join(format!("mas-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        for (name, text) in files {
            std::fs::write(directory.join(name), text).expect("a file");
        }
        let here = |option: &&str| {
            let option = option.replace("{dir}", &directory.display().to_string());
            option.replace("{port}", &port.to_string())
        };
        let options = options.iter().map(here).collect();
        let mut server = Self {
            binary,
            directory,
            port,
            options,
            child: None,
        };
        server.restart().await;
        Some(server)
    }

    /// Starts it again on the same port and data.
    pub(crate) async fn restart(&mut self) {
        let child = Command::new(&self.binary)
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.options)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
        let until = Instant::now() + SOON;
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .is_err()
        {
            assert!(Instant::now() < until, "the server does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("it is ours to kill");
        }
    }

    /// Stops it where it stands, or lets it go on.
    pub(crate) async fn freeze(&self, frozen: bool) {
        let pid = self.child.as_ref().and_then(Child::id).expect("it runs");
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let sent = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status();
        assert!(sent.await.expect("kill(1)").success());
    }

    pub(crate) fn config(&self) -> RedisConfig {
        RedisConfig::new(format!("127.0.0.1:{}", self.port))
    }

    pub(crate) async fn connect(&self) -> RedisTransport {
        RedisTransport::connect(self.config())
            .await
            .expect("a connection")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

pub(crate) fn subscription(topic: &str, lease_ms: u64) -> Subscription {
    Subscription::new(topic)
        .group("g")
        .lease(Duration::from_millis(lease_ms))
}

pub(crate) async fn raw(transport: &RedisTransport) -> MultiplexedConnection {
    native(transport).connect().await.unwrap()
}

pub(crate) fn native(transport: &RedisTransport) -> &RedisNative {
    transport.native().unwrap().downcast_ref().unwrap()
}

pub(crate) async fn publish(transport: &RedisTransport, topic: &str, count: usize) -> Vec<Receipt> {
    let batch = (0..count)
        .map(|i| Message::new(topic, format!("payload {i}")).unwrap())
        .collect();
    outcomes(transport, batch)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

pub(crate) async fn outcomes(
    transport: &RedisTransport,
    batch: Vec<Message>,
) -> Vec<Result<Receipt>> {
    transport.publish(batch, Instant::now() + SOON).await.await
}

/// The receiving side of a member as a pump drives it, one event at a time.
pub(crate) struct Member {
    pub(crate) fetch: Box<dyn Fetch>,
    pub(crate) settle: std::sync::Arc<dyn Settle>,
    pub(crate) want: usize,
    pub(crate) waiting: std::collections::VecDeque<Event>,
}

impl Member {
    pub(crate) async fn join(transport: &RedisTransport, subscription: &Subscription) -> Self {
        Self::of(transport.subscribe(subscription).await.unwrap())
    }

    pub(crate) fn of(source: Source) -> Self {
        let Source { fetch, settle } = source;
        Self {
            fetch,
            settle,
            want: 1000,
            waiting: std::collections::VecDeque::new(),
        }
    }

    /// The next event; errors that pass are waited out.
    pub(crate) async fn event(&mut self) -> Event {
        timeout(SOON, async {
            loop {
                if let Some(event) = self.waiting.pop_front() {
                    return event;
                }
                let want = Want::new(self.want, 64 << 20);
                let mut out = Vec::new();
                match self.fetch.fetch(want, &mut out).await {
                    Ok(()) => self.waiting.extend(out),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
        .expect("an event in time")
    }

    pub(crate) async fn delivery(&mut self) -> RawDelivery {
        loop {
            match self.event().await {
                Event::Delivery(delivery) => return delivery,
                Event::Reconnected => {}
                other => panic!("a delivery was expected: {other:?}"),
            }
        }
    }

    pub(crate) async fn deliveries(&mut self, count: usize) -> Vec<RawDelivery> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.delivery().await);
        }
        all
    }

    /// The first failure of a fetch; deliveries are passed over.
    pub(crate) async fn failure(&mut self) -> mas_transport_core::Error {
        let failing = async {
            loop {
                let want = Want::new(self.want, 64 << 20);
                if let Err(error) = self.fetch.fetch(want, &mut Vec::new()).await {
                    return error;
                }
            }
        };
        timeout(SOON, failing).await.expect("a failure in time")
    }

    /// Takes nothing more.
    pub(crate) async fn rest(&mut self) {
        self.want = 0;
        self.quiet(Duration::from_millis(1)).await;
    }

    /// Nothing comes for this long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        let mut out = Vec::new();
        let want = Want::new(self.want, 64 << 20);
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        let fetched = timeout(time, self.fetch.fetch(want, &mut out)).await;
        assert!(fetched.is_err(), "{fetched:?} {out:?}");
    }

    pub(crate) async fn one(&self, token: Token, outcome: Outcome) -> Result<Settled> {
        self.settle
            .settle(vec![(token, outcome)])
            .await
            .pop()
            .unwrap()
    }

    pub(crate) async fn ack(&self, deliveries: &[RawDelivery]) {
        let batch = deliveries.iter().map(|d| (d.token, Outcome::Ack)).collect();
        for result in self.settle.settle(batch).await {
            assert_eq!(result.unwrap(), Settled::Done);
        }
    }
}
