//! Wake-ups: who is to be woken when something comes due in a group, and the subscriptions to the
//! channels that say so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use mas_transport_core::Result;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::connection::{Link, lock};

/// Wakes a member when something of its group comes due.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    due: Mutex<Option<Instant>>,
    rung: Notify,
}

impl Bell {
    /// Something comes due `after` now.
    pub(crate) fn ring(&self, after: Duration) {
        let at = Instant::now() + after.min(Duration::from_secs(24 * 3600));
        let mut due = lock(&self.due);
        if due.is_none_or(|d| at < d) {
            *due = Some(at);
            drop(due);
            self.rung.notify_one();
        }
    }

    /// When something comes due, as far as was told.
    pub(crate) fn due(&self) -> Option<Instant> {
        *lock(&self.due)
    }

    /// Forgets a due time that has come.
    pub(crate) fn answer(&self, now: Instant) {
        let mut due = lock(&self.due);
        if due.is_some_and(|d| d <= now) {
            *due = None;
        }
    }

    /// Waits for the next [`ring`](Self::ring) that came nearer than the one before.
    pub(crate) async fn rung(&self) {
        self.rung.notified().await;
    }
}

/// Whether the server has said that it sends what is published on a channel. Held while it is asked
/// to begin or to end that, so that the two go to the server one after the other, and whoever comes
/// second waits for the answer to the first.
type Gate = Arc<tokio::sync::Mutex<bool>>;

#[derive(Debug, Default)]
struct Channel {
    bells: Vec<Weak<Bell>>,
    gate: Gate,
}

/// The bells of one connection, by channel.
#[derive(Debug, Default)]
pub(crate) struct Bells(Mutex<HashMap<String, Channel>>);

impl Bells {
    /// Every channel that a new connection has to listen to. Forgets those that were left without a
    /// word.
    pub(crate) fn channels(&self) -> Vec<String> {
        let mut channels = lock(&self.0);
        channels.retain(|_, channel| {
            // Whoever is at the gate has a handle of it.
            let in_use = Arc::strong_count(&channel.gate) > 1;
            in_use || channel.bells.iter().any(|b| b.strong_count() > 0)
        });
        channels.keys().cloned().collect()
    }

    pub(crate) fn ring(&self, channel: &str, after: Duration) {
        if let Some(channel) = lock(&self.0).get(channel) {
            channel.ring(after);
        }
    }

    pub(crate) fn ring_all(&self) {
        for channel in lock(&self.0).values() {
            channel.ring(Duration::ZERO);
        }
    }

    /// Adds a bell, and has the server asked to send what is published, unless it has said so.
    async fn add(
        &self,
        channel: &str,
        bell: &Arc<Bell>,
        subscribe: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        // First, so that whoever leaves meanwhile leaves the channel here.
        let gate = {
            let mut channels = lock(&self.0);
            let there = channels.entry(channel.to_owned()).or_default();
            there.bells.retain(|b| b.strong_count() > 0);
            there.bells.push(Arc::downgrade(bell));
            there.gate.clone()
        };
        let mut subscribed = gate.lock().await;
        if !*subscribed {
            subscribe.await?;
            *subscribed = true;
        }
        Ok(())
    }

    /// Removes a bell, and has the server asked to send no more if it was the last.
    async fn remove(&self, channel: &str, bell: &Arc<Bell>, unsubscribe: impl Future<Output = ()>) {
        let gate = {
            let mut channels = lock(&self.0);
            let Some(there) = channels.get_mut(channel) else {
                return;
            };
            let bell = Arc::downgrade(bell);
            there
                .bells
                .retain(|b| b.strong_count() > 0 && !Weak::ptr_eq(b, &bell));
            there.gate.clone()
        };
        let mut subscribed = gate.lock().await;
        if !self.is_deserted(channel) {
            return;
        }
        // Before, because whoever gives up waiting does not know whether it was asked.
        if std::mem::take(&mut *subscribed) {
            unsubscribe.await;
        }
        // Somebody may have come, who waits at the gate and subscribes anew.
        let mut channels = lock(&self.0);
        if channels.get(channel).is_some_and(|c| c.bells.is_empty()) {
            channels.remove(channel);
        }
    }

    fn is_deserted(&self, channel: &str) -> bool {
        let channels = lock(&self.0);
        channels.get(channel).is_some_and(|c| c.bells.is_empty())
    }
}

impl Channel {
    fn ring(&self, after: Duration) {
        for bell in self.bells.iter().filter_map(Weak::upgrade) {
            bell.ring(after);
        }
    }
}

impl Link {
    /// Has `bell` rung whenever something is published on `channel`, and after every reconnect.
    pub(crate) async fn listen(&self, channel: &str, bell: &Arc<Bell>) -> Result<()> {
        let subscribe = async {
            let bound = self.config.response_timeout;
            let mut up = self.ready("subscribe", Instant::now() + bound).await?;
            match timeout(bound, up.connection.subscribe(channel)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(self.failed("subscribe", up.epoch, error)),
                Err(_) => {
                    self.broken(up.epoch);
                    Err(self.timed_out("subscribe"))
                }
            }
        };
        self.bells.add(channel, bell, subscribe).await
    }

