//! The partition of a key is the one that Java's clients choose, by the settings of the client that
//! publishes. No broker is needed: the client has one of its own for tests.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseProducer, BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext,
};

use crate::config::KafkaConfig;
use crate::publish::settings;

/// The client and its broker share a process; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// What `org.apache.kafka.common.utils.Utils.murmur2` of Kafka 4.3.0 returns. The first seven are those of
/// Kafka's own `UtilsTest`.
const MURMUR2: &[(&[u8], i32)] = &[
    (b"21", -973_932_308),
    (b"foobar", -790_332_482),
    (b"a-little-bit-long-string", -985_981_536),
    (b"a-little-bit-longer-string", -1_486_304_829),
    (
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
        -58_897_971,
    ),
    (b"abc", 479_470_107),
    (b"", 275_646_681),
    (b"a", -1_563_381_124),
    (b"ada", -1_834_195_827),
    (b"customer-7", -1_283_830_537),
    ("Straße".as_bytes(), 403_542_409),
    ("München".as_bytes(), 1_814_305_452),
    ("日本語".as_bytes(), 1_431_860_170),
    ("🦀🦀".as_bytes(), 1_125_223_816),
    ("e\u{301}".as_bytes(), -1_650_544_357),
    ("\u{e9}".as_bytes(), 186_971_271),
    (b"0190a3b2-7c1d-7e4f-8a6b-5c4d3e2f1a0b", -1_817_761_527),
    (&[b'x'; 1024], 1_799_637_545),
    // No text: keys of other programs, under which their dead letters stand as well.
    (b"\0", 375_494_588),
    (b"\xff", -311_467_685),
    (b"\xff\xfe", 1_717_632_651),
    (b"\x80\x80\x80", -1_134_684_817),
    (b"\xff\xff\xff\xff", 644_171_429),
    (b"\x99\x17\x0f\xbb\x18", -656_517_740),
    (b"Z\x94\xc9\xbf9\x0b", -2_004_152_140),
    (b"\x09\xd3*Y]J\x98", 623_656_200),
    (b"A\xf4\xb3\xe5\x92G\x1a\xbe", -104_608_473),
];

/// Notes the partition of each key, by its place in the table.
#[derive(Default)]
struct Heard(Mutex<BTreeMap<usize, i32>>);

impl ClientContext for Heard {}

impl ProducerContext<NoCustomPartitioner> for Heard {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, at: Box<usize>) {
        let message = result.as_ref().map_err(|(error, _)| error).unwrap();
        self.0.lock().unwrap().insert(*at, message.partition());
    }
}

#[test]
fn a_key_has_the_partition_of_java() {
    let broker = MockCluster::new(1).unwrap();
    for partitions in [1, 3, 12, 31] {
        let topic = format!("of-{partitions}");
        broker.create_topic(&topic, partitions, 1).unwrap();
        let producer: BaseProducer<Heard> = settings(&KafkaConfig::new(broker.bootstrap_servers()))
            .create_with_context(Heard::default())
            .unwrap();
        for (at, (key, _)) in MURMUR2.iter().enumerate() {
            let record = BaseRecord::with_opaque_to(&topic, Box::new(at));
            let sent = producer.send(record.key(*key).payload("x"));
            sent.map_err(|(error, _)| error).unwrap();
        }
        producer.flush(LIMIT).unwrap();
        let heard = producer.context().0.lock().unwrap();
        // `BuiltInPartitioner.partitionForKey`: the hash without its sign bit, not its absolute value.
        let java = MURMUR2
            .iter()
            .map(|(_, hash)| (hash & i32::MAX) % partitions);
        let wanted: BTreeMap<_, _> = java.enumerate().collect();
        assert_eq!(*heard, wanted, "of {partitions}");
    }
}
