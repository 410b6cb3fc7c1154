//! What the client's and the brokers' errors mean in the contract's terms.

use mas_transport_core::{Error, ErrorKind};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::BACKEND;

pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: &'static str) -> Error {
    Error::new(kind, operation, message).on(BACKEND)
}

/// The code of an error; that of an admin operation is not told by `rdkafka_error_code`.
pub(crate) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// What an error of the client or of a broker means. Whether it may have taken effect is the caller's
/// to say.
pub(crate) fn told(operation: &'static str, told: KafkaError) -> Error {
    let (kind, message) = match code(&told) {
        Some(code) => meaning(code),
        None => match told {
            KafkaError::ClientConfig(..) => (
                ErrorKind::InvalidArgument,
                "the client does not take this setting",
            ),
            KafkaError::Canceled => (ErrorKind::Unavailable, "the client was closed meanwhile"),
            _ => (ErrorKind::Broker, "the client could not do this"),
        },
    };
    error(kind, operation, message).because(told)
}

/// A code in the contract's terms, and what to do about it.
pub(crate) fn meaning(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::BrokerTransportFailure | Code::AllBrokersDown => (
            ErrorKind::Unavailable,
            "the broker cannot be reached: is it running, and at this address? Does it want a user (KAFKA_USERNAME), or TLS (KAFKA_TLS)?",
        ),
        Code::Resolve => (
            ErrorKind::Unavailable,
            "the name of the broker is not known",
        ),
        Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::MessageTimedOut
        | Code::TimedOutQueue => (ErrorKind::Timeout, "the broker did not answer in time"),
        Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator => (
            ErrorKind::Unavailable,
            "no broker keeps the group: the cluster has just begun, or cannot make the topic __consumer_offsets \
             (offsets.topic.replication.factor is 3 by default)",
        ),
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::NotController
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::EligibleLeadersNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::UnstableOffsetCommit
        | Code::OffsetNotAvailable
        | Code::UnknownBroker
        | Code::Retry
        | Code::WaitCache
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::NodeUpdate
        | Code::ThrottlingQuotaExceeded => (
            ErrorKind::Unavailable,
            "the broker that leads the partition is not ready",
        ),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => (
            ErrorKind::Unavailable,
            "too few replicas are in sync (min.insync.replicas): brokers of the cluster are down",
        ),
        Code::PurgeQueue | Code::PurgeInflight | Code::DestroyBroker => {
            (ErrorKind::Unavailable, "the client was closed meanwhile")
        }
        Code::KafkaStorageError => (
            ErrorKind::Full,
            "the broker cannot write to its disk: it is full or broken",
        ),
        Code::QueueFull => (ErrorKind::Full, "the queue of the client is full"),
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => (
            ErrorKind::NotFound,
            "there is no such topic or partition: it was deleted, or may not be made (KAFKA_AUTO_CREATE)",
        ),
        Code::GroupIdNotFound | Code::UnknownGroup => {
            (ErrorKind::NotFound, "there is no such group")
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => (
            ErrorKind::TooLarge,
            "the message is larger than the topic takes (max.message.bytes)",
        ),
        Code::InvalidTopic => (
            ErrorKind::InvalidArgument,
            "the broker does not take this name of a topic: another one may differ from it only in . and _",
        ),
        Code::InvalidReplicationFactor => (
            ErrorKind::InvalidArgument,
            "the cluster has fewer brokers than the topic is to have replicas (KAFKA_REPLICATION_FACTOR)",
        ),
        Code::InvalidPartitions
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::InvalidGroupId
        | Code::InvalidArgument => (
            ErrorKind::InvalidArgument,
            "the broker does not take this value",
        ),
        Code::InvalidSessionTimeout => (
            ErrorKind::InvalidArgument,
            "the broker does not take this session timeout: group.min.session.timeout.ms is 6 s by default",
        ),
        Code::PolicyViolation => (
            ErrorKind::InvalidArgument,
            "the policy of the cluster forbids this",
        ),
        Code::TopicAlreadyExists => (ErrorKind::Conflict, "the topic exists already"),
        Code::InconsistentGroupProtocol => (
            ErrorKind::Conflict,
            "the members of this consumer group use another protocol or assignor: choose another group",
        ),
        Code::NonEmptyGroup | Code::GroupSubscribedToTopic => {
            (ErrorKind::Conflict, "the group has members")
        }
        Code::GroupMaxSizeReached => (
            ErrorKind::Full,
            "the group has as many members as the broker takes (group.max.size)",
        ),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::IllegalSASLState => (
            ErrorKind::Unauthorized,
            "the broker refuses these credentials: user, password or mechanism (KAFKA_USERNAME, \
             KAFKA_PASSWORD, KAFKA_SASL_MECHANISM)",
        ),
        Code::UnsupportedSASLMechanism => (
            ErrorKind::Unauthorized,
            "the broker does not offer this SASL mechanism (KAFKA_SASL_MECHANISM)",
        ),
        Code::SSL => (
            ErrorKind::Unauthorized,
            "no encrypted connection could be made: the certificate of the broker is not trusted, is for \
             another name, or the broker wants one of the client",
        ),
        Code::TopicAuthorizationFailed => (
            ErrorKind::Unauthorized,
            "the user lacks a permission for the topic: WRITE to publish, READ to consume, CREATE where it is \
             not there yet, DESCRIBE to look at it",
        ),
        Code::GroupAuthorizationFailed => (
            ErrorKind::Unauthorized,
            "the user lacks a permission for the group: READ, and DESCRIBE for its lag",
        ),
        Code::ClusterAuthorizationFailed => (
            ErrorKind::Unauthorized,
            "the user lacks a permission for the cluster: CREATE to make topics, IDEMPOTENT_WRITE to publish \
             where WRITE for a topic is not enough (brokers before 2.8)",
        ),
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::AssignmentLost
        | Code::Fenced => (
            ErrorKind::LeaseLost,
            "the group has gone on without this member: its partitions belong to others",
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::NotImplemented => (
            ErrorKind::Unsupported,
            "the broker is too old for this, or the client was built without it",
        ),
        _ => (ErrorKind::Broker, "the broker refused the request"),
    }
}

/// Whether a code says that the user lacks a permission for a topic or a group.
pub(crate) fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed
    )
}

/// Whether a code says that there is no such topic.
pub(crate) fn is_missing(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicId
    )
}

/// Whether a code says that a log does not hold what was asked of it.
pub(crate) fn is_lost_place(code: Code) -> bool {
    matches!(
        code,
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation
    )
}

/// Whether the partitions of a member that is told this belong to others.
pub(crate) fn is_fenced(code: Code) -> bool {
    meaning(code).0 == ErrorKind::LeaseLost
}
