//! Servers that are not there.

/// There is no server to ask: where one is required, that is a failure.
pub(crate) fn nobody(backend: &str) {
    let upper = backend.to_uppercase();
    let reason = format!("no server of scripts/brokers and no TEST_{upper}_SERVER");
    let required = std::env::var(format!("REQUIRE_{upper}")).is_ok_and(|v| v == "1");
    assert!(!required, "{reason}");
    println!("SKIPPED backend={backend} reason={reason}");
}
