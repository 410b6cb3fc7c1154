//! What the server tells of the user to the connection as a whole: whoever waits for the answer to
//! a request would wait for it in vain.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_nats::{ClientError, Event, ServerError};
use mas_transport_core::{Error, ErrorKind};
use tokio::time::Instant;

use crate::connection::lock;
use crate::error::error;

/// Most refusals to publish that are remembered.
const REMEMBERED: usize = 64;

/// What the subjects begin with to which answers come.
const INBOX: &str = "_INBOX.";

/// What the server refused lately.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When it refused to publish, and to which subject.
    publishing: VecDeque<(Instant, String)>,
    /// At which subject it does not let this connection listen.
    listening: Option<String>,
    /// It did not let the user in again.
    away: bool,
}

/// Why there will be no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The user may not publish to this subject: nothing happened.
    Publish(String),
    /// The user may not listen at this subject, where the answer goes to.
    Subscribe(String),
}

impl Refusals {
    /// Enters what the client tells.
    pub(crate) fn note(&self, event: &Event) {
        let mut state = lock(&self.0);
        match event {
            Event::Connected => {
                state.listening = None;
                state.away = false;
            }
            Event::ServerError(ServerError::Other(text)) => match read(text) {
                Some(Refusal::Publish(subject)) => {
                    if state.publishing.len() == REMEMBERED {
                        state.publishing.pop_front();
                    }
                    state.publishing.push_back((Instant::now(), subject));
                }
                // Only the library's own: an application may use the same client.
                Some(Refusal::Subscribe(subject)) if subject.starts_with(INBOX) => {
                    state.listening = Some(subject);
                }
                _ => {}
            },
            // Of an attempt to come back.
            Event::ClientError(ClientError::Other(text)) => {
                state.away = text.contains("authorization violation");
            }
            _ => {}
        }
    }

    /// Why no answer comes to what was published to a subject since then, if the server said so.
    pub(crate) fn find(&self, subject: &str, since: Instant) -> Option<Refusal> {
        let state = lock(&self.0);
        if let Some(inbox) = &state.listening {
            return Some(Refusal::Subscribe(inbox.clone()));
        }
        let mut latest = state.publishing.iter().rev();
        latest
            .find(|(at, refused)| *at >= since && refused == subject)
            .map(|(_, refused)| Refusal::Publish(refused.clone()))
    }

    /// Whether the server did not let the user in again when the connection was lost.
    pub(crate) fn away(&self) -> bool {
        lock(&self.0).away
    }
}

impl Refusal {
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Publish(subject) => Error::new(
                ErrorKind::Unauthorized,
                operation,
                format!("the user may not publish to {subject}: allow it in the server's permissions"),
            )
            .on(crate::BACKEND),
            Self::Subscribe(subject) => error(
                ErrorKind::Unauthorized,
                operation,
                "the user may not subscribe to where answers go: allow _INBOX.> in the server's permissions",
            )
            .with("subject", subject)
            .maybe_stored(),
        }
    }
}

/// Reads `Permissions Violation for Publish to "a.b"`, and the same of a subscription.
fn read(text: &str) -> Option<Refusal> {
    let (head, rest) = text.split_once('"')?;
    let (subject, _) = rest.split_once('"')?;
    let subject = subject.to_owned();
    let head = head.to_lowercase();
    match head.strip_prefix("permissions violation for ")?.trim_end() {
        "publish to" => Some(Refusal::Publish(subject)),
        "subscription to" => Some(Refusal::Subscribe(subject)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Event {
        Event::ServerError(ServerError::Other(text.to_owned()))
    }

    #[test]
    fn what_servers_refuse_is_read() {
        let publish = read("Permissions Violation for Publish to \"$JS.API.INFO\"");
        assert_eq!(publish, Some(Refusal::Publish("$JS.API.INFO".to_owned())));
        let text = "Permissions Violation for Subscription to \"_INBOX.a.*\" using queue \"q\"";
        assert_eq!(
            read(text),
            Some(Refusal::Subscribe("_INBOX.a.*".to_owned()))
        );
        for other in ["", "Stale Connection", "Invalid Subject \"a\"", "\""] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_refusal_counts_for_what_was_sent_before_it() {
        let refusals = Refusals::default();
        let before = Instant::now();
        for n in 0..200 {
            let text = format!("Permissions Violation for Publish to \"s.{n}\"");
            refusals.note(&told(&text));
        }
        let refused = |subject, since| refusals.find(subject, since).is_some();
        assert!(refused("s.199", before));
        assert!(!refused("s.0", before), "only the last are kept");
        assert!(!refused("s", before));
        let later = before + std::time::Duration::from_secs(3600);
        assert!(!refused("s.199", later));
        refusals.note(&told(
            "Permissions Violation for Subscription to \"_INBOX.a.*\"",
        ));
        assert!(refused("anything", later));
        refusals.note(&Event::Connected);
        assert!(!refused("anything", later));
    }

    #[test]
    fn whoever_is_not_let_in_again_is_known() {
        let refusals = Refusals::default();
        let failed = |text: &str| Event::ClientError(ClientError::Other(text.to_owned()));
        refusals.note(&failed("authorization violation"));
        assert!(refusals.away());
        refusals.note(&failed("IO error"));
        assert!(!refusals.away());
    }
}
