//! From a configuration to a bus.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{Error, ErrorKind, PublishOptions, Result, Transport};
use tokio::time::{Instant, sleep};

use crate::bus::{Bus, BusOptions};
use crate::config::{Config, Settings, table};
use crate::registry::Backend;

/// Between two attempts to reach a broker that is awaited: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long closing a connection may take that is of no use.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn connect(config: Config) -> Result<Bus> {
    let settings = config.resolve();
    settings.check()?;
    for caution in settings.cautions() {
        tracing::warn!(setting = %caution.name, "{caution}");
    }
    let backends = config.backends().snapshot();
    let backend = backends.iter().find(|b| b.scheme == settings.backend());
    let backend = backend.ok_or_else(|| {
        let why = "the backend left the registry while connecting";
        Error::new(ErrorKind::Internal, "connect", why)
    })?;
    let transport = reach(backend, &settings).await?;
    if let Err(lacking) = config.requirements.check(&transport.info()) {
        if let Err(error) = transport.close(Instant::now() + PATIENCE).await {
            tracing::debug!(%error, "closing a backend that will not do");
        }
        return Err(lacking);
    }
    Ok(Bus::with_options(transport, options(&config, &settings)))
}

/// Connects; goes on trying when the settings say so and waiting may help.
async fn reach(backend: &Backend, settings: &Settings) -> Result<Arc<dyn Transport>> {
    let waits = settings.text(table::TRANSPORT_STARTUP) == Some("wait");
    let since = Instant::now();
    let mut pause = PAUSES.0;
    let mut attempt = 0_u64;
    loop {
        attempt += 1;
        let error = match backend.connect(settings.clone()).await {
            Ok(transport) => {
                if attempt > 1 {
                    let waited = since.elapsed();
                    tracing::info!(backend = backend.scheme, attempt, ?waited, "connected");
                }
                return Ok(transport);
            }
            Err(error) if waits && error.is_retryable() => error,
            Err(error) => return Err(error),
        };
        let waited = since.elapsed();
        tracing::warn!(
            backend = backend.scheme, attempt, ?waited, next = ?pause, %error,
            "the broker cannot be reached yet; trying again"
        );
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn options(config: &Config, settings: &Settings) -> BusOptions {
    let mut publish = PublishOptions::default();
    if let Some(timeout) = settings.duration(table::PUBLISH_TIMEOUT) {
        publish.publish_timeout = timeout;
    }
    let mut options = BusOptions::new().publish(publish).group(settings.group());
    options.source.clone_from(&config.source);
    let attempts = settings.whole(table::MESSAGE_MAX_RETRIES);
    options.max_attempts = attempts.and_then(|attempts| u32::try_from(attempts).ok());
    options
}
