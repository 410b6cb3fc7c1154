//! Three agents in a row: what one writes, the next one reads. Each is a group of its own, so each
//! can have more members, be restarted, or be behind, without the others knowing.
//!
//! ```sh
//! cargo run -p mas-transport --example pipeline
//! ```

use std::time::Duration;

use mas_transport::{Bus, Consumer, Delivery, Message, Result, Subscription};

#[tokio::main]
async fn main() -> Result<()> {
    let bus = Bus::from_env().await?;
    // All groups are there before the first message is.
    let fetched = bus.subscribe(stage("pages.fetched", "reader")).await?;
    let read = bus.subscribe(stage("pages.read", "judge")).await?;
    let judged = bus.subscribe(stage("pages.judged", "editor")).await?;
    let reader = tokio::spawn(work(bus.clone(), fetched, "pages.read", count_words));
    let judge = tokio::spawn(work(bus.clone(), read, "pages.judged", judge_length));

    for page in ["a short page", "", "a page with rather more words in it"] {
        let message = Message::new("pages.fetched", page)?.key("example.org");
        bus.publish(message).await?;
    }
    let mut lines = Vec::new();
    while lines.len() < 2 {
        let Some(page) = judged.recv().await? else {
            break;
        };
        lines.push(String::from_utf8_lossy(page.payload()).into_owned());
        page.ack().await?;
    }
    lines.sort();
    println!("{}", lines.join("\n"));

    // The empty page stands in the reader's dead letters, with the reason.
    let given_up = bus.subscribe(stage("_dlq.reader.pages.fetched", "support"));
    if let Some(page) = given_up.await?.recv().await? {
        let reason = page.record().map(|record| record.reason.text.clone());
        println!("given up: {}", reason.unwrap_or_default());
        page.ack().await?;
    }

    bus.close(Duration::from_secs(5)).await?;
    for agent in [reader, judge] {
        match agent.await {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    Ok(())
}

fn stage(topic: &str, group: &str) -> Subscription {
    Subscription::new(topic).group(group)
}

/// Reads, does something, publishes the outcome, and acks when that has its receipt: what fails in
/// between is done again.
async fn work(
    bus: Bus,
    from: Consumer,
    to: &str,
    step: fn(&Delivery) -> std::result::Result<String, String>,
) -> Result<()> {
    while let Some(delivery) = from.recv().await? {
        let done = match step(&delivery) {
            Ok(done) => done,
            Err(reason) => {
                delivery.reject(reason).await?;
                continue;
            }
        };
        let mut next = Message::new(to, done)?.causation_id(delivery.id());
        if let Some(key) = delivery.get_key() {
            next = next.key(key);
        }
        bus.publish(next).await?;
        delivery.ack().await?;
    }
    Ok(())
}

fn count_words(page: &Delivery) -> std::result::Result<String, String> {
    let text = String::from_utf8_lossy(page.payload());
    match text.split_whitespace().count() {
        0 => Err("the page is empty".to_owned()),
        words => Ok(words.to_string()),
    }
}

fn judge_length(page: &Delivery) -> std::result::Result<String, String> {
    let words: usize = page.json().map_err(|e| e.to_string())?;
    let verdict = if words > 5 { "long" } else { "short" };
    Ok(format!("{verdict}: {words} words"))
}
