//! The connections beside the first, for what consumers do.
//!
//! A consumer keeps to one of them for as long as it lives. One is opened for each consumer until
//! there are as many as the configuration allows; from then on consumers share, the least used
//! first. One that nobody uses any more is closed.

use std::sync::{Arc, Mutex};

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::connection::{Link, lock};

/// The connections that are open beside the first.
#[derive(Debug)]
pub(crate) struct Lanes {
    open: Mutex<Vec<Lane>>,
    /// Ends all of them.
    closing: CancellationToken,
}

#[derive(Debug)]
struct Lane {
    link: Arc<Link>,
    users: usize,
    /// Closes it.
    _keeper: DropGuard,
}

/// A consumer's place on a connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    lanes: Arc<Lanes>,
    link: Arc<Link>,
}

impl Lanes {
    /// None yet. They end with `closing` at the latest.
    pub(crate) fn new(closing: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            closing,
        })
    }

    /// A place on a connection of its own while the configuration of `first` allows one more, then
    /// on the one with the fewest users; on `first` where that is the only one. Its keeper runs
    /// among `tasks`.
    pub(crate) fn seat(self: &Arc<Self>, first: &Arc<Link>, tasks: &TaskTracker) -> Seat {
        let most = first.config.connections - 1;
        let mut open = lock(&self.open);
        if open.len() < most {
            let link = first.another();
            let keeper = self.closing.child_token();
            tasks.spawn(link.clone().keep(keeper.clone()));
            open.push(Lane {
                link,
                users: 0,
                _keeper: keeper.drop_guard(),
            });
        }
        let link = match open.iter_mut().min_by_key(|lane| lane.users) {
            Some(lane) => {
                lane.users += 1;
                lane.link.clone()
            }
            None => first.clone(),
        };
        Seat {
            lanes: self.clone(),
            link,
        }
    }
}

impl Seat {
    /// The connection.
    pub(crate) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = lock(&self.lanes.open);
        if let Some(lane) = open.iter_mut().find(|l| Arc::ptr_eq(&l.link, &self.link)) {
            lane.users -= 1;
        }
        open.retain(|lane| lane.users > 0);
    }
}
