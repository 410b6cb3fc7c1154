//! Many messages at once: an outcome for each, in order; and two ways to publish fast.
//!
//! ```sh
//! cargo run -p mas-transport --example batch
//! ```

use std::time::Duration;

use mas_transport::{Bus, Message, Result, Stored, Subscription};

#[tokio::main]
async fn main() -> Result<()> {
    let bus = Bus::from_env().await?;
    let subscription = Subscription::new("readings").group("archive").prefetch(500);
    let readings = bus.subscribe(subscription).await?;

    // Together: one that is refused fails alone.
    let mut batch = Vec::new();
    for number in 0..5 {
        batch.push(Message::json("readings", &number)?);
    }
    batch[2] = Message::new("readings", vec![0; 64 << 20])?;
    for (number, outcome) in bus.publish_batch(batch).await.into_iter().enumerate() {
        match outcome {
            Ok(_) => println!("{number}: stored"),
            // Whether it may be stored all the same decides what a retry may do.
            Err(e) if e.stored() == Stored::No => println!("{number}: {:?}, not stored", e.kind()),
            Err(e) => println!("{number}: {:?}, perhaps stored", e.kind()),
        }
    }

    // One behind the other: `enqueue` waits for room only, and the receipts come later.
    let mut receipts = Vec::new();
    for number in 5..1000 {
        let message = Message::json("readings", &number)?;
        receipts.push(bus.enqueue(message).await?);
    }
    let count = receipts.len();
    for receipt in receipts {
        receipt.await?;
    }
    println!("{count} more stored");

    let (mut open, mut sum) = (999, 0);
    while open > 0 {
        let batch = readings.recv_batch(200).await?;
        if batch.is_empty() {
            break;
        }
        for delivery in batch {
            sum += delivery.json::<u64>()?;
            open -= 1;
            // Not awaited one by one: acks travel together. A failed one shows as an event.
            drop(delivery.ack());
        }
    }
    println!("sum: {sum}");
    // Sends what was queued.
    bus.close(Duration::from_secs(5)).await?;
    println!("events: {:?}", readings.try_next_event());
    Ok(())
}
