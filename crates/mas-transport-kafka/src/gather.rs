//! Answers to the entries of one call, which come one by one from elsewhere; whoever waits for them is woken
//! once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mas_transport_core::backend::lock;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// The answers that have come.
#[derive(Debug)]
pub(crate) struct Gather<T> {
    answers: Mutex<Vec<Option<T>>>,
    open: AtomicUsize,
    done: Notify,
}

impl<T> Gather<T> {
    /// For so many entries, of which none is expected to be answered yet.
    pub(crate) fn new(count: usize) -> Self {
        let answers = std::iter::repeat_with(|| None).take(count);
        Self {
            answers: Mutex::new(answers.collect()),
            open: AtomicUsize::new(0),
            done: Notify::new(),
        }
    }

    /// So many more answers are to come.
    pub(crate) fn expect(&self, count: usize) {
        self.open.fetch_add(count, Ordering::AcqRel);
    }

    /// An answer that was expected.
    pub(crate) fn put(&self, at: usize, answer: T) {
        if let Some(slot) = lock(&self.answers).get_mut(at) {
            *slot = Some(answer);
        }
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Waits for all that are expected, or until `limit`; those that are not there by then are missing.
    pub(crate) async fn answers(&self, limit: Instant) -> Vec<Option<T>> {
        let all = async {
            while self.open.load(Ordering::Acquire) > 0 {
                self.done.notified().await;
            }
        };
        let _ = timeout_at(limit, all).await;
        std::mem::take(&mut *lock(&self.answers))
    }
}
