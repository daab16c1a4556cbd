"""`xnli-worker broker`: librdkafka's embedded broker in the foreground, for trials on this machine."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from worker import settings as settings_module
from worker import streams
from worker.commands.connection import say
from worker.errors import SettingsError
from worker.kafka.embedded import EmbeddedBroker
from worker.rules import names

_HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 65_536
_POLL_S: Final = 0.1


def broker(config: Path | None, port: int, stop_requested: Callable[[], bool]) -> bool:
    """Serve until ``stop_requested``. Always True.

    Clients begin at ``port``, and are told there where the embedded broker listens: it chooses that port itself.

    Raises:
        SettingsError: the settings are wrong, or the port is taken.
    """
    settings = settings_module.load(
        config, defaults={"kafka": {"bootstrap_servers": "none"}, "model": {"name": "demo"}}
    )
    topics = settings.topics
    made = [*topics.input, topics.output, topics.dead_letter]
    made += [topic for _, topic in names.retry_topics(settings.kafka.group_id, topics.retry)]
    made += [topics.label_sets] if topics.label_sets else []
    with EmbeddedBroker() as embedded, _Entrance(port, embedded.bootstrap_servers) as entrance:
        embedded.create(*made)
        streams.last_words(_told(entrance.port, made), otherwise=f"the broker listens on {_HOST}:{entrance.port}")
        while not stop_requested():
            time.sleep(_POLL_S)
    say("the broker has ended, and what it held is gone")
    return True


def _told(port: int, topics: list[str]) -> str:
    return f"""\
A broker for trials listens on {_HOST}:{port}, with the topics {", ".join(topics)}.

Settings for it, as worker.toml:
  [kafka]
  bootstrap_servers = "{_HOST}:{port}"
  [model]
  name = "demo"
  [delivery]
  guarantee = "at_least_once"

In a second terminal:
  xnli-worker run --config worker.toml

In a third, a request and its result:
  echo '{{"id": "1", "text": "I love it.", "labels": ["praise", "complaint"]}}' |
    xnli-worker send --config worker.toml --wait

It keeps everything in memory until Ctrl-C. It has no transactions (so no
exactly_once), no security, no consumer lag, no settings of topics, and no
address but this machine's.
"""


class _Entrance:
    """Listens on a port that a person can write into a file, and passes connections on."""

    def __init__(self, port: int, servers: str) -> None:
        host, _, at = servers.rpartition(":")
        self._to = (host, int(at))
        try:
            self._listener = socket.create_server((_HOST, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
            raise SettingsError(f"--port {port} {why}; choose another, or 0 for any that is free") from None
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="entrance", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the broker ends
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._to)
                except OSError:
                    client.close()
                    continue
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pass_on, args=(source, sink), name="entrance", daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # either side went away
        while data := source.recv(_CHUNK_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
