//! Two agents: one asks, the other answers, over the inbox of each. No router in between: a request
//! is a message with a topic to reply to and a correlation id.
//!
//! ```sh
//! cargo run -p mas-transport --example request_reply
//! ```

use std::time::Duration;

use mas_transport::{Attribute, Bus, Consumer, Error, ErrorKind, Message, Result, Subscription};

#[tokio::main]
async fn main() -> Result<()> {
    let bus = Bus::from_env().await?;
    let inbox = bus.subscribe(inbox_of("planner")).await?;
    let requests = bus.subscribe(inbox_of("calculator")).await?;
    let calculator = tokio::spawn(calculate(bus.clone(), requests));

    let mut open = Vec::new();
    for (text, id) in [("6*7", "question-1"), ("6*x", "question-2")] {
        let request = Message::new("inbox.calculator", text)?
            .kind("calculate")
            .from_source("/agents/planner")
            .reply_to("inbox.planner")
            .correlation_id(id);
        bus.publish(request).await?;
        open.push(id);
    }
    // Requests have a limit: whoever should answer may be gone.
    let limit = Duration::from_secs(30);
    let late = |_| Error::new(ErrorKind::Timeout, "request", "nobody answered in time");
    while !open.is_empty() {
        let answer = tokio::time::timeout(limit, inbox.recv()).await;
        let Some(answer) = answer.map_err(late)?? else {
            break;
        };
        let id = answer.message().attribute(Attribute::CorrelationId);
        // An answer that comes twice (at least once!) is to a question that is not open any more.
        if let Some(at) = open.iter().position(|open| Some(*open) == id) {
            let text = String::from_utf8_lossy(answer.payload());
            println!("{}: {text} from {}", open.remove(at), answer.source());
        }
        answer.ack().await?;
    }

    bus.close(Duration::from_secs(5)).await?;
    match calculator.await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Every agent has a topic and a group of its own.
fn inbox_of(agent: &str) -> Subscription {
    Subscription::new(format!("inbox.{agent}")).group(agent)
}

async fn calculate(bus: Bus, requests: Consumer) -> Result<()> {
    while let Some(request) = requests.recv().await? {
        let text = String::from_utf8_lossy(request.payload()).into_owned();
        let factors: Option<Vec<u64>> = text.split('*').map(|f| f.parse().ok()).collect();
        let answer = match factors {
            Some(factors) => factors.iter().product::<u64>().to_string(),
            None => format!("{text} is no product of numbers"),
        };
        let to = request.message().attribute(Attribute::ReplyTo);
        let (Some(to), Some(id)) = (
            to.map(str::to_owned),
            request.message().attribute(Attribute::CorrelationId),
        ) else {
            drop(request.reject("a request says where to reply and has a correlation id"));
            continue;
        };
        let answer = Message::new(to, answer)?
            .kind("calculated")
            .from_source("/agents/calculator")
            .correlation_id(id)
            .causation_id(request.id());
        // First the answer, then the ack: a crash between the two answers twice, never not at all.
        bus.publish(answer).await?;
        request.ack().await?;
    }
    Ok(())
}
