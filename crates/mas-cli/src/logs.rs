//! Logs, on stderr, as RUST_LOG asks for them.

use std::io;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::output::tell;

/// Starts to log what `RUST_LOG` asks for, such as `debug` or `mas_transport_redis=trace`; nothing
/// when it is unset.
pub(crate) fn start() {
    let Some(wanted) = std::env::var("RUST_LOG").ok().filter(|w| !w.is_empty()) else {
        return;
    };
    match wanted.parse::<Targets>() {
        Ok(targets) => tracing_subscriber::registry()
            .with(
                tracing_subscriber::fmt::layer()
                    .with_ansi(false)
                    .with_writer(io::stderr),
            )
            .with(targets)
            .init(),
        Err(error) => {
            tell!("mas: warning: RUST_LOG is not understood, so nothing is logged: {error}")
        }
    }
}
