//! What the suite asks of a backend's tests.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mas_transport_core::codec::fields;
use mas_transport_core::{Group, Namespace, Position, Result, Topic, Transport};

/// Why a trial failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// How a trial ends.
pub type Verdict = std::result::Result<(), Failure>;

/// A backend under test.
#[async_trait]
pub trait Harness: Debug + Send + Sync + 'static {
    /// The name in front of every trial: `memory`, `redis`.
    fn name(&self) -> &str;

    /// The clock, the lease and the allowances of its trials.
    fn timing(&self) -> Timing {
        Timing::real(Duration::from_secs(1))
    }

    /// What its brokers can do beside connecting.
    fn abilities(&self) -> &[Ability] {
        &[]
    }

    /// How each trial runs: bare, through a layer.
    fn variants(&self) -> &[Variant] {
        &[Variant::Bare]
    }

    /// The clauses that its trials are for; `None` for all. For a profile of a backend of which the
    /// other clauses are judged elsewhere.
    fn clauses(&self) -> Option<&[&str]> {
        None
    }

    /// A broker for one trial. `Err` when there is none to be had: the backend is then skipped, or
    /// fails where `REQUIRE_<BACKEND>=1` is set.
    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure>;

    /// [`Ability::Child`]: in another process, the broker that [`Broker::address`] told of.
    async fn attach(
        &self,
        _address: &str,
        _namespace: Namespace,
    ) -> std::result::Result<Arc<dyn Broker>, Failure> {
        Err("the harness declares Child and does not implement attach".into())
    }

    /// Why a panic is no fault of the backend: it happened in a task of the client library, which the
    /// backend can neither prevent nor catch, and from which it has to recover as the trial asks. `None`
    /// for every other panic, each of which fails its trial.
    fn known_panic(&self, _panic: &str) -> Option<&'static str> {
        None
    }

    /// The run is over: servers that the harness started may go.
    fn finish(&self) {}
}

/// What a trial asks of its broker.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the trial keeps everything; no other trial has the same one.
    pub namespace: Namespace,
    /// The trial needs a server for itself: it stops it, fills it up or wipes it.
    pub own: bool,
    /// The trial's seed.
    pub seed: u64,
    /// What the trial is going to ask of the broker.
    pub needs: &'static [Ability],
}

/// One trial's broker: a namespace on a shared server, or a server of its own.
///
/// Only `connect` is required. Each other method belongs to an [`Ability`] and is called only when
/// the harness declares it.
#[async_trait]
pub trait Broker: Debug + Send + Sync + 'static {
    /// A connection of its own, as another process would have it.
    async fn connect(&self) -> Result<Arc<dyn Transport>>;

    /// [`Ability::Inject`]: writes an entry as a foreign program would. It is given as the fields of
    /// the wire format; a backend that has other entries writes what corresponds to them.
    async fn inject(&self, _topic: &Topic, _fields: Vec<(Bytes, Bytes)>) -> Verdict {
        unable(Ability::Inject)
    }

    /// [`Ability::Inject`]: what of an entry this backend can carry, in the order in which members
    /// get it back. All of it, unless the backend says otherwise.
    fn carried(&self, fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        fields
    }

    /// [`Ability::Inject`]: whether members read an entry as a message; otherwise they quarantine it.
    fn is_read(&self, topic: &Topic, fields: &[(Bytes, Bytes)]) -> bool {
        fields::decode(topic, Position::default(), fields.to_vec()).is_ok()
    }

    /// [`Ability::Inject`]: what stands in quarantine of an entry that is no message.
    fn quarantined(&self, fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        fields
    }

    /// [`Ability::Inject`]: entries that are no messages, beside those that every backend can have,
    /// and what is wrong with each.
    fn garbage(&self) -> Vec<(&'static str, Vec<(Bytes, Bytes)>)> {
        Vec::new()
    }

    /// [`Ability::Inject`]: whether an entry is one that clients cannot read and break their connections
    /// over.
    fn breaks_clients(&self, _fields: &[(Bytes, Bytes)]) -> bool {
        false
    }

    /// [`Ability::Inject`]: how long a name or a value may be that is not `data`.
    fn largest_field(&self) -> usize {
        1 << 20
    }

    /// [`Ability::DropGroup`]: deletes the group behind the library's back; the topic stays.
    async fn drop_group(&self, _topic: &Topic, _group: &Group) -> Verdict {
        unable(Ability::DropGroup)
    }

    /// [`Ability::Wipe`]: deletes the topic and its groups behind the library's back.
    async fn wipe(&self, _topic: &Topic) -> Verdict {
        unable(Ability::Wipe)
    }

    /// [`Ability::Trim`]: removes so many of the oldest entries of a topic, settled or not, behind
    /// the library's back.
    async fn trim(&self, _topic: &Topic, _remove: u64) -> Verdict {
        unable(Ability::Trim)
    }

    /// [`Ability::Fill`]: leaves the broker no room (`true`), or gives it back.
    async fn fill(&self, _full: bool) -> Verdict {
        unable(Ability::Fill)
    }

    /// [`Ability::Block`]: nothing can be appended to this topic (`true`), or it can again; used
    /// for dead letters and quarantine. It may reach further than the topic.
    async fn block(&self, _topic: &Topic, _blocked: bool) -> Verdict {
        unable(Ability::Block)
    }

    /// [`Ability::Kill`]: the broker dies at once, as from SIGKILL.
    async fn kill(&self) -> Verdict {
        unable(Ability::Kill)
    }

    /// [`Ability::Kill`]: the broker comes back at the same address, with what its declared
    /// durability kept.
    async fn start(&self) -> Verdict {
        unable(Ability::Kill)
    }

    /// [`Ability::Freeze`]: the broker stops answering (`true`), or goes on. Connections stay.
    async fn freeze(&self, _frozen: bool) -> Verdict {
        unable(Ability::Freeze)
    }

    /// [`Ability::Cut`]: every connection of this trial breaks.
    async fn cut(&self) -> Verdict {
        unable(Ability::Cut)
    }

    /// [`Ability::LoseConfirms`]: the next `count` published messages are stored, and the answer
    /// is lost with the connection.
    async fn lose_confirms(&self, _count: u64) -> Verdict {
        unable(Ability::LoseConfirms)
    }

    /// [`Ability::Connections`]: how many connections of this trial are open.
    async fn connections(&self) -> std::result::Result<usize, Failure> {
        unable(Ability::Connections).map(|()| 0)
    }

    /// [`Ability::Child`]: where another process finds this broker, for [`Harness::attach`].
    fn address(&self) -> Option<String> {
        None
    }

    /// The trial is over: whatever is left may go.
    async fn end(&self) {}
}

