"""Print three results and their outcomes: ``python consume.py localhost:9092 xnli.results 3``."""

import io
import sys

import fastavro
from confluent_kafka import Consumer

servers, topic, count = sys.argv[1:]
schema = fastavro.schema.load_schema("../../../schemas/inference-result.avsc")
consumer = Consumer(
    {
        "bootstrap.servers": servers,
        "group.id": "example-python",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",  # without it, results of aborted transactions are seen too
    }
)
consumer.subscribe([topic])
seen = 0
while seen < int(count):
    message = consumer.poll(1.0)
    if message is None:
        continue
    if message.error():
        sys.exit(str(message.error()))
    # The first ten bytes are the marker and the schema's fingerprint.
    result = fastavro.schemaless_reader(io.BytesIO(message.value()[10:]), schema, return_record_name=True)
    branch, outcome = result["outcome"]  # a union: the name of the record says which outcome it is
    if branch == "xnli.Classification":
        found = ", ".join(f"{label['label']} {label['score']:.2f}" for label in outcome["labels"])
    elif branch == "xnli.Entailment":
        found = ", ".join(f"{judged['hypothesis']} {judged['entailment']:.2f}" for judged in outcome["judgements"])
    else:
        found = f"{outcome['dimension']} numbers"
    print(f"{result['id']}: {branch}: {found}", flush=True)
    seen += 1
consumer.close()
