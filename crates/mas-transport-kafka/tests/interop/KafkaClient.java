import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** kafka_client.py with Kafka's own client. It is run from source. */
public class KafkaClient {
    static final Duration LIMIT = Duration.ofSeconds(30);
    static final ObjectMapper JSON = new ObjectMapper();

    /** Jackson writes bytes as base64. */
    record Header(String name, byte[] value) {}

    record Wire(Integer partition, byte[] key, List<Header> headers, byte[] value) {}

    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "publish" -> publish(arguments[1], arguments[2]);
            case "read" -> read(arguments[1], arguments[2]);
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    static void publish(String brokers, String topic) throws Exception {
        // The partitioner is the default.
        Map<String, Object> config = Map.of("bootstrap.servers", brokers);
        var bytes = new ByteArraySerializer();
        var stdin = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (var producer = new KafkaProducer<>(config, bytes, bytes)) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (String line; (line = stdin.readLine()) != null; ) {
                Wire wire = JSON.readValue(line, Wire.class);
                var record = new ProducerRecord<>(topic, wire.key(), wire.value());
                for (Header header : wire.headers()) {
                    record.headers().add(header.name(), header.value());
                }
                sent.add(producer.send(record));
            }
            for (var future : sent) {
                System.out.println(future.get(LIMIT.toSeconds(), TimeUnit.SECONDS).partition());
            }
        }
    }

    static void read(String brokers, String topic) throws Exception {
        Map<String, Object> config = Map.of(
            "bootstrap.servers", brokers, "auto.offset.reset", "earliest", "enable.auto.commit", false);
        var bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<>(config, bytes, bytes)) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(info -> new TopicPartition(topic, info.partition()))
                .toList();
            consumer.assign(partitions);
            var ends = consumer.endOffsets(partitions);
            var until = Instant.now().plus(LIMIT);
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.get(p))) {
                if (Instant.now().isAfter(until)) {
                    throw new IllegalStateException("not read to " + ends + " in time");
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    List<Header> headers = new ArrayList<>();
                    record.headers().forEach(h -> headers.add(new Header(h.key(), h.value())));
                    var wire = new Wire(record.partition(), record.key(), headers, record.value());
                    System.out.println(JSON.writeValueAsString(wire));
                }
            }
        }
    }
}
