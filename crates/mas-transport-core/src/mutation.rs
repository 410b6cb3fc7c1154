//! Deliberate faults inside the pumps, so that the suite can prove that it catches them. Compiled
//! only with the feature `mutants`, which no application enables.

/// A fault in a pump; put it into [`TransportInfo::mutation`](crate::TransportInfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mutation {
    /// `enqueue` waits once more after it has taken room, and loses the room when dropped there.
    PublishLosesOnCancel,
    /// A publish after close is answered with a receipt and thrown away.
    PublishAfterClose,
    /// Closing the publisher does not wait for what it had accepted.
    CloseDoesNotFlush,
    /// Batches are sent in reverse.
    BatchReversed,
    /// One failed message fails its whole batch.
    BatchFailsTogether,
    /// Settlements past the deadline are sent to the broker, and their answers believed.
    SettlesPastDeadline,
    /// What waits in the buffer is not extended.
    BufferNotExtended,
    /// What waits in the buffer is extended although the handlers hang.
    BufferHoarded,
    /// Deliveries are handed out without their `Begin`.
    NoBegin,
    /// A suspect on its last attempt is handed out beside others.
    LastAttemptNotAlone,
    /// Messages beyond their attempts are handed out.
    NoPoisonStop,
    /// A dropped delivery is acked.
    DropAcks,
    /// A dropped delivery is nacked without a wait.
    DropWithoutBackoff,
    /// A settlement whose handle is dropped is not sent.
    HandleWithdraws,
    /// `recv` takes a delivery and then waits once more, losing it when dropped there.
    RecvLosesOnCancel,
    /// Closing or dropping the consumer keeps what was not handed out.
    NothingReturned,
    /// Closing does not wait for the handlers.
    NoDrain,
    /// Gap events are swallowed.
    GapsSwallowed,
    /// Failed acks and nacks are not shown as events.
    FailuresSwallowed,
    /// Malformed entries are acked without a trace.
    MalformedDropped,
    /// The consumer stops at a malformed entry.
    MalformedStalls,
    /// A task of the pump's outlives its consumer.
    TaskLeaks,
    /// A retryable error of the broker ends the consumer.
    NoRetry,
    /// Rejected messages are acked without a dead letter.
    RejectAcks,
    /// The dead letter's record is empty.
    EmptyRecord,
    /// Prefetch ignores the window.
    WindowIgnored,
    /// The publish timeout is a hundred times as long.
    NoPublishTimeout,
    /// What was never sent is said to be stored, perhaps.
    UnsentMayBeStored,
    /// The publish queue takes everything.
    QueueUnbounded,
    /// The publish queue takes any number of bytes.
    QueueBytesUnbounded,
    /// The backoff of dropped deliveries grows beyond its limit.
    BackoffUncapped,
    /// A paused consumer keeps its buffer.
    PauseKeeps,
    /// Closing waits a second for the handlers, whatever the deadline.
    DrainIsShort,
    /// A dropped delivery always waits for the first step of the backoff.
    BackoffDoesNotGrow,
    /// After a close, `recv` answers `None` for ever.
    EndToldForEver,
    /// What came back waits until nothing new is left in the buffer.
    AgainWaits,
    /// A settlement that lets a receiver go on does not wake it.
    ReceiverSleepsOn,
}
