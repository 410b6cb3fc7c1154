//! docs/reference/clauses.md: which trials each backend runs, and which mutants they alone kill.
//! The column of mutants is written by the mutants' own test.

use std::sync::Arc;

use conformance_tests::harnesses::MemoryHarness;
use conformance_tests::{Coverage, Harness, coverage};

#[cfg(any(feature = "redis", feature = "nats", feature = "kafka"))]
use crate::missing::nobody;
use crate::page::Page;
use crate::table::{self, BACKENDS, Columns};

fn words(coverage: &Coverage) -> String {
    let mut words = coverage.run.to_string();
    for (count, why) in [
        (coverage.declared_away, "declared away"),
        (coverage.unable, "out of reach"),
    ] {
        if count > 0 {
            words.push_str(&format!(", {count} {why}"));
        }
    }
    words
}

/// Counts the trials of a backend, for the column that its server belongs to.
fn count(columns: &mut Columns, harness: Arc<dyn Harness>) {
    let (info, counts) = coverage(&harness).unwrap();
    let column = match harness.name() {
        // The one version that cannot count what was trimmed unread.
        "redis" if info.server.starts_with("redis 6.2") => "redis 6.2",
        "redis" => "redis 7.0 and newer",
        name => name,
    };
    let column = BACKENDS.into_iter().find(|c| *c == column).unwrap();
    for count in &counts {
        columns.insert((count.clause, column), words(count));
    }
    harness.finish();
}

#[test]
fn the_page_of_clauses_is_true() {
    let mut columns = Columns::new();
    count(&mut columns, Arc::new(MemoryHarness::queue()));
    count(&mut columns, Arc::new(MemoryHarness::log()));
    #[cfg(feature = "redis")]
    {
        use conformance_tests::fixtures::RedisServer;
        use conformance_tests::harnesses::RedisHarness;

        match RedisServer::available() {
            Ok(_) => count(&mut columns, Arc::new(RedisHarness::new())),
            Err(_) => nobody("redis"),
        }
    }
    #[cfg(feature = "nats")]
    {
        use conformance_tests::fixtures::NatsServer;
        use conformance_tests::harnesses::NatsHarness;

        match NatsServer::available() {
            Ok(_) => count(&mut columns, Arc::new(NatsHarness::new())),
            Err(_) => nobody("nats"),
        }
    }
    #[cfg(feature = "kafka")]
    {
        use conformance_tests::fixtures::KafkaServer;
        use conformance_tests::harnesses::KafkaHarness;

        match KafkaServer::available() {
            Ok(_) => count(&mut columns, Arc::new(KafkaHarness::new())),
            Err(_) => nobody("kafka"),
        }
    }
    let page = Page::read(table::NAME);
    let new = table::generate(&page, &columns);
    if let Err(why) = page.settle(&new) {
        panic!("{why}");
    }
}
