//! Connections to the servers: made, watched and asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, Context};
use async_nats::rustls::{self, ClientConfig, RootCertStore};
use async_nats::{Client, ConnectOptions, Event, RequestError, Statistics};
use mas_transport_core::backend::Wait;
pub(crate) use mas_transport_core::backend::lock;
use mas_transport_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::BACKEND;
use crate::config::{Identity, NatsConfig};
use crate::error::{connect, error, unanswered};
use crate::refusals::{Refusal, Refusals};

/// Between attempts to connect.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest pause between attempts to reconnect.
const LONGEST: Duration = Duration::from_secs(1);
/// How often an idle connection is asked whether it lives; after two silences it is given up.
const PING: Duration = Duration::from_secs(5);
/// Requests that may wait for the task that writes.
const WAITING: usize = 8192;
/// What a subscription may hold before the client drops messages: more than is ever in flight.
pub(crate) const HELD: usize = 65_536;

/// How often the client tries to reconnect before it gives up, and a new one takes its place: it cannot be
/// stopped meanwhile.
const ATTEMPTS: usize = 30;

/// A connection that heals by itself.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: Arc<NatsConfig>,
    current: Mutex<Current>,
    refusals: Arc<Refusals>,
    changes: watch::Sender<u64>,
    closing: CancellationToken,
}

/// A client, which reconnects for a while.
#[derive(Clone, Debug)]
struct Current {
    client: Client,
    statistics: Arc<Statistics>,
    /// Connections of the clients before this one.
    before: u64,
    /// It has a connection, as far as it has said.
    connected: Arc<AtomicBool>,
    /// It has given up, or was closed.
    ended: CancellationToken,
}

