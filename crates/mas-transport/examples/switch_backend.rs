//! The broker is a matter of the environment; what the program needs of it is a matter of the
//! program.
//!
//! ```sh
//! cargo run -p mas-transport --features redis --example switch_backend
//! PROTOCOL_TYPE=redis REDIS_ADDR=localhost:6379 \
//!     cargo run -p mas-transport --features redis --example switch_backend
//! PROTOCOL_TYPE=nats NATS_URL=nats://localhost:4222 \
//!     cargo run -p mas-transport --features nats --example switch_backend
//! PROTOCOL_TYPE=kafka KAFKA_BROKERS=localhost:9092 \
//!     cargo run -p mas-transport --features kafka --example switch_backend
//! ```

use std::time::Duration;

use mas_transport::{Bus, Config, Message, Requirements, Result, Subscription};

#[tokio::main]
async fn main() -> Result<()> {
    // Refuses to start on a broker that lacks something, rather than to find out in production.
    let needs = Requirements::new()
        .nack_latency(Duration::from_secs(1))
        .message_bytes(64 * 1024);
    let config = Config::from_env().source("/agents/greeter").require(needs);
    let bus = Bus::connect(config).await?;
    // To the log, not to the output: that is the same everywhere.
    eprintln!("on {}", bus.info().server);

    let subscription = Subscription::new("greetings").group("printer");
    let greetings = bus.subscribe(subscription).await?;
    for name in ["Ada", "Grace"] {
        // Of one key, so that they come in order on every backend.
        let greeting = Message::new("greetings", format!("Hello, {name}!"))?.key("guests");
        bus.publish(greeting).await?;
    }
    for _ in 0..2 {
        let Some(greeting) = greetings.recv().await? else {
            break;
        };
        let text = String::from_utf8_lossy(greeting.payload()).into_owned();
        println!("{}: {text}", greeting.source());
        greeting.ack().await?;
    }
    let lag = bus.lag("greetings", "printer").await?;
    println!("waiting {}, pending {}", lag.waiting, lag.pending);
    bus.close(Duration::from_secs(5)).await
}