fn unable(ability: Ability) -> Verdict {
    Err(format!("the harness declares {ability:?} and does not implement it").into())
}

/// What a harness can do to its broker. A trial names what it needs; a clause none of whose trials
/// can run for want of an ability counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ability {
    /// Write an entry as a foreign program would: [`Broker::inject`].
    Inject,
    /// Delete a group: [`Broker::drop_group`].
    DropGroup,
    /// Delete a topic: [`Broker::wipe`].
    Wipe,
    /// Remove entries: [`Broker::trim`].
    Trim,
    /// Leave no room: [`Broker::fill`].
    Fill,
    /// Keep a topic from being written to: [`Broker::block`].
    Block,
    /// Kill and start the broker: [`Broker::kill`], [`Broker::start`].
    Kill,
    /// Stop it for a while: [`Broker::freeze`].
    Freeze,
    /// Break connections: [`Broker::cut`].
    Cut,
    /// Lose the answer to a publish: [`Broker::lose_confirms`].
    LoseConfirms,
    /// Count connections: [`Broker::connections`].
    Connections,
    /// Be reached from another process: [`Broker::address`].
    Child,
    /// Lose a process that is a [`Crash`](crate::layers::Crash) layer: nothing of the backend runs
    /// on behalf of a member that does not ask for it.
    Crash,
}

/// The clock, the lease and the allowances of a harness's trials.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// tokio's clock is paused: time passes only when nothing else can be done.
    pub paused: bool,
    /// The lease of trials that wait for one to end.
    pub lease: Duration,
    /// How much later than declared something may be seen, for what the machine adds. Nothing may
    /// ever be earlier than declared.
    pub slack: Duration,
    /// How long a trial watches that nothing comes.
    pub quiet: Duration,
    /// How long something that has to happen may take.
    pub patience: Duration,
    /// How long after a member has come or gone partitions may still change hands: trials that time leases
    /// to the moment let that pass first.
    pub sharing: Duration,
    /// How much longer a trial may run than on other backends before it counts as stuck: what starting a
    /// broker costs, and noticing that a member is dead.
    pub slower: Duration,
}

impl Timing {
    /// Virtual time: generous, because waiting costs nothing.
    pub fn paused() -> Self {
        Self {
            paused: true,
            lease: Duration::from_secs(30),
            slack: Duration::from_millis(10),
            quiet: Duration::from_secs(100),
            patience: Duration::from_secs(600),
            sharing: Duration::ZERO,
            slower: Duration::ZERO,
        }
    }

    /// Real time: short leases, and allowances for a busy machine.
    pub fn real(lease: Duration) -> Self {
        Self {
            paused: false,
            lease,
            slack: Duration::from_secs(2),
            quiet: Duration::from_millis(300),
            patience: Duration::from_secs(10),
            sharing: Duration::ZERO,
            slower: Duration::ZERO,
        }
    }
}

/// How the transports of a trial are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Variant {
    /// As the backend made them.
    Bare,
    /// As an `Arc<dyn Transport>` in a layer that passes everything through.
    Layered,
}

impl Variant {
    /// What the variant adds to the harness's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Layered => "+layer",
        }
    }
}
