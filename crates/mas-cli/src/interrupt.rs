//! Ctrl-C and its like.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::output::tell;

/// The requests to end: SIGINT, which is Ctrl-C, and SIGTERM.
#[derive(Debug)]
pub(crate) struct Interrupts {
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
}

impl Interrupts {
    /// The exit code of a command that was ended at once.
    pub(crate) const EXIT: u8 = 130;

    /// From now on they do not end the process by themselves.
    pub(crate) fn listen() -> Result<Self, Failure> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};

            let listen = |kind| {
                signal(kind).map_err(|error| Failure::new(format!("cannot catch signals: {error}")))
            };
            Ok(Self {
                int: listen(SignalKind::interrupt())?,
                term: listen(SignalKind::terminate())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            Some(()) = self.int.recv() => {}
            Some(()) = self.term.recv() => {}
            else => std::future::pending().await,
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }

    /// Does the work of a command. A first request to end cancels `stop`, which asks the work to
    /// finish what it has begun; a second one gives it up: `None`.
    pub(crate) async fn drain<T>(
        &mut self,
        command: &str,
        stop: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = self.next() => {}
        }
        stop.cancel();
        tell!("mas {command}: stopping; once more ends at once");
        tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = self.next() => None,
        }
    }

    /// The exit code.
    pub(crate) fn exit() -> ExitCode {
        ExitCode::from(Self::EXIT)
    }
}
