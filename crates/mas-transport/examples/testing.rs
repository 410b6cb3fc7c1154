//! How to test a program on the memory backend: a broker for each test, a plan of what goes wrong,
//! and a clock that does not make anybody wait.
//!
//! ```sh
//! cargo run -p mas-transport --example testing
//! ```

use std::time::Duration;

use mas_transport::memory::{
    FaultEffect, FaultOperation, FaultPlan, FaultRule, MemoryBroker, MemoryConfig,
};
use mas_transport::{Bus, Message, Result, Stored, Subscription};
use tokio::time::Instant;

// In a test: #[tokio::test(start_paused = true)].
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    tokio::time::pause();

    // The answer to the second publish is lost, and the first ack comes too late: the same plan
    // raises the same faults every time.
    let lost = FaultRule::new(FaultOperation::Publish, FaultEffect::LoseAck).nth(2);
    let cut = FaultEffect::Disconnect(Duration::from_secs(60));
    let cut = FaultRule::new(FaultOperation::Settle, cut).nth(1);
    let plan = FaultPlan::new(7).rule(lost).rule(cut);
    let broker = MemoryBroker::new(MemoryConfig::new().faults(plan));
    let bus = Bus::new(broker.connect().await?);

    let subscription = Subscription::new("orders")
        .group("billing")
        .lease(Duration::from_secs(30));
    let orders = bus.subscribe(subscription).await?;
    for number in 1..=2 {
        match bus.publish(Message::json("orders", &number)?).await {
            Ok(_) => println!("{number}: stored"),
            Err(e) => {
                assert_eq!(e.stored(), Stored::Unknown);
                println!("{number}: {:?}, perhaps stored", e.kind());
            }
        }
    }

    let started = Instant::now();
    let mut open = 2;
    while open > 0 {
        let Some(order) = orders.recv().await? else {
            break;
        };
        let (number, attempt) = (order.json::<u32>()?, order.attempt());
        match order.ack().await {
            Ok(()) => {
                println!("{number}: billed at attempt {attempt}");
                open -= 1;
            }
            Err(e) => println!("{number}: {:?} at attempt {attempt}", e.kind()),
        }
    }
    // A minute of outage and a lease have passed, in no time.
    let passed = started.elapsed();
    assert!(passed >= Duration::from_secs(60) && passed < Duration::from_secs(120));
    bus.close(Duration::from_secs(5)).await
}