impl Link {
    /// Connects; tries again until the configured time has passed.
    pub(crate) async fn connect(config: Arc<NatsConfig>) -> Result<Self> {
        config.check()?;
        let deadline = Instant::now() + config.connect_timeout;
        let mut last = None;
        loop {
            let failed = match timeout_at(deadline, Self::dial(config.clone())).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => error,
                Err(_) => {
                    let why = "the server did not answer in time";
                    let silent = || error(ErrorKind::Unavailable, "connect", why);
                    let silent = || silent().with("address", config.address());
                    return Err(last.unwrap_or_else(silent));
                }
            };
            if !failed.is_retryable() || Instant::now() + AGAIN >= deadline {
                return Err(failed);
            }
            tracing::debug!(error = %failed, "connecting again");
            last = Some(failed);
            sleep(AGAIN).await;
        }
    }

    /// Connects once.
    pub(crate) async fn dial(config: Arc<NatsConfig>) -> Result<Self> {
        let changes = watch::Sender::new(0);
        let closing = CancellationToken::new();
        let refusals = Arc::default();
        let current = open(&config, &refusals, &changes, &closing, 0).await?;
        Ok(Self {
            config,
            current: Mutex::new(current),
            refusals,
            changes,
            closing,
        })
    }

    /// Puts another client in the place of one that has given up, until `ending`.
    pub(crate) async fn keep(self: Arc<Self>, ending: CancellationToken) {
        let mut wait = Wait::new();
        loop {
            let current = self.current();
            tokio::select! {
                () = ending.cancelled() => return,
                () = current.ended.cancelled() => {}
            }
            let before = current.before + current.statistics.connects.load(Ordering::Acquire);
            let opening = open(
                &self.config,
                &self.refusals,
                &self.changes,
                &self.closing,
                before,
            );
            match ending.run_until_cancelled(opening).await {
                None => return,
                Some(Ok(opened)) => {
                    *lock(&self.current) = opened;
                    self.changes.send_modify(|changes| *changes += 1);
                    wait = Wait::new();
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "still no connection");
                    let again = sleep(wait.next());
                    if ending.run_until_cancelled(again).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn current(&self) -> Current {
        lock(&self.current).clone()
    }

    pub(crate) fn client(&self) -> Client {
        lock(&self.current).client.clone()
    }

    /// Made anew each time: it keeps a task for as long as it lives.
    pub(crate) fn jetstream(&self) -> Context {
        jetstream::ContextBuilder::new()
            .timeout(self.config.response_timeout)
            .build(self.client())
    }

    /// How often a connection was made: whatever was in flight over an earlier one is in doubt.
    pub(crate) fn epoch(&self) -> u64 {
        let current = lock(&self.current);
        current.before + current.statistics.connects.load(Ordering::Acquire)
    }

    /// The process of the server that the client is connected to, as that calls itself.
    pub(crate) fn process(&self) -> Arc<str> {
        self.client().server_info().server_id.into()
    }

    /// Wakes whoever watches when the connection breaks and when it is back.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn is_up(&self) -> bool {
        let current = lock(&self.current);
        // The client tells of a break before its state does, and of a connection after.
        current.connected.load(Ordering::Acquire)
            && !current.ended.is_cancelled()
            && current.client.connection_state() == State::Connected
    }

    /// The client has given up; what was subscribed has to be subscribed again.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.current).ended.is_cancelled()
    }

    /// Waits until there is a connection.
    pub(crate) async fn ready(&self, operation: &'static str, deadline: Instant) -> Result<u64> {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if self.is_up() {
                return Ok(self.epoch());
            }
            // Looked at again by itself: the event may come before the state.
            let again = (Instant::now() + LONGEST).min(deadline);
            match timeout_at(again, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::closed(operation).on(BACKEND)),
                Err(_) if again < deadline => {}
                Err(_) => {
                    let (kind, why) = match self.refusals.away() {
                        true => (
                            ErrorKind::Unauthorized,
                            "the server no longer lets this user in",
                        ),
                        false => (
                            ErrorKind::Unavailable,
                            "there is no connection to the server",
                        ),
                    };
                    return Err(error(kind, operation, why).with("address", self.config.address()));
                }
            }
        }
    }

    /// Asks JetStream. The inner error is what it answered.
    pub(crate) async fn ask<T, V>(
        &self,
        operation: &'static str,
        subject: String,
        request: &T,
    ) -> Result<std::result::Result<V, jetstream::Error>>
    where
        T: Serialize + Sync + ?Sized,
        V: DeserializeOwned,
    {
        let mut body = serde_json::to_vec(request).unwrap_or_default();
        // Some requests have to be empty.
        if body == b"null" {
            body.clear();
        }
        let answer = self.request(operation, &subject, body).await?;
        let answer = answer.map_err(|e| unanswered(operation, &self.config.address(), e))?;
        let answer = serde_json::from_slice(&answer.payload).map_err(|e| {
            let why = "the server's answer has a form that is not known";
            error(ErrorKind::Broker, operation, why)
                .with("address", self.config.address())
                .maybe_stored()
                .because(e)
        })?;
        Ok(match answer {
            Response::Ok(value) => Ok(value),
            Response::Err { error } => Err(error),
        })
    }

    /// Asks below `$JS.API`, in whatever form that is answered. The inner error is what the client knows of why
    /// nobody did.
    pub(crate) async fn request(
        &self,
        operation: &'static str,
        subject: &str,
        body: Vec<u8>,
    ) -> Result<std::result::Result<async_nats::Message, RequestError>> {
        let deadline = Instant::now() + self.config.response_timeout;
        let epoch = self.ready(operation, deadline).await?;
        let client = self.client();
        let subject = format!("$JS.API.{subject}");
        let since = Instant::now();
        let asked = client.request(subject.clone(), body.into());
        tokio::pin!(asked);
        let mut changes = self.changes();
        loop {
            if let Some(refused) = self.refused(operation, &subject, since) {
                return Err(refused);
            }
            tokio::select! {
                answer = &mut asked => return Ok(answer),
                // The answer went with the connection.
                changed = changes.changed() => {
                    if changed.is_err() || !self.is_up() || self.epoch() != epoch {
                        return Err(self.broken(operation));
                    }
                }
            }
        }
    }

    /// As [`ask`](Self::ask), with every error the caller's.
    pub(crate) async fn must<T, V>(
        &self,
        operation: &'static str,
        subject: String,
        request: &T,
    ) -> Result<V>
    where
        T: Serialize + Sync + ?Sized,
        V: DeserializeOwned,
    {
        self.ask(operation, subject, request)
            .await?
            .map_err(|told| crate::error::answered(operation, &told))
    }

    /// Why no answer will come to what was published to a subject since then, if the server said so.
    pub(crate) fn refused(
        &self,
        operation: &'static str,
        subject: &str,
        since: Instant,
    ) -> Option<Error> {
        let refusal = self.refusals.find(subject, since)?;
        Some(self.deny(operation, refusal))
    }

    /// What the server refused lately.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// A refusal as an error.
    pub(crate) fn deny(&self, operation: &'static str, refusal: Refusal) -> Error {
        let error = refusal.into_error(operation);
        error.with("address", self.config.address())
    }

    /// The connection broke while something was on its way.
    pub(crate) fn broken(&self, operation: &'static str) -> Error {
        error(
            ErrorKind::Unavailable,
            operation,
            "the connection broke before the server answered",
        )
        .with("address", self.config.address())
        .maybe_stored()
    }

    /// No answer came in time.
    pub(crate) fn silent(&self, operation: &'static str) -> Error {
        error(
            ErrorKind::Timeout,
            operation,
            "the server did not answer in time",
        )
        .with("address", self.config.address())
        .maybe_stored()
    }

    /// Writes what is waiting and ends the connection, in the given time.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.closing.cancel();
        let current = self.current();
        // Without a connection there is nothing to write: then the client gives up by itself soon.
        if current.client.drain().await.is_ok() {
            let _ = timeout_at(deadline, current.ended.cancelled()).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Connects a client.
async fn open(
    config: &NatsConfig,
    refusals: &Arc<Refusals>,
    changes: &watch::Sender<u64>,
    closing: &CancellationToken,
    before: u64,
) -> Result<Current> {
    let ended = CancellationToken::new();
    // Goes with the client, which has nothing to say then.
    let end = ended.clone().drop_guard();
    let (refusals, changes, closing) = (refusals.clone(), changes.clone(), closing.clone());
    let connected = Arc::new(AtomicBool::new(true));
    let told = connected.clone();
    // One that is silent leaves time for the others.
    let servers = u32::try_from(config.servers.len()).unwrap_or(u32::MAX);
    let options = options(config)?
        .name("mas-transport")
        .connection_timeout(config.connect_timeout / servers.max(1))
        .request_timeout(Some(config.response_timeout))
        .ping_interval(PING)
        .client_capacity(WAITING)
        .subscription_capacity(HELD)
        // Names are checked where they are made.
        .skip_subject_validation(true)
        .max_reconnects(ATTEMPTS)
        .reconnect_delay_callback(move |attempts| match attempts {
            _ if closing.is_cancelled() => Duration::from_millis(1),
            0 | 1 => Duration::ZERO,
            _ => Duration::from_millis(10 << attempts.min(7)).min(LONGEST),
        })
        .event_callback(move |event| {
            let _ = &end;
            refusals.note(&event);
            match &event {
                Event::Connected => told.store(true, Ordering::Release),
                Event::Disconnected => told.store(false, Ordering::Release),
                _ => {}
            }
            match &event {
                Event::SlowConsumer(_) => {
                    tracing::warn!("the client dropped messages that came too fast");
                }
                event => tracing::debug!(%event, "connection"),
            }
            changes.send_modify(|changes| *changes += 1);
            std::future::ready(())
        });
    let scheme = if config.tls.is_some() { "tls" } else { "nats" };
    let addresses: Vec<String> = config
        .servers
        .iter()
        .map(|server| format!("{scheme}://{server}"))
        .collect();
    let client = options
        .connect(addresses)
        .await
        .map_err(|e| connect(config, e))?;
    Ok(Current {
        statistics: client.statistics(),
        client,
        before,
        connected,
        ended,
    })
}

fn options(config: &NatsConfig) -> Result<ConnectOptions> {
    let options = ConnectOptions::new();
    let options = match &config.identity {
        Identity::Nobody => options,
        Identity::Token(token) => options.token(token.clone()),
        Identity::User(user, password) => {
            options.user_and_password(user.clone(), password.clone())
        }
        Identity::Nkey(seed) => {
            // The client says this late, and the connection would be tried again and again.
            if nkeys::KeyPair::from_seed(seed.trim()).is_err() {
                let why = "the NKEY is not a seed: it begins with SU and has 58 characters";
                return Err(Error::invalid("connect", why).on(BACKEND));
            }
            options.nkey(seed.trim().to_owned())
        }
        Identity::Credentials(content) => options.credentials(content).map_err(|_| {
            let why = "the credentials are not those of a credentials file: a JWT and a seed between \
                       BEGIN and END lines";
            Error::invalid("connect", why).on(BACKEND)
        })?,
    };
    Ok(match &config.tls {
        None => options.tls_client_config(nobody()?),
        Some(tls) => options
            .require_tls(true)
            .tls_client_config(tls.client_config().map_err(|e| e.on(BACKEND))?),
    })
}

/// Trusts nobody: to a server that asks for encryption the client turns by itself, also where none is
/// configured, and then by a provider of cryptography that may not have been chosen.
fn nobody() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| {
            let why = "no version of TLS can be used";
            Error::invalid("connect", why).on(BACKEND).because(e)
        })?;
    let nobody = RootCertStore::empty();
    Ok(builder.with_root_certificates(nobody).with_no_client_auth())
}
