//! What a service needs of its backend.

use std::fmt;
use std::time::Duration;

use mas_transport_core::{Capabilities, Durability, Error, Exactness, Result, TransportInfo};

/// The operations and strengths that a service needs: [`Bus::connect`](crate::Bus::connect) refuses
/// a backend that lacks one, rather than the first message that needs it.
///
/// ```
/// # use mas_transport::{Bus, Config, Durability, ErrorKind, Requirements};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let needed = Requirements::new().dedup().durability(Durability::Disk);
/// let refused = Bus::connect(Config::new().require(needed)).await.unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Unsupported);
/// // connect on memory: the backend lacks what is required: dedup by idempotency key; durability
/// // of a receipt: Disk or better is needed, Volatile is there
/// assert!(refused.to_string().contains("Disk or better is needed, Volatile is there"));
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    needs: Vec<Need>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Operation(Operation),
    Durability(Durability),
    AckDurability(Durability),
    ExactAttempts,
    ExactLag,
    NackLatency(Duration),
    DelaySlack(Duration),
    ReclaimSlack(Duration),
    ClockError(Duration),
    MessageBytes(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Ttl,
    Delay,
    Priority,
    Dedup,
    Wildcard,
    Filter,
    OrderPerKey,
    Read,
    PauseGroup,
    AnyMember,
}

/// One requirement that a backend does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// What was asked for, in words.
    pub what: &'static str,
    /// How much of it is needed and how much there is; `None` for an operation, which is there or
    /// not.
    pub degree: Option<(String, String)>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match &self.degree {
            Some((needed, there)) => write!(f, ": {needed} is needed, {there} is there"),
            None => Ok(()),
        }
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident $operation:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(self) -> Self {
            self.need(Need::Operation(Operation::$operation))
        })*
    };
}

impl Requirements {
    /// Nothing, which every backend meets.
    pub fn new() -> Self {
        Self::default()
    }

    fn need(mut self, need: Need) -> Self {
        if !self.needs.contains(&need) {
            self.needs.push(need);
        }
        self
    }

    operations! {
        /// Messages with an expiry.
        ttl Ttl;
        /// Messages delivered later.
        delay Delay;
        /// Priorities other than normal.
        priority Priority;
        /// Dedup by idempotency key.
        dedup Dedup;
        /// Subscriptions with wildcards.
        wildcard Wildcard;
        /// Subscriptions with a filter.
        filter Filter;
        /// [`Order::PerKey`](crate::Order::PerKey).
        order_per_key OrderPerKey;
        /// Reading without a group.
        read Read;
        /// Pausing a whole group.
        pause_group PauseGroup;
        /// Any idle member of a group can get any of its messages.
        any_member AnyMember;
    }

    /// A receipt survives at least this.
    #[must_use]
    pub fn durability(self, least: Durability) -> Self {
        self.need(Need::Durability(least))
    }

    /// A confirmed ack survives at least this.
    #[must_use]
    pub fn ack_durability(self, least: Durability) -> Self {
        self.need(Need::AckDurability(least))
    }

    /// The attempt of a delivery is exact.
    #[must_use]
    pub fn exact_attempts(self) -> Self {
        self.need(Need::ExactAttempts)
    }

    /// The figures of [`Lag`](crate::Lag) are exact.
    #[must_use]
    pub fn exact_lag(self) -> Self {
        self.need(Need::ExactLag)
    }

    /// A nacked message is available within this time.
    #[must_use]
    pub fn nack_latency(self, most: Duration) -> Self {
        self.need(Need::NackLatency(most))
    }

    /// A delayed redelivery comes at most this long after it is due.
    #[must_use]
    pub fn delay_slack(self, most: Duration) -> Self {
        self.need(Need::DelaySlack(most))
    }

    /// A dead member's message comes to another at most this long after its lease ended.
    #[must_use]
    pub fn reclaim_slack(self, most: Duration) -> Self {
        self.need(Need::ReclaimSlack(most))
    }

