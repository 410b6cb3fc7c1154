//! One connection to the broker: whether it is up, and who uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mas_transport_core as core;
use mas_transport_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::BACKEND;
use crate::broker::{Broker, Space};
use crate::fault::{FaultEffect, FaultOperation};
use crate::member::Member;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) broker: Arc<Broker>,
    pub(crate) space: Arc<Space>,
    link: Mutex<Link>,
    members: Mutex<Vec<Known>>,
}

/// A member, and its bell beside it: to ring must not mean to hold the member, which may be
/// dropped meanwhile and then wants the lock that whoever rings may have.
#[derive(Debug)]
struct Known {
    member: Weak<Member>,
    bell: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    closed: bool,
    down_until: Option<Instant>,
    outages: u64,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing {
    /// It is up, after so many outages.
    Up(u64),
    /// It is down until then, for the nth time.
    Down(Instant, u64),
    Closed,
}

impl Connection {
    pub(crate) fn new(broker: Arc<Broker>, space: Arc<Space>) -> Self {
        Self {
            broker,
            space,
            link: Mutex::default(),
            members: Mutex::default(),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn standing(&self) -> Standing {
        let link = self.link();
        if link.closed {
            return Standing::Closed;
        }
        match link.down_until {
            Some(until) if until > Instant::now() => Standing::Down(until, link.outages),
            _ => Standing::Up(link.outages),
        }
    }

    /// Whether a call can be made.
    pub(crate) fn check(&self, operation: &'static str) -> Result<()> {
        match self.standing() {
            Standing::Up(_) => Ok(()),
            Standing::Down(..) => Err(unavailable(operation)),
            Standing::Closed => Err(Error::closed(operation).on(BACKEND)),
        }
    }

    /// What the fault plan says of this call.
    pub(crate) fn fault(
        &self,
        operation: FaultOperation,
        topic: &core::Topic,
    ) -> Option<FaultEffect> {
        let faults = self.broker.faults.as_ref()?;
        let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
        let effect = faults.draw(operation, topic)?;
        drop(faults);
        if let FaultEffect::Disconnect(time) = effect {
            let mut link = self.link();
            link.down_until = Some(Instant::now() + time);
            link.outages += 1;
            drop(link);
            for known in &*self.lock_members() {
                known.bell.notify_one();
            }
        }
        Some(effect)
    }

    /// Keeps track of a new member. Refused once the connection is closed.
    pub(crate) fn adopt(&self, member: &Arc<Member>) -> Result<()> {
        let mut members = self.lock_members();
        self.check("subscribe")?;
        members.retain(|known| known.member.strong_count() > 0);
        members.push(Known {
            member: Arc::downgrade(member),
            bell: Arc::clone(&member.bell),
        });
        Ok(())
    }

    fn lock_members(&self) -> MutexGuard<'_, Vec<Known>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members that are still there.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        let members = self.lock_members();
        members.iter().filter_map(|k| k.member.upgrade()).collect()
    }

    /// Refuses every call from now on.
    pub(crate) fn close(&self) {
        // Under the lock of `adopt`, so that no member joins between closing and being closed.
        let members = self.lock_members();
        self.link().closed = true;
        drop(members);
    }
}

pub(crate) fn unavailable(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        operation,
        "the connection is down; it comes back by itself",
    )
    .on(BACKEND)
}

/// The error of a fault that refuses.
pub(crate) fn refused(operation: &'static str, kind: ErrorKind) -> Error {
    Error::new(kind, operation, "refused by the fault plan").on(BACKEND)
}

/// The error of a lost answer.
pub(crate) fn unanswered(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        operation,
        "the answer was lost, by the fault plan",
    )
    .on(BACKEND)
    .maybe_stored()
}
