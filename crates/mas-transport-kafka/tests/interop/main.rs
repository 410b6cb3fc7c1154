//! Records from and to clients that know nothing of this library, on a real broker: Kafka's own in Java, and
//! `kafka-python`. CloudEvents by the Kafka binding are written and read by hand.

mod clients;
mod events;
mod partitions;
