//! Groups of topics, and how far behind they are.

use mas_transport::{Admin, ErrorKind, Exactness, Group, Lag, Topic, TransportInfo};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::tell;

/// How far behind a group is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GroupLag {
    pub(crate) topic: String,
    pub(crate) group: String,
    /// Messages that no member has fetched.
    pub(crate) waiting: u64,
    /// Messages that were fetched and are not settled.
    pub(crate) pending: u64,
}

impl GroupLag {
    fn new(topic: &Topic, group: &Group, lag: Lag) -> Self {
        Self {
            topic: topic.to_string(),
            group: group.to_string(),
            waiting: lag.waiting,
            pending: lag.pending,
        }
    }
}

/// One group.
pub(crate) async fn one(
    admin: &dyn Admin,
    topic: &Topic,
    group: &Group,
) -> Result<GroupLag, Failure> {
    let lag = admin.lag(topic, group).await?;
    Ok(GroupLag::new(topic, group, lag))
}

/// The groups of a topic that may have just gone.
pub(crate) async fn of(admin: &dyn Admin, topic: &Topic) -> Result<Vec<GroupLag>, Failure> {
    let mut all = Vec::new();
    for group in admin.groups(topic).await? {
        match admin.lag(topic, &group).await {
            Ok(lag) => all.push(GroupLag::new(topic, &group, lag)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// A topic as it was named, which has to exist.
pub(crate) async fn existing(admin: &dyn Admin, name: &str) -> Result<Topic, Failure> {
    let topic = Topic::stored(name)?;
    match admin.topics().await?.contains(&topic) {
        true => Ok(topic),
        false => Err(Failure::new(format!("there is no topic {topic}"))
            .hint("mas topics lists those there are; MAS_NAMESPACE goes in front of each.")),
    }
}

/// Says what is to be known of what a command shows: of a broker that cannot have anything in it,
/// and of figures that are not exact.
pub(crate) fn caution(command: &str, info: &TransportInfo) {
    if info.backend == "memory" {
        tell!(
            "mas {command}: the memory backend lives within one process, and this one has just begun: \
             it is empty; PROTOCOL_TYPE names another"
        );
    }
    match info.capabilities.lag {
        Exactness::Exact => {}
        Exactness::AtLeast => tell!("mas {command}: the figures of this backend may be too low"),
        _ => tell!("mas {command}: the figures of this backend are approximate"),
    }
}
