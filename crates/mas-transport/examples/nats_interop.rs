//! Programs that know NATS and nothing of this library: what they publish is received through the
//! bus, and what the bus publishes they read.
//!
//! ```sh
//! PROTOCOL_TYPE=nats NATS_URL=nats://127.0.0.1:4222 \
//!     cargo run -p mas-transport --features nats --example nats_interop
//! ```

use std::error::Error;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::StreamExt as _;
use mas_transport::nats::NatsNative;
use mas_transport::{Bus, Message, Subscription, Topic};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bus = Bus::from_env().await?;
    // Other programs connect by themselves; here the client under the bus does for one of them.
    let native = bus.native::<NatsNative>();
    let native = native.ok_or("it is about NATS: set PROTOCOL_TYPE=nats")?;
    let jetstream = native.jetstream();

    // The topic's stream is made here: before, there is nobody to take what is published.
    let orders = Subscription::new("orders.imported").group("billing");
    let orders = bus.subscribe(orders).await?;

    // A CloudEvent, its attributes as headers. Their values are percent-encoded; those of other
    // headers are not.
    let subject = native.subject(&Topic::new("orders.imported")?);
    let mut headers = HeaderMap::new();
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", "order-1");
    headers.insert("ce-source", "/shop/caf%C3%A9");
    headers.insert("ce-type", "order.created");
    headers.insert("ce-partitionkey", "Ada%20Lovelace");
    headers.insert("x-till", "100% cash");
    let event = jetstream.publish_with_headers(subject.clone(), headers, "1200".into());
    event.await?.await?;
    // What is no event is a message too, of a source that says so.
    jetstream.publish(subject, "hello".into()).await?.await?;

    for _ in 0..2 {
        let Some(order) = orders.recv().await? else {
            break;
        };
        let payload = String::from_utf8_lossy(order.payload()).into_owned();
        println!("received {payload}");
        println!("  source: {}", order.source());
        if let Some(key) = order.get_key() {
            println!("  key: {key}");
        }
        for (name, value) in order.headers().iter() {
            println!("  {name}: {}", value.as_str().unwrap_or_default());
        }
        order.ack().await?;
    }

    // The other way round: a consumer of the other program's own, on the stream of the topic.
    let payment = Message::new("payments", "1200")?
        .with_id("payment-1")
        .from_source("/billing/café")
        .kind("order.paid")
        .content_type("text/plain")
        .key("Ada Lovelace")
        .header("x-till", "100% cash");
    bus.publish(payment).await?;
    let stream = native.stream(&Topic::new("payments")?);
    let config = pull::Config {
        // One that acknowledges would hold back what it has not acknowledged, as every group does.
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = jetstream.create_consumer_on_stream(config, stream).await?;
    let mut payments = consumer.fetch().max_messages(1).messages().await?;
    while let Some(payment) = payments.next().await {
        let payment = payment.map_err(|error| error.to_string())?;
        println!("read {}", String::from_utf8_lossy(&payment.payload));
        let headers = payment.headers.clone().unwrap_or_default();
        let mut headers: Vec<String> = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")))
            .collect();
        headers.sort();
        for header in headers {
            println!("  {header}");
        }
    }
    bus.close(Duration::from_secs(5)).await?;
    Ok(())
}
