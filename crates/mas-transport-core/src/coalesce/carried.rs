//! A batch that its caller sees through.
//!
//! Two turns of the scheduler, from the caller to the driver and back, are a good part of what a batch
//! costs beside the broker. Who brings a whole batch to an idle line and waits for it sends it itself
//! and polls for the answer. The driver takes over at any stage, whenever it has something to do, and
//! when the caller goes away.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use super::lock;

/// Waits for the results of a batch and tells them.
pub(super) type Answer = BoxFuture<'static, ()>;

/// How far a batch is.
pub(super) enum Stage {
    /// It is about to be sent; nothing else may be before it is. Without an answer to wait for, its
    /// results have been told.
    Placing(BoxFuture<'static, Option<Answer>>),
    /// Its place in line is fixed.
    Placed(Answer),
}

/// Who moves the line on.
enum Turn {
    /// Nobody: nothing waits to be sent and nothing is under way.
    Idle,
    Driver,
    /// The caller of this number.
    Caller(u64, Stage),
    /// A caller that is at it this moment, in whatever the backend does when it is polled. Whether the
    /// driver wants it.
    Busy(bool),
}

/// The driver has to wait until it is woken: a caller is moving the line on this moment.
#[derive(Debug)]
pub(super) struct Busy;

/// Whose turn it is, and how the driver is woken.
pub(super) struct Turns {
    turn: Mutex<(Turn, u64)>,
    /// Wakes the driver: an entry came, the line was closed, or a caller went away.
    pub(super) wake: Notify,
    /// The runtime of the driver. What a batch waits for must not end with another one.
    home: Id,
}

impl Turns {
    /// The turn is the driver's, who runs on this runtime.
    pub(super) fn new(home: Id) -> Arc<Self> {
        Arc::new(Self {
            turn: Mutex::new((Turn::Driver, 0)),
            wake: Notify::new(),
            home,
        })
    }

    /// The driver has nothing to do. Called after [`take`](Self::take).
    pub(super) fn rest(&self) {
        lock(&self.turn).0 = Turn::Idle;
    }

    /// Makes it the driver's turn. What a caller was carrying is the driver's from now on.
    pub(super) fn take(&self) -> Result<Option<Stage>, Busy> {
        let turn = &mut lock(&self.turn).0;
        if let Turn::Busy(wanted) = turn {
            *wanted = true;
            return Err(Busy);
        }
        match std::mem::replace(turn, Turn::Driver) {
            Turn::Caller(_, stage) => Ok(Some(stage)),
            _ => Ok(None),
        }
    }

    /// Whether this is the runtime of the driver.
    fn at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.home)
    }

    /// Lets the caller carry what `batch` makes, if the line is idle and the caller is at home.
    pub(super) fn carry(
        self: &Arc<Self>,
        batch: impl FnOnce() -> Option<Stage>,
    ) -> Option<Carrier> {
        if !self.at_home() {
            return None;
        }
        let mut turn = lock(&self.turn);
        let (Turn::Idle, number) = *turn else {
            return None;
        };
        *turn = (Turn::Caller(number, batch()?), number.wrapping_add(1));
        Some(Carrier {
            turns: self.clone(),
            number,
            done: false,
        })
    }
}

/// A caller that carries its batch. Dropping it leaves the batch to the driver.
pub(super) struct Carrier {
    turns: Arc<Turns>,
    number: u64,
    done: bool,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier").finish_non_exhaustive()
    }
}

impl Carrier {
    /// Moves the batch on, as far as it goes now. What cannot be placed at once is the driver's: nobody
    /// else gets a place before it, and the caller may not be back for a while.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if self.done {
            return;
        }
        if !self.turns.at_home() {
            self.done = true;
            self.turns.wake.notify_one();
            return;
        }
        let stage = {
            let turn = &mut lock(&self.turns.turn).0;
            match std::mem::replace(turn, Turn::Busy(false)) {
                Turn::Caller(number, stage) if number == self.number => stage,
                // The driver has taken over.
                other => {
                    *turn = other;
                    self.done = true;
                    return;
                }
            }
        };
        let mut hold = Hold {
            turns: &self.turns,
            // Should the backend panic.
            then: Turn::Driver,
        };
        let stage = match stage {
            Stage::Placing(mut placing) => match placing.as_mut().poll(cx) {
                Poll::Ready(answer) => answer.map(Stage::Placed),
                Poll::Pending => Some(Stage::Placing(placing)),
            },
            placed => Some(placed),
        };
        let stage = match stage {
            Some(Stage::Placed(mut answer)) => match answer.as_mut().poll(cx) {
                Poll::Ready(()) => None,
                Poll::Pending => Some(Stage::Placed(answer)),
            },
            other => other,
        };
        let placing = matches!(stage, Some(Stage::Placing(_)));
        self.done = placing || stage.is_none();
        hold.then = match stage {
            Some(stage) => Turn::Caller(self.number, stage),
            None => Turn::Idle,
        };
        drop(hold);
        if placing {
            self.turns.wake.notify_one();
        }
    }
}

/// The turn of a caller that is at it.
struct Hold<'a> {
    turns: &'a Turns,
    /// How the turn is left.
    then: Turn,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let then = std::mem::replace(&mut self.then, Turn::Driver);
        let panicked = matches!(then, Turn::Driver);
        let before = std::mem::replace(&mut lock(&self.turns.turn).0, then);
        if panicked || matches!(before, Turn::Busy(true)) {
            self.turns.wake.notify_one();
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if !self.done {
            self.turns.wake.notify_one();
        }
    }
}
