import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteBufferSerializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Sends one request: mvn -q compile exec:java -Dexec.mainClass=Produce -Dexec.args="localhost:9092 xnli.requests" */
public class Produce {
    public static void main(String[] arguments) throws Exception {
        Schema schema = new Schema.Parser().parse(Path.of("../../../schemas/inference-request.avsc").toFile());
        GenericRecord request = new GenericRecordBuilder(schema) // fields that are not set take their defaults
                .set("id", "java-1")
                .set("text", "The parcel arrived two days late.")
                .set("labels", List.of("delivery", "payment"))
                .build();
        // Avro single-object encoding: no registry is needed.
        ByteBuffer value = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema).encode(request);
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0]);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteBufferSerializer())) {
            producer.send(new ProducerRecord<>(arguments[1], "java-1", value)).get();
        }
        System.out.println("sent java-1");
    }
}