    /// Ends what [`listen`](Self::listen) began. That the server hears of it does not matter.
    pub(crate) async fn unlisten(&self, channel: &str, bell: &Arc<Bell>) {
        let unsubscribe = async {
            if let Some(mut up) = self.up() {
                let bound = self.config.response_timeout;
                let _ = timeout(bound, up.connection.unsubscribe(channel)).await;
            }
        };
        self.bells.remove(channel, bell, unsubscribe).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mas_transport_core::Error;
    use tokio::sync::{mpsc, oneshot};

    #[tokio::test(start_paused = true)]
    async fn a_bell_keeps_the_nearest_time() {
        let bell = Bell::default();
        bell.ring(Duration::from_secs(5));
        bell.rung().await;
        bell.ring(Duration::from_secs(9));
        let now = Instant::now();
        assert_eq!(bell.due(), Some(now + Duration::from_secs(5)));
        bell.ring(Duration::ZERO);
        bell.rung().await;
        bell.answer(now);
        assert_eq!(bell.due(), None);
    }

    /// Bells of one channel, and what the server is asked, which is answered by the test.
    #[derive(Clone)]
    struct Asked {
        bells: Arc<Bells>,
        asked: mpsc::UnboundedSender<(&'static str, oneshot::Sender<()>)>,
    }

    type Questions = mpsc::UnboundedReceiver<(&'static str, oneshot::Sender<()>)>;

    impl Asked {
        fn new() -> (Self, Questions) {
            let (asked, questions) = mpsc::unbounded_channel();
            let bells = Arc::default();
            (Self { bells, asked }, questions)
        }

        async fn ask(&self, what: &'static str) -> bool {
            let (answer, answered) = oneshot::channel();
            self.asked.send((what, answer)).unwrap();
            answered.await.is_ok()
        }

        async fn listen(self, bell: Arc<Bell>) -> bool {
            let subscribe = async {
                match self.ask("subscribe").await {
                    true => Ok(()),
                    false => Err(Error::closed("subscribe")),
                }
            };
            self.bells.add("c", &bell, subscribe).await.is_ok()
        }

        async fn unlisten(self, bell: Arc<Bell>) {
            let unsubscribe = async {
                self.ask("unsubscribe").await;
            };
            self.bells.remove("c", &bell, unsubscribe).await;
        }

        fn rings(&self, bell: &Bell) -> bool {
            bell.answer(Instant::now());
            self.bells.ring("c", Duration::ZERO);
            bell.due().is_some()
        }
    }

    /// Lets every other task run as far as it can.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_second_waits_for_the_answer_to_the_first() {
        let (asked, mut questions) = Asked::new();
        let (one, other) = (Arc::<Bell>::default(), Arc::<Bell>::default());
        let first = tokio::spawn(asked.clone().listen(one.clone()));
        let (what, answer) = questions.recv().await.unwrap();
        assert_eq!(what, "subscribe");
        let second = tokio::spawn(asked.clone().listen(other.clone()));
        settle().await;
        assert!(!first.is_finished() && !second.is_finished());
        answer.send(()).unwrap();
        assert!(first.await.unwrap() && second.await.unwrap());
        assert!(questions.try_recv().is_err(), "once is enough");
        assert!(asked.rings(&one) && asked.rings(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_after_a_failure_asks_again() {
        let (asked, mut questions) = Asked::new();
        let (one, other) = (Arc::<Bell>::default(), Arc::<Bell>::default());
        let first = tokio::spawn(asked.clone().listen(one.clone()));
        let (_, refused) = questions.recv().await.unwrap();
        let second = tokio::spawn(asked.clone().listen(other.clone()));
        settle().await;
        drop(refused);
        assert!(!first.await.unwrap());
        let (what, answer) = questions.recv().await.unwrap();
        assert_eq!(what, "subscribe");
        answer.send(()).unwrap();
        assert!(second.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_never_overtakes_the_end_of_the_one_before() {
        let (asked, mut questions) = Asked::new();
        let (one, other) = (Arc::<Bell>::default(), Arc::<Bell>::default());
        let first = tokio::spawn(asked.clone().listen(one.clone()));
        questions.recv().await.unwrap().1.send(()).unwrap();
        assert!(first.await.unwrap());
        let leaving = tokio::spawn(asked.clone().unlisten(one.clone()));
        let (what, ended) = questions.recv().await.unwrap();
        assert_eq!(what, "unsubscribe");
        // It comes while the end is on its way.
        let coming = tokio::spawn(asked.clone().listen(other.clone()));
        settle().await;
        assert!(questions.try_recv().is_err(), "it waits for its turn");
        assert_eq!(asked.bells.channels(), ["c"], "a reconnect knows of it");
        ended.send(()).unwrap();
        leaving.await.unwrap();
        let (what, answer) = questions.recv().await.unwrap();
        assert_eq!(what, "subscribe");
        answer.send(()).unwrap();
        assert!(coming.await.unwrap());
        assert!(asked.rings(&other) && !asked.rings(&one));

        // The last one leaves nothing behind, also when nobody waits for the answer.
        let leaving = tokio::spawn(asked.clone().unlisten(other));
        let (_, unanswered) = questions.recv().await.unwrap();
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        drop(unanswered);
        // What it had asked for is not known, so the next one asks.
        let again = Arc::<Bell>::default();
        let coming = tokio::spawn(asked.clone().listen(again.clone()));
        let (what, answer) = questions.recv().await.unwrap();
        assert_eq!(what, "subscribe");
        answer.send(()).unwrap();
        assert!(coming.await.unwrap() && asked.rings(&again));
        let leaving = tokio::spawn(asked.clone().unlisten(again));
        questions.recv().await.unwrap().1.send(()).unwrap();
        leaving.await.unwrap();
        assert!(asked.bells.channels().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_others_behind_asks_nothing() {
        let (asked, mut questions) = Asked::new();
        let (one, other) = (Arc::<Bell>::default(), Arc::<Bell>::default());
        let first = tokio::spawn(asked.clone().listen(one.clone()));
        questions.recv().await.unwrap().1.send(()).unwrap();
        assert!(first.await.unwrap() && asked.clone().listen(other.clone()).await);
        asked.clone().unlisten(one.clone()).await;
        assert!(questions.try_recv().is_err());
        assert!(asked.rings(&other) && !asked.rings(&one));
    }
}
