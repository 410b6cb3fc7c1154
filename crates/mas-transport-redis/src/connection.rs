//! Connections: one that all commands of a transport share and that heals by itself, and the means
//! to open others.
//!
//! The shared connection speaks RESP3, so that the wake-ups of all members come in on it too and a
//! broken connection is noticed while nothing is asked. When it breaks, a task opens a new one at
//! once, then after 50 ms, doubled up to 1 s, for as long as it takes; there is no jitter. Calls
//! meanwhile wait until their own deadline. What had been sent and not answered is never sent again
//! here: only the caller knows whether that is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mas_transport_core::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::BACKEND;
use crate::bells::Bells;
use crate::config::RedisConfig;
use crate::error::{is_answer, map};
use crate::scripts::{self, Lua};
use crate::tls::is_encrypted;

/// Commands that may wait for the connection's own task. Far above what is ever in flight, so that
/// handing one over does not wait.
const PIPELINE_BUFFER: usize = 4096;

/// A connection, and the task that drives it where the client has not taken that upon itself. It
/// ends with this, whatever is still under way.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) driver: Option<AbortOnDropHandle<()>>,
}

impl Connected {
    /// The connection alone; it ends with its last clone, once every command has its answer.
    pub(crate) fn detach(self) -> MultiplexedConnection {
        if let Some(driver) = self.driver {
            drop(driver.detach());
        }
        self.connection
    }
}

/// A connection that works, as far as is known.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) connection: MultiplexedConnection,
    _driver: Option<Arc<AbortOnDropHandle<()>>>,
    /// Counts the connections of this link.
    pub(crate) epoch: u64,
}

#[derive(Clone, Debug)]
enum State {
    Up(Up),
    Down(Option<Error>),
    Closed,
}

/// Opens connections to one server.
#[derive(Debug)]
enum Opener {
    Plain(Client),
    #[cfg(feature = "tls")]
    Secure(crate::tls::Secure),
}

impl Opener {
    fn new(config: &RedisConfig) -> Result<Self> {
        let info = config.connection_info()?;
        let Some(tls) = &config.tls else {
            let client = Client::open(info).map_err(|e| map("connect", config.address(), e))?;
            return Ok(Self::Plain(client));
        };
        #[cfg(feature = "tls")]
        {
            let settings = info.redis_settings().clone();
            crate::tls::Secure::new(config, tls, settings).map(Self::Secure)
        }
        #[cfg(not(feature = "tls"))]
        {
            let _ = tls;
            let why = "encrypted connections are not compiled in: enable the feature `tls` of mas-transport-redis";
            Err(Error::unsupported(BACKEND, "connect", why).with("address", config.address()))
        }
    }

    async fn open(&self, address: &str, config: AsyncConnectionConfig) -> Result<Connected> {
        match self {
            Self::Plain(client) => {
                let opening = client.get_multiplexed_async_connection_with_config(&config);
                match opening.await {
                    Ok(connection) => Ok(Connected {
                        connection,
                        driver: None,
                    }),
                    // It took the connection and would not talk.
                    Err(error)
                        if !is_answer(&error)
                            && !error.is_connection_refusal()
                            && is_encrypted(address).await =>
                    {
                        let why =
                            "the server speaks only TLS on this port: connect with TLS (rediss://)";
                        let error = Error::unsupported(BACKEND, "connect", why);
                        Err(error.with("address", address))
                    }
                    Err(error) => Err(map("connect", address, error)),
                }
            }
            #[cfg(feature = "tls")]
            Self::Secure(secure) => secure.open(config).await,
        }
    }
}

/// The shared connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: RedisConfig,
    opener: Arc<Opener>,
    state: watch::Sender<State>,
    /// Rung when the connection of some epoch is broken.
    broken: Notify,
    /// How often a connection came back, counted with all links of a transport.
    reconnects: Arc<AtomicU64>,
    pub(crate) bells: Bells,
}

/// A bound that the clock can tell, however long the configuration asks for.
const LONGEST_CONNECT: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

