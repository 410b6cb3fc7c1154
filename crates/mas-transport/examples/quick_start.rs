//! Orders are published, billed, and given up when they make no sense.
//!
//! In memory:
//!
//! ```sh
//! cargo run -p mas-transport --example quick_start
//! ```
//!
//! On a Redis server, without a change to the code:
//!
//! ```sh
//! PROTOCOL_TYPE=redis REDIS_ADDR=localhost:6379 \
//!     cargo run -p mas-transport --features redis --example quick_start
//! ```

use std::time::Duration;

use mas_transport::{Bus, Message, Result, Subscription, Topic};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    number: u32,
    customer: String,
    cents: u64,
}

/// What billing can run into.
#[derive(Debug)]
enum ChargeError {
    /// Worth another attempt.
    Busy,
    /// Never going to work.
    NothingToPay,
}

#[tokio::main]
async fn main() -> Result<()> {
    let bus = Bus::from_env().await?;

    // The group exists from here on: nothing published later is missed.
    let subscription = Subscription::new("orders.open").group("billing");
    let orders = bus.subscribe(subscription).await?;

    for (number, customer, cents) in [(1, "ada", 1200), (2, "grace", 0), (3, "ada", 350)] {
        let order = Order {
            number,
            customer: customer.to_owned(),
            cents,
        };
        // With the receipt, the broker has the message.
        bus.publish(Message::json("orders.open", &order)?.key(customer))
            .await?;
    }
    bus.publish(Message::new("orders.open", "not an order")?)
        .await?;

    let mut open = 4;
    while open > 0 {
        let Some(delivery) = orders.recv().await? else {
            break;
        };
        let order: Order = match delivery.json() {
            Ok(order) => order,
            Err(error) => {
                println!("rejected: not an order");
                delivery.reject(error).await?;
                open -= 1;
                continue;
            }
        };
        // Each settlement is queued at once; awaiting it gives the broker's confirmation.
        match charge(&order, delivery.attempt()) {
            Ok(()) => {
                println!("charged order {}: {} cents", order.number, order.cents);
                delivery.ack().await?;
                open -= 1;
            }
            Err(ChargeError::Busy) => {
                println!("order {} later", order.number);
                delivery.nack_after(Duration::from_millis(500)).await?;
            }
            Err(error @ ChargeError::NothingToPay) => {
                println!("rejected: order {}", order.number);
                delivery.reject(format!("{error:?}")).await?;
                open -= 1;
            }
        }
    }

    // What was given up waits, with the reason, for somebody to look at it.
    let dead_letters = Topic::stored("_dlq.billing.orders.open")?;
    let subscription = Subscription::new(dead_letters.as_str()).group("support");
    let given_up = bus.subscribe(subscription).await?;
    for _ in 0..2 {
        let Some(delivery) = given_up.recv().await? else {
            break;
        };
        let reason = delivery.record().map(|record| record.reason.code);
        let text = String::from_utf8_lossy(delivery.payload()).into_owned();
        println!("dead letter: {text} ({reason:?})");
        delivery.ack().await?;
    }

    // Returns what was fetched and not handed out, and sends what was accepted.
    bus.close(Duration::from_secs(5)).await
}

/// The first order finds the bank busy once.
fn charge(order: &Order, attempt: u32) -> Result<(), ChargeError> {
    match order {
        Order { cents: 0, .. } => Err(ChargeError::NothingToPay),
        Order { number: 1, .. } if attempt == 1 => Err(ChargeError::Busy),
        _ => Ok(()),
    }
}
