//! The suite on every backend of this workspace.

use std::process::ExitCode;
use std::sync::Arc;

use conformance_tests::Harness;
use conformance_tests::harnesses::MemoryHarness;

fn main() -> ExitCode {
    #[cfg_attr(not(feature = "redis"), expect(unused_mut, reason = "memory alone"))]
    let mut harnesses: Vec<Arc<dyn Harness>> = vec![
        Arc::new(MemoryHarness::queue()),
        Arc::new(MemoryHarness::log()),
    ];
    #[cfg(feature = "redis")]
    harnesses.push(Arc::new(conformance_tests::harnesses::RedisHarness::new()));
    conformance_tests::main(harnesses)
}
