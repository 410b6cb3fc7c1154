//! The clients underneath: one that publishes and asks, one that makes and removes, and what they tell of.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use mas_transport_core::backend::lock;
use mas_transport_core::{Error, ErrorKind, Result};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::Client;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::BACKEND;
use crate::config::KafkaConfig;
use crate::error;
use crate::publish::{self, Delivered, Producer};

/// Most questions on their way.
const SIDE_BY_SIDE: usize = 8;

/// What a client told of last, beside the answers to requests: why it cannot connect, mostly.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<(Instant, Code, String)>>);

impl Trouble {
    pub(crate) fn told(&self, told: &KafkaError, reason: &str) {
        let Some(mut code) = error::code(told) else {
            return;
        };
        // A broker that wants another certificate says so only after the client has taken the connection
        // for made, and for the client it broke then.
        if code == Code::BrokerTransportFailure && reason.contains("SSL alert number") {
            code = Code::SSL;
        }
        tracing::debug!(%code, reason, "a client of Kafka reports");
        let mut last = lock(&self.0);
        // That all are down says less than why one is.
        if code == Code::AllBrokersDown && last.is_some() {
            return;
        }
        *last = Some((Instant::now(), code, reason.to_owned()));
    }

    /// What was told since, as a cause.
    pub(crate) fn since(&self, since: Instant) -> Option<(Code, String)> {
        let last = lock(&self.0);
        let (at, code, reason) = last.as_ref()?;
        (*at >= since).then(|| (*code, reason.clone()))
    }
}

/// What the client writes into its log. It is told to us, so its loudest lines are warnings here.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// The words of a client.
#[derive(Debug)]
struct Told(String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}

/// The context of the client that makes and removes. It hears of no errors: the library asks that client
/// for the answers to its requests only.
#[derive(Debug, Default)]
pub(crate) struct Making;

impl ClientContext for Making {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
}

/// The clients of a transport, beside those of its members. What is asked of them blocks, so it runs on
/// the threads that are for that.
pub(crate) struct Asker {
    pub(crate) config: Arc<KafkaConfig>,
    producer: RwLock<Option<Arc<Producer>>>,
    admin: Mutex<Option<Arc<AdminClient<Making>>>>,
    trouble: Arc<Trouble>,
    /// How many questions go out side by side: those behind do not wait at the broker, where the time for
    /// an answer runs.
    turns: Semaphore,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

/// Clients that nobody uses any more, to be dropped where that may block.
pub(crate) type Dismissed = (Option<Arc<Producer>>, Option<Arc<AdminClient<Making>>>);

impl Asker {
    pub(crate) fn new(config: Arc<KafkaConfig>) -> Result<Self> {
        let trouble = Arc::<Trouble>::default();
        let producer = make_producer(&config, trouble.clone())?;
        let admin = AdminClient::from_config_and_context(&config.client(), Making)
            .map_err(|e| error::told("connect", e))?;
        Ok(Self {
            config,
            producer: RwLock::new(Some(Arc::new(producer))),
            admin: Mutex::new(Some(Arc::new(admin))),
            trouble,
            turns: Semaphore::new(SIDE_BY_SIDE),
        })
    }

    /// Waits for its turn to ask.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// Asks something on a thread that may block, within the time for an answer.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        ask: impl FnOnce(&Client<Delivered>, Duration) -> std::result::Result<T, KafkaError>
        + Send
        + 'static,
    ) -> Result<T> {
        let within = self.config.response_timeout;
        self.ask_within(operation, Instant::now(), within, ask)
            .await
    }

    /// Likewise, within a time of its own; what the client has told since then explains a failure.
    pub(crate) async fn ask_within<T: Send + 'static>(
        &self,
        operation: &'static str,
        since: Instant,
        within: Duration,
        ask: impl FnOnce(&Client<Delivered>, Duration) -> std::result::Result<T, KafkaError>
        + Send
        + 'static,
    ) -> Result<T> {
        let _turn = self.turn().await;
        let closed = || Error::closed(operation).on(BACKEND);
        let producer = self.producer().ok_or_else(closed)?;
        let asked = tokio::task::spawn_blocking(move || {
            let answer = ask(producer.client(), within);
            // Here, should it be the last one: closing a client blocks.
            drop(producer);
            answer
        });
        match asked.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(told)) => Err(self.explain(operation, since, told)),
            Err(_) => Err(closed()),
        }
    }

    /// An error, with why the brokers cannot be reached, where that is known.
    pub(crate) fn explain(
        &self,
        operation: &'static str,
        since: Instant,
        told: KafkaError,
    ) -> Error {
        explain(&self.config, &self.trouble, operation, since, told)
    }

    /// The client of requests that make and remove.
    pub(crate) fn admin(&self, operation: &'static str) -> Result<Arc<AdminClient<Making>>> {
        let admin = lock(&self.admin).clone();
        admin.ok_or_else(|| Error::closed(operation).on(BACKEND))
    }

    /// The client that publishes: another one when the last one has broken for good, none when this is
    /// closed.
    pub(crate) fn producer(&self) -> Option<Arc<Producer>> {
        let producer = self.producer.read();
        let producer = producer.unwrap_or_else(PoisonError::into_inner).clone()?;
        if producer.client().fatal_error().is_none() {
            return Some(producer);
        }
        let current = self.producer.write();
        let mut current = current.unwrap_or_else(PoisonError::into_inner);
        if let Some((code, reason)) = current.as_ref()?.client().fatal_error() {
            tracing::warn!(%code, reason, "the client that publishes is made anew");
            match make_producer(&self.config, self.trouble.clone()) {
                Ok(fresh) => {
                    let broken = current.replace(Arc::new(fresh));
                    dispose(move || drop(broken));
                }
                Err(error) => tracing::warn!(%error, "the client that publishes cannot be made"),
            }
        }
        current.clone()
    }

    /// Gives the clients away.
    pub(crate) fn dismiss(&self) -> Dismissed {
        let producer = self.producer.write();
        let producer = producer.unwrap_or_else(PoisonError::into_inner).take();
        (producer, lock(&self.admin).take())
    }

    pub(crate) fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.response_timeout))
            .operation_timeout(Some(self.config.response_timeout))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        match self.dismiss() {
            (None, None) => {}
            clients => dispose(move || drop(clients)),
        }
    }
}

fn make_producer(config: &KafkaConfig, trouble: Arc<Trouble>) -> Result<Producer> {
    Producer::from_config_and_context(&publish::settings(config), Delivered::new(trouble))
        .map_err(|e| error::told("connect", e))
}

/// Lets clients go, which blocks for a moment, on a thread that ends with it.
pub(crate) fn dispose(let_go: impl FnOnce() + Send + 'static) {
    let spawned = std::thread::Builder::new()
        .name("kafka closing".to_owned())
        .spawn(let_go);
    if let Err(error) = spawned {
        tracing::debug!(%error, "clients were closed in place");
    }
}

/// An error with the address and, where the client knows why it cannot connect, with that.
pub(crate) fn explain(
    config: &KafkaConfig,
    trouble: &Trouble,
    operation: &'static str,
    since: Instant,
    told: KafkaError,
) -> Error {
    let plain = error::told(operation, told);
    if !matches!(plain.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
        return plain.with("address", config.address());
    }
    let Some((code, reason)) = trouble.since(since) else {
        return plain.with("address", config.address());
    };
    let (kind, message) = error::meaning(code);
    let kind = match kind {
        ErrorKind::Unauthorized => kind,
        _ => plain.kind(),
    };
    error::error(kind, operation, message)
        .with("address", config.address())
        .because(Told(reason))
}
