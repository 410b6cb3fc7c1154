//! A backend of one's own joins the others by its scheme: `PROTOCOL_TYPE`, URLs, files and
//! validation know it. Here it is a memory broker for each name; `examples/files-backend` in the
//! repository is one written from scratch, with the conformance suite on it.
//!
//! ```sh
//! cargo run -p mas-transport --example custom_backend
//! ```

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use mas_transport::memory::{MemoryBroker, MemoryConfig, MemoryTransport};
use mas_transport::{
    Backend, Bus, Config, Kind, Message, Registry, Result, Settings, Subscription, Variable,
};

/// The brokers of this process, by name.
static ROOMS: LazyLock<Mutex<HashMap<String, MemoryBroker>>> = LazyLock::new(Mutex::default);

/// The settings have been checked: what is wrong was refused together with everything else.
async fn enter(settings: Settings) -> Result<Arc<MemoryTransport>> {
    let name = settings.text("ROOMS_NAME").unwrap_or_default().to_owned();
    let messages = settings.whole("ROOMS_SIZE").unwrap_or(100);
    let broker = {
        let mut rooms = ROOMS.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || MemoryBroker::new(MemoryConfig::new().max_topic_messages(messages));
        rooms.entry(name).or_insert_with(make).clone()
    };
    broker.connect().await
}

#[tokio::main]
async fn main() -> Result<()> {
    let rooms = Backend::new("rooms", enter)
        .variable(Variable::new("ROOMS_NAME", Kind::Text, "Which room.").default("lobby"))
        .variable(
            Variable::new("ROOMS_SIZE", Kind::Whole(1, 1000), "Messages of a topic.")
                .default("100"),
        )
        .host("ROOMS_NAME");
    Registry::global().register(rooms)?;
    println!(
        "joined: {}",
        Registry::global().backends().contains(&"rooms")
    );

    // Its settings are checked like those of any other.
    let wrong = [
        ("PROTOCOL_TYPE", "rooms"),
        ("ROOMS_SIZE", "0"),
        ("ROOMS_NAM", "x"),
    ];
    for problem in Config::from_vars(wrong).resolve().problems() {
        println!("{problem}");
    }

    let bus = Bus::from_url("rooms://kitchen?size=2").await?;
    let notes = bus
        .subscribe(Subscription::new("notes").group("cook"))
        .await?;
    for note in ["salt", "pepper", "thyme"] {
        match bus.publish(Message::new("notes", note)?).await {
            Ok(_) => println!("{note}: noted"),
            Err(e) => println!("{note}: {:?}", e.kind()),
        }
    }
    for _ in 0..2 {
        if let Some(note) = notes.recv().await? {
            println!("read: {}", String::from_utf8_lossy(note.payload()));
            note.ack().await?;
        }
    }
    bus.close(Duration::from_secs(5)).await
}
