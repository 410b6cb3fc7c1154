//! The clauses of CONTRACT.md, in its order. Ids are never used again for something else.

/// A clause: its id and its title, as the heading in CONTRACT.md has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The id, such as `P1`.
    pub id: &'static str,
    /// The title.
    pub title: &'static str,
}

macro_rules! clauses {
    ($($id:ident $title:literal)*) => {
        /// Every clause.
        pub const CLAUSES: &[Clause] = &[$(Clause { id: stringify!($id), title: $title },)*];
    };
}

clauses! {
    P1 "A receipt means stored"
    P2 "An error says whether the message is stored"
    P3 "A batch has one outcome per message"
    P4 "The publish timeout bounds queueing and confirming"
    P5 "A bounded queue pushes back"
    D1 "At least once"
    D2 "A group starts where it says"
    D3 "A loss is raised"
    D4 "Topics are apart"
    D5 "What is unsettled is kept"
    G1 "Each group gets everything"
    G2 "Members share"
    G3 "Members come and go without loss"
    L1 "A live lease is exclusive"
    L2 "After the deadline nothing is settled"
    L3 "A dead member loses its messages to the others"
    L4 "A living member extends"
    L5 "The lease belongs to the group"
    L6 "What waits in the buffer is kept or given back"
    S1 "A confirmed ack is final"
    S2 "Settlements stand alone"
    S3 "Dropping the handle gives up the confirmation only"
    N1 "A nack comes back soon"
    N2 "A delayed nack is not early"
    N3 "Dropping a delivery is a nack with backoff"
    A1 "Attempts count hand-outs"
    A2 "Above the last attempt comes the dead letter"
    A3 "A reject dead-letters at once"
    A4 "A dead letter is the original with its record"
    A5 "Poison that kills its process is capped"
    O1 "First deliveries of a key come in order"
    B1 "Payloads are bytes"
    B2 "Headers and attributes come as they went"
    B3 "Redelivery changes nothing"
    B4 "Too large is refused before the wire"
    B5 "Foreign plain entries are delivered"
    H1 "Malformed entries are quarantined"
    C1 "Dropping a future loses nothing"
    E1 "Closing a consumer drains"
    E2 "After close every call says so"
    E3 "Nothing survives a close"
    U1 "What is not declared is refused"
    M1 "Counts are true"
    R1 "Connections heal"
}

/// The clause of an id.
pub fn clause(id: &str) -> Option<&'static Clause> {
    CLAUSES.iter().find(|c| c.id == id)
}
