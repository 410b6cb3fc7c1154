//! Logs of trials, on stderr, as `RUST_LOG` asks for them: of the backend and of its client.

use std::io;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Starts to log what `RUST_LOG` asks for, such as `mas_transport_redis=debug`; nothing when it is unset.
/// Each line names the trial that it is of, which is the name of the thread.
pub(crate) fn start() {
    let Some(wanted) = std::env::var("RUST_LOG").ok().filter(|w| !w.is_empty()) else {
        return;
    };
    match wanted.parse::<Targets>() {
        Ok(targets) => {
            let layer = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_thread_names(true)
                .with_writer(io::stderr);
            let subscriber = tracing_subscriber::registry().with(layer).with(targets);
            // A program that logs already goes on as it does.
            let _ = subscriber.try_init();
        }
        Err(error) => {
            eprintln!("RUST_LOG is not understood, so nothing is logged: {error}");
        }
    }
}
