import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints results: mvn -q compile exec:java -Dexec.mainClass=Consume -Dexec.args="localhost:9092 xnli.results 3" */
public class Consume {
    public static void main(String[] arguments) throws Exception {
        Schema schema = new Schema.Parser().parse(Path.of("../../../schemas/inference-result.avsc").toFile());
        var decoder = new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema);
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", arguments[0],
                "group.id", "example-java",
                "auto.offset.reset", "earliest",
                "isolation.level", "read_committed"); // without it, results of aborted transactions are seen too
        int seen = 0;
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(arguments[1]));
            while (seen < Integer.parseInt(arguments[2])) {
                for (ConsumerRecord<String, byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    GenericRecord result = decoder.decode(record.value());
                    System.out.println(result.get("id") + ": " + described((GenericRecord) result.get("outcome")));
                    seen++;
                }
            }
        }
    }

    /** A union: the name of the record's schema says which outcome it is. */
    private static String described(GenericRecord outcome) {
        String branch = outcome.getSchema().getFullName();
        StringBuilder found = new StringBuilder(branch).append(":");
        switch (branch) {
            case "xnli.Classification" -> {
                for (Object label : (List<?>) outcome.get("labels")) {
                    GenericRecord scored = (GenericRecord) label;
                    found.append(String.format(Locale.ROOT, " %s %.2f", scored.get("label"), (double) scored.get("score")));
                }
            }
            case "xnli.Entailment" -> {
                for (Object judgement : (List<?>) outcome.get("judgements")) {
                    GenericRecord judged = (GenericRecord) judgement;
                    found.append(String.format(
                            Locale.ROOT, " %s %.2f", judged.get("hypothesis"), (double) judged.get("entailment")));
                }
            }
            default -> found.append(" ").append(outcome.get("dimension")).append(" numbers");
        }
        return found.toString();
    }
}