    /// The clock that judges leases is off by at most this.
    #[must_use]
    pub fn clock_error(self, most: Duration) -> Self {
        self.need(Need::ClockError(most))
    }

    /// Messages of this size are taken, as [`Message::size`](crate::Message::size) counts them.
    #[must_use]
    pub fn message_bytes(self, least: usize) -> Self {
        self.need(Need::MessageBytes(least))
    }

    /// What of this a backend with these capabilities lacks; empty when it will do.
    pub fn missing(&self, there: &Capabilities) -> Vec<Missing> {
        let missing = self.needs.iter().filter_map(|need| need.missing(there));
        missing.collect()
    }

    /// Whether a connected backend will do.
    ///
    /// # Errors
    /// `Unsupported`, naming each requirement that it does not meet.
    pub fn check(&self, info: &TransportInfo) -> Result<()> {
        let missing = self.missing(&info.capabilities);
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missing.iter().map(Missing::to_string).collect();
        let why = format!("the backend lacks what is required: {}", names.join("; "));
        Err(Error::unsupported(info.backend, "connect", why).with("server", &info.server))
    }
}

impl Need {
    fn missing(self, there: &Capabilities) -> Option<Missing> {
        let graded = |met: bool, what, needed: String, there: String| {
            (!met).then_some(Missing {
                what,
                degree: Some((needed, there)),
            })
        };
        let at_least = |what, least: Durability, there: Durability| {
            let needed = format!("{least:?} or better");
            graded(there >= least, what, needed, format!("{there:?}"))
        };
        let at_most = |what, most: Duration, there: Duration| {
            let needed = format!("{most:?} or less");
            graded(there <= most, what, needed, format!("{there:?}"))
        };
        let exact = |what, there: Exactness| {
            let met = there == Exactness::Exact;
            graded(met, what, "Exact".to_owned(), format!("{there:?}"))
        };
        match self {
            Self::Operation(operation) => {
                let (is_there, what) = operation.found(there);
                (!is_there).then_some(Missing { what, degree: None })
            }
            Self::Durability(least) => at_least("durability of a receipt", least, there.durability),
            Self::AckDurability(least) => {
                at_least("durability of a confirmed ack", least, there.ack_durability)
            }
            Self::ExactAttempts => exact("attempts of a delivery", there.attempts),
            Self::ExactLag => exact("figures of lag", there.lag),
            Self::NackLatency(most) => at_most("latency of a nack", most, there.nack_latency),
            Self::DelaySlack(most) => at_most("slack of a delay", most, there.delay_slack),
            Self::ReclaimSlack(most) => at_most("slack of a reclaim", most, there.reclaim_slack),
            Self::ClockError(most) => at_most("error of the clock", most, there.clock_error),
            Self::MessageBytes(least) => {
                // An ordinary message leaves room for the record that a dead letter adds.
                let limit = there
                    .max_message_bytes
                    .saturating_sub(mas_transport_core::RECORD_RESERVE);
                let needed = format!("{least} bytes or more");
                graded(
                    limit >= least,
                    "size of a message",
                    needed,
                    format!("{limit} bytes"),
                )
            }
        }
    }
}

impl Operation {
    fn found(self, there: &Capabilities) -> (bool, &'static str) {
        match self {
            Self::Ttl => (there.ttl, "messages with a ttl"),
            Self::Delay => (there.delay, "delayed messages"),
            Self::Priority => (there.priority, "priorities"),
            Self::Dedup => (there.dedup, "dedup by idempotency key"),
            Self::Wildcard => (there.wildcard, "subscriptions with wildcards"),
            Self::Filter => (there.filter, "subscriptions with a filter"),
            Self::OrderPerKey => (there.order_per_key, "Order::PerKey"),
            Self::Read => (there.read, "reading without a group"),
            Self::PauseGroup => (there.pause_group, "pausing a group"),
            Self::AnyMember => (there.any_member, "any message for any idle member"),
        }
    }
}
