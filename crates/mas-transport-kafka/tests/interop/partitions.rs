//! A key has one partition, whoever publishes it.

use std::collections::{BTreeMap, BTreeSet};

use mas_transport_core::{Group, Message, Topic};
use tokio::time::Instant;

use crate::clients::{Bench, Data, GROUP, SOON, Wire, next};

const PARTITIONS: u32 = 31;

/// Keys that a message may have.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "0",
        " ",
        "ada",
        "Ada",
        "Straße",
        "München",
        "é",
        "e\u{301}",
        "日本語",
        "🦀",
        "ключ",
        "مفتاح",
        "\u{10ffff}",
        "50%",
        "a/b c",
        "0190a3b2-7c1d-7e4f-8a6b-5c4d3e2f1a0b",
    ]
    .map(str::to_owned)
    .into();
    keys.extend((0..200).map(|n| format!("customer-{n}")));
    // The hash takes four bytes at a time.
    keys.extend(
        (2..=40)
            .chain([1021, 1022, 1023, 1024])
            .map(|n| "x".repeat(n)),
    );
    // Text of every plane, the same in each run.
    let mut state = 0x9747_b28c_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 11
    };
    for _ in 0..200 {
        let chars = (0..1 + random() % 24).filter_map(|n| {
            // Of one byte each, of two, or of any number.
            let most = [0x80, 0x800, 0x11_0000][n as usize % 3];
            char::from_u32(random() % most).filter(|c| !c.is_control())
        });
        keys.push(chars.collect());
    }
    keys.retain(|key: &String| !key.is_empty());
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_one_partition_whoever_publishes_it() {
    let keys = keys();
    for bench in Bench::all("keys", PARTITIONS).await {
        let topic = bench.topic().await;
        let message = |key: &String| Message::new(topic.clone(), "x").unwrap().key(key);
        let messages = keys.iter().map(message).collect();
        let outcomes = bench.publisher.publish_batch(messages).await.into_iter();
        let ours: Vec<u64> = outcomes.map(|o| o.unwrap().position.major).collect();
        let used: BTreeSet<u64> = ours.iter().copied().collect();
        assert!(used.into_iter().eq(0..u64::from(PARTITIONS)));
        let record = |key: &String| Wire::default().key(key).value("x");
        let records: Vec<_> = keys.iter().map(record).collect();
        let theirs = bench.write(&topic, &records);
        let client = bench.client.name;
        for ((key, ours), theirs) in keys.iter().zip(ours).zip(theirs) {
            assert_eq!(Ok(ours), u64::try_from(theirs), "{key:?}, {client}");
        }
        println!("{} keys have the partitions of {client}", keys.len());
        bench.close().await;
    }
}

/// Keys of other programs are bytes: a dead letter keeps them, and has their partition.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_the_partition_of_its_key() {
    let odd = [&b""[..], b"\0", b"\xff", b"\xff\xfe", b"a\0b", b"\n"];
    let mut keys: BTreeSet<Vec<u8>> = odd.map(<[u8]>::to_vec).into();
    let random = |n: u8| (0..=n % 9).map(move |at| (n ^ at).wrapping_mul(151));
    keys.extend((0..50).map(|n| random(n).collect()));
    let record = |key: &Vec<u8>| Wire::default().key(key).value("x");
    let records: Vec<_> = keys.iter().map(record).collect();
    for bench in Bench::all("letters", PARTITIONS).await {
        let topic = bench.topic().await;
        bench.write(&topic, &records);
        let consumer = bench.consumer(&topic).await;
        for _ in &records {
            let delivery = next(&consumer).await;
            delivery.reject("not ours").await.unwrap();
        }
        consumer.close(Instant::now() + SOON).await.unwrap();
        let letters = Topic::dead_letters(&topic, &Group::new(GROUP).unwrap());
        let read = bench.read(&letters).into_iter();
        let ours: BTreeMap<Data, i32> = read
            .map(|wire| (wire.key.unwrap(), wire.partition.unwrap()))
            .collect();
        let theirs = bench.write(&letters, &records);
        let theirs = keys.iter().map(Data::from).zip(theirs);
        assert_eq!(ours, theirs.collect(), "{}", bench.client.name);
        bench.close().await;
    }
}
