//! The suite on every backend of this workspace.

use std::process::ExitCode;
use std::sync::Arc;

use conformance_tests::Harness;
use conformance_tests::harnesses::MemoryHarness;

fn main() -> ExitCode {
    #[cfg_attr(
        not(any(feature = "kafka", feature = "nats", feature = "redis")),
        expect(unused_mut, reason = "memory alone")
    )]
    let mut harnesses: Vec<Arc<dyn Harness>> = vec![
        Arc::new(MemoryHarness::queue()),
        Arc::new(MemoryHarness::log()),
    ];
    #[cfg(feature = "redis")]
    {
        use conformance_tests::harnesses::RedisHarness;
        harnesses.push(Arc::new(RedisHarness::new()));
        harnesses.push(Arc::new(RedisHarness::capped()));
    }
    #[cfg(feature = "nats")]
    harnesses.push(Arc::new(conformance_tests::harnesses::NatsHarness::new()));
    #[cfg(feature = "kafka")]
    harnesses.push(Arc::new(conformance_tests::harnesses::KafkaHarness::new()));
    conformance_tests::main(harnesses)
}