impl Link {
    /// Connects, trying again until the bound of the configuration while that can help.
    pub(crate) async fn connect(config: RedisConfig) -> Result<Arc<Self>> {
        let opener = Arc::new(Opener::new(&config)?);
        let until = Instant::now() + config.connect_timeout.min(LONGEST_CONNECT);
        let link = Self::down(config, opener, Arc::default());
        let mut wait = Wait::new();
        loop {
            let error = match timeout_at(until, link.establish(1)).await {
                Ok(Ok(())) => return Ok(link),
                Ok(Err(error)) => error,
                Err(_) => Error::new(
                    ErrorKind::Unavailable,
                    "connect",
                    "the server did not answer within connect_timeout",
                )
                .on(BACKEND)
                .with("address", link.config.address()),
            };
            let next = Instant::now() + wait.next();
            if !error.is_retryable() || next >= until {
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
        }
    }

    fn down(config: RedisConfig, opener: Arc<Opener>, reconnects: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            config,
            opener,
            state: watch::Sender::new(State::Down(None)),
            broken: Notify::new(),
            reconnects,
            bells: Bells::default(),
        })
    }

    /// A further link to the same server. It is opened as soon as its keeper runs.
    pub(crate) fn another(&self) -> Arc<Self> {
        let (config, opener) = (self.config.clone(), self.opener.clone());
        let link = Self::down(config, opener, self.reconnects.clone());
        link.broken.notify_one();
        link
    }

    /// Heals the connection until `closing`; the last thing it does is to close the link.
    pub(crate) async fn keep(self: Arc<Self>, closing: CancellationToken) {
        closing
            .run_until_cancelled(async {
                let mut epoch = self.epoch();
                loop {
                    self.broken.notified().await;
                    let mut wait = Wait::new();
                    epoch += 1;
                    while let Err(error) = self.establish(epoch).await {
                        tracing::debug!(%error, "not reconnected yet");
                        self.state.send_replace(State::Down(Some(error)));
                        tokio::time::sleep(wait.next()).await;
                    }
                    if epoch > 1 {
                        self.reconnected();
                        tracing::info!(address = self.config.address(), "reconnected");
                        self.bells.ring_all();
                    }
                }
            })
            .await;
        self.state.send_replace(State::Closed);
    }

    /// Counts a connection that was lost and is back.
    pub(crate) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a connection was lost and came back.
    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Opens a connection of its own to the same server. `response_timeout` does not apply to it.
    pub(crate) async fn dial(&self) -> Result<Connected> {
        self.open(AsyncConnectionConfig::new()).await
    }

    async fn open(&self, config: AsyncConnectionConfig) -> Result<Connected> {
        let bound = self.config.connect_timeout;
        let config = config
            .set_connection_timeout(Some(bound))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        match timeout(bound, self.opener.open(self.config.address(), config)).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "connect",
                "the server did not answer within connect_timeout",
            )
            .on(BACKEND)
            .with("address", self.config.address())),
        }
    }

    /// Opens the shared connection, loads the scripts and listens for wake-ups.
    async fn establish(self: &Arc<Self>, epoch: u64) -> Result<()> {
        let link = Arc::downgrade(self);
        let config = AsyncConnectionConfig::new().set_push_sender(move |push: PushInfo| {
            if let Some(link) = link.upgrade() {
                link.pushed(epoch, &push);
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let Connected {
            mut connection,
            driver,
        } = self.open(config).await?;
        let channels = self.bells.channels();
        let load = scripts::load_all();
        let setup = async {
            let loaded = connection
                .send_packed_commands(&load, 0, load.len())
                .await?;
            for value in loaded {
                value.extract_error()?;
            }
            if !channels.is_empty() {
                connection.subscribe(&channels).await?;
            }
            redis::RedisResult::Ok(())
        };
        match timeout(self.config.response_timeout, setup).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(map("connect", self.config.address(), error)),
            Err(_) => return Err(self.timed_out("connect")),
        }
        self.state.send_replace(State::Up(Up {
            connection,
            _driver: driver.map(Arc::new),
            epoch,
        }));
        Ok(())
    }

    fn pushed(&self, epoch: u64, push: &PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.broken(epoch),
            PushKind::Message => {
                if let [Value::BulkString(channel), Value::BulkString(ms)] = push.data.as_slice() {
                    let number = |b| std::str::from_utf8(b).ok()?.parse().ok();
                    let after = Duration::from_millis(number(ms).unwrap_or(0));
                    if let Ok(channel) = std::str::from_utf8(channel) {
                        self.bells.ring(channel, after);
                    }
                }
            }
            _ => {}
        }
    }

    /// Says that the connection of `epoch` is of no use any more.
    pub(crate) fn broken(&self, epoch: u64) {
        let changed = self.state.send_if_modified(|state| match state {
            State::Up(up) if up.epoch == epoch => {
                *state = State::Down(None);
                true
            }
            _ => false,
        });
        if changed {
            self.broken.notify_one();
        }
    }

    /// The connection, if there is one now.
    pub(crate) fn up(&self) -> Option<Up> {
        match &*self.state.borrow() {
            State::Up(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// The number of the present connection; 0 when there is none.
    pub(crate) fn epoch(&self) -> u64 {
        match &*self.state.borrow() {
            State::Up(up) => up.epoch,
            _ => 0,
        }
    }

    /// The connection, as soon as there is one.
    ///
    /// # Errors
    /// `Closed`; `Timeout` with the reason why there is none at `until`; `Unauthorized` and
    /// `Unsupported` at once when waiting cannot help. Nothing was sent.
    pub(crate) async fn ready(&self, operation: &'static str, until: Instant) -> Result<Up> {
        let mut state = self.state.subscribe();
        let found = timeout_at(until, async {
            loop {
                match &*state.borrow_and_update() {
                    State::Up(up) => return Ok(up.clone()),
                    State::Closed => return Err(Error::closed(operation).on(BACKEND)),
                    State::Down(Some(error)) if is_settled(error) => return Err(error.clone()),
                    State::Down(_) => {}
                }
                if state.changed().await.is_err() {
                    return Err(Error::closed(operation).on(BACKEND));
                }
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => {
                let error = Error::new(
                    ErrorKind::Timeout,
                    operation,
                    "it was not sent: there was no connection to the server",
                )
                .on(BACKEND)
                .with("address", self.config.address());
                Err(match &*self.state.borrow() {
                    State::Down(Some(why)) => error.because(why.clone()),
                    _ => error,
                })
            }
        }
    }

    /// Sends commands and awaits their answers, each of which may be an error of its own. Waits for
    /// a connection and for the answers up to `response_timeout` each.
    ///
    /// # Errors
    /// [`Stored::No`](mas_transport_core::Stored::No) when nothing was sent, `Unknown` when the
    /// answers were lost.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> Result<Vec<Value>> {
        let bound = self.config.response_timeout;
        let mut up = self.ready(operation, Instant::now() + bound).await?;
        let sent = up
            .connection
            .send_packed_commands(commands, 0, commands.len());
        match timeout(bound, sent).await {
            Ok(Ok(values)) => Ok(values),
            Ok(Err(error)) => Err(self.failed(operation, up.epoch, error)),
            Err(_) => {
                self.broken(up.epoch);
                Err(self.timed_out(operation).maybe_stored())
            }
        }
    }

    /// Sends one command, as [`send`](Self::send). An error that the server answers is an error.
    pub(crate) async fn command(&self, operation: &'static str, command: Cmd) -> Result<Value> {
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(command);
        let values = self.send(operation, &commands).await?;
        let value = values.into_iter().next().unwrap_or(Value::Nil);
        self.check(operation, value)
    }

    /// Runs a script, as [`command`](Self::command).
    pub(crate) async fn run(&self, operation: &'static str, lua: &Lua, call: Cmd) -> Result<Value> {
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(call.clone());
        let values = self.send(operation, &commands).await?;
        match values.into_iter().next().unwrap_or(Value::Nil) {
            Value::ServerError(error) if is_no_script(&error) => {
                self.command(operation, lua.call_with_text(&call)).await
            }
            value => self.check(operation, value),
        }
    }

    /// Turns an error that the server answered into ours.
    pub(crate) fn check(&self, operation: &'static str, value: Value) -> Result<Value> {
        match value {
            Value::ServerError(error) => Err(self.answered(operation, error)),
            value => Ok(value),
        }
    }

    /// An error that the server answered: nothing happened.
    pub(crate) fn answered(&self, operation: &'static str, error: redis::ServerError) -> Error {
        map(operation, self.config.address(), error.into())
    }

    /// An error of the client after sending: unless the server answered it, what was sent may have
    /// been done, and the connection is given up.
    pub(crate) fn failed(
        &self,
        operation: &'static str,
        epoch: u64,
        error: redis::RedisError,
    ) -> Error {
        let answer = is_answer(&error);
        let mapped = map(operation, self.config.address(), error);
        if answer {
            return mapped;
        }
        self.broken(epoch);
        mapped.maybe_stored()
    }

    /// No answer came in time.
    pub(crate) fn timed_out(&self, operation: &'static str) -> Error {
        Error::new(
            ErrorKind::Timeout,
            operation,
            "the server did not answer in time",
        )
        .on(BACKEND)
        .with("address", self.config.address())
    }
}

/// Whether waiting does not change that there is no connection.
fn is_settled(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unauthorized | ErrorKind::Unsupported
    )
}

/// Whether the server does not know the script: it has not run.
pub(crate) fn is_no_script(error: &redis::ServerError) -> bool {
    error.kind() == Some(redis::ServerErrorKind::NoScript)
}

pub(crate) use mas_transport_core::backend::{Wait, lock};
