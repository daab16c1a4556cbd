"""librdkafka's own C interface, for records that confluent-kafka does not let a producer write."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import confluent_kafka

# From rdkafka.h: what an argument of rd_kafka_producev is, and that its bytes are copied.
_END, _TOPIC, _PARTITION, _VALUE, _KEY, _FLAGS, _TIMESTAMP, _HEADER = 0, 1, 3, 4, 5, 7, 8, 9
_COPY = 2
_PRODUCER = 0
_FLUSH_MS = 30_000


@functools.cache
def _library() -> ctypes.CDLL:
    """The shared library in confluent-kafka's wheel."""
    (path,) = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(path))
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_new.restype = ctypes.c_void_p
    return library


def produce(
    bootstrap_servers: str,
    topic: str,
    *,
    key: bytes,
    value: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    timestamp_ms: int = 0,
    partition: int = -1,
) -> None:
    """Write one record whose header names may be any bytes but NUL.

    Raises:
        AssertionError: it was not written.
    """
    library = _library()
    error = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    for name, setting in ((b"bootstrap.servers", bootstrap_servers.encode()), (b"linger.ms", b"0")):
        if library.rd_kafka_conf_set(conf, name, setting, error, len(error)):
            raise AssertionError(error.value)
    client = library.rd_kafka_new(_PRODUCER, conf, error, len(error))
    if not client:
        raise AssertionError(error.value)
    client = ctypes.c_void_p(client)
    arguments: list[object] = [ctypes.c_int(_TOPIC), ctypes.c_char_p(topic.encode())]
    arguments += [ctypes.c_int(_PARTITION), ctypes.c_int32(partition), ctypes.c_int(_FLAGS), ctypes.c_int(_COPY)]
    arguments += [ctypes.c_int(_KEY), ctypes.c_char_p(key), ctypes.c_size_t(len(key))]
    arguments += [ctypes.c_int(_VALUE), ctypes.c_char_p(value), ctypes.c_size_t(len(value))]
    arguments += [ctypes.c_int(_TIMESTAMP), ctypes.c_int64(timestamp_ms)]
    for name, held in headers:
        arguments += [ctypes.c_int(_HEADER), ctypes.c_char_p(name), ctypes.c_char_p(held), ctypes.c_ssize_t(len(held))]
    try:
        if code := library.rd_kafka_producev(client, *arguments, ctypes.c_int(_END)):
            raise AssertionError(f"not produced: librdkafka's error {code}")
        if code := library.rd_kafka_flush(client, ctypes.c_int(_FLUSH_MS)):
            raise AssertionError(f"not delivered: librdkafka's error {code}")
    finally:
        library.rd_kafka_destroy(client)
