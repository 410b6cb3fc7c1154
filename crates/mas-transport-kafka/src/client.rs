//! The clients underneath: one that publishes, one that asks and makes, and what they tell of.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mas_transport_core::backend::lock;
use mas_transport_core::{Error, ErrorKind, Result};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::Client;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::BACKEND;
use crate::config::KafkaConfig;
use crate::error;

/// Most questions on their way.
const SIDE_BY_SIDE: usize = 8;

/// What a client told of last, beside the answers to requests: why it cannot connect, mostly.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<(Instant, Code, String)>>);

impl Trouble {
    pub(crate) fn told(&self, told: &KafkaError, reason: &str) {
        let Some(code) = error::code(told) else {
            return;
        };
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

/// The context of a client that only asks.
#[derive(Debug, Default)]
pub(crate) struct Asking(pub(crate) Arc<Trouble>);

impl ClientContext for Asking {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.told(&error, reason);
    }
}

/// The client that asks and makes. What it does blocks, so it runs on the threads that are for that.
pub(crate) struct Asker {
    pub(crate) config: Arc<KafkaConfig>,
    admin: Mutex<Option<Arc<AdminClient<Asking>>>>,
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

impl Asker {
    pub(crate) fn new(config: Arc<KafkaConfig>) -> Result<Self> {
        let trouble = Arc::<Trouble>::default();
        let context = Asking(trouble.clone());
        let client = config.client();
        let admin = AdminClient::from_config_and_context(&client, context)
            .map_err(|e| error::told("connect", e))?;
        Ok(Self {
            config,
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
        ask: impl FnOnce(&Client<Asking>, Duration) -> std::result::Result<T, KafkaError>
        + Send
        + 'static,
    ) -> Result<T> {
        self.ask_within(operation, self.config.response_timeout, ask)
            .await
    }

    pub(crate) async fn ask_within<T: Send + 'static>(
        &self,
        operation: &'static str,
        within: Duration,
        ask: impl FnOnce(&Client<Asking>, Duration) -> std::result::Result<T, KafkaError>
        + Send
        + 'static,
    ) -> Result<T> {
        let _turn = self.turn().await;
        let admin = self.admin(operation)?;
        let since = Instant::now();
        let asked = tokio::task::spawn_blocking(move || {
            let answer = ask(admin.inner(), within);
            // Here, should it be the last one: closing a client blocks.
            drop(admin);
            answer
        });
        let asked = asked.await;
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(told)) => Err(self.explain(operation, since, told)),
            Err(_) => Err(Error::closed(operation).on(BACKEND)),
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
    pub(crate) fn admin(&self, operation: &'static str) -> Result<Arc<AdminClient<Asking>>> {
        let admin = lock(&self.admin).clone();
        admin.ok_or_else(|| Error::closed(operation).on(BACKEND))
    }

    /// Gives the client away, to be dropped where that may block.
    pub(crate) fn dismiss(&self) -> Option<Arc<AdminClient<Asking>>> {
        lock(&self.admin).take()
    }

    pub(crate) fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.response_timeout))
            .operation_timeout(Some(self.config.response_timeout))
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
