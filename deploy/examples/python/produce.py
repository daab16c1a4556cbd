"""Send one request: ``python produce.py localhost:9092 xnli.requests``."""

import io
import sys

import fastavro
from confluent_kafka import Producer

servers, topic = sys.argv[1:]
schema = fastavro.schema.load_schema("../../../schemas/inference-request.avsc")

# Avro single-object encoding: two marker bytes, the schema's fingerprint (little endian), then the record.
fingerprint = fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(schema), "CRC-64-AVRO")
header = b"\xc3\x01" + bytes.fromhex(fingerprint)

request = {"id": "python-1", "text": "The parcel arrived two days late.", "labels": ["delivery", "payment"]}
value = io.BytesIO()
value.write(header)
fastavro.schemaless_writer(value, schema, request)  # fields that are left out take their defaults

producer = Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random"})
producer.produce(topic, key=request["id"], value=value.getvalue())
if producer.flush(30):
    sys.exit("the broker did not acknowledge the request within 30 seconds")
print("sent python-1")
