"""A proxy between a client and real brokers that knows Kafka's frames, and does to single requests what a network may.

Brokers get a second listener whose advertised address is the proxy's, so nothing of their answers has to be rewritten:
a client that begins at `ProxiedKafka.proxied_servers` never leaves the proxy, and everybody else uses the first
listener. Every request is shown to `Proxy.decide`, which names its fault or none.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Self

from tests.brokers.kafka import KafkaCluster, _Node
from tests.brokers.ports import free_ports

HOST: Final = "127.0.0.1"
LISTENER: Final = "PROXIED"
START_TIMEOUT_S: Final = 10.0
RESEND_TIMEOUT_S: Final = 30.0  # a broker answers an EndTxn within milliseconds, on a busy machine within seconds


class Api(IntEnum):
    """The keys of requests, as far as tests name them."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    DESCRIBE_CONFIGS = 32


@dataclass(frozen=True, slots=True)
class Request:
    """A request on its way to a broker. ``frame`` is all of it behind the length."""

    api: int
    version: int
    correlation: int
    connection: int
    frame: bytes = field(repr=False)

    @classmethod
    def parse(cls, frame: bytes, connection: int) -> Request:
        """Read the header that all requests begin with, flexible ones too."""
        api, version, correlation = struct.unpack_from(">hhi", frame)
        return cls(api, version, correlation, connection, frame)

    @property
    def commits(self) -> bool:
        """Of an EndTxn, as librdkafka 2.16 writes it: to commit, not to abort. False for all else."""
        return self.api == Api.END_TXN and self.version < 3 and self.frame[-1] == 1

    @property
    def aborts(self) -> bool:
        """As above, the opposite."""
        return self.api == Api.END_TXN and self.version < 3 and self.frame[-1] == 0


@dataclass(frozen=True, slots=True)
class Delay:
    """The answer, and what follows on its connection, comes so much later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends: before the request reaches the broker, or once the broker has answered it."""

    reached: bool


@dataclass(frozen=True, slots=True)
class Swallow:
    """The broker answers and the client never hears it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The request stays in the network and arrives late, over a connection of its own.

    It arrives when a later request of the key ``until`` was taken, before the client hears of that. With ``cut`` the
    client loses its connection at once; without, it waits for its own time-out.
    """

    until: Api
    cut: bool


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The client hears something else: a function of the answer behind its length."""

    change: Callable[[bytes], bytes]


Fault = Delay | Cut | Swallow | Hold | Rewrite


@dataclass(frozen=True, slots=True)
class Event:
    """Something that passed the proxy or was done by it, at a time of the wall clock, as brokers and workers write it.

    ``error`` is the broker's code, None where it is not read.
    """

    at_s: float
    what: str
    api: int
    connection: int
    correlation: int
    error: int | None = None

    def __str__(self) -> str:
        name = Api(self.api).name if self.api in set(Api) else str(self.api)
        code = "" if self.error is None else f" error {self.error}"
        at = datetime.fromtimestamp(self.at_s, UTC).isoformat(timespec="milliseconds")
        return f"{at} [{self.connection}:{self.correlation}] {name} {self.what}{code}"


@dataclass(frozen=True, slots=True)
class _Held:
    request: Request
    until: Api
    port: int


class _Gone(Exception):  # noqa: N818 (an event)
    """A fault ends the connection."""


@dataclass(slots=True, eq=False)
class _Link:
    """A client's connection and the one to the broker that stands for it."""

    number: int
    port: int
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    broker: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    asked: dict[int, tuple[Request, Fault | None]] = field(default_factory=dict)

    def abort(self) -> None:
        for _, writer in (self.client, self.broker):
            writer.transport.abort()


class Proxy:
    """Listens on loopback for each route, from `start` to `stop`, on a thread of its own.

    Args:
        routes: the port of a broker's listener for each port to listen on.
        decide: names the fault of a request, or None. May be exchanged at any time; called on the proxy's thread.
    """

    def __init__(self, routes: Mapping[int, int], decide: Callable[[Request], Fault | None] | None = None) -> None:
        self.decide = decide or _nothing
        self.events: deque[Event] = deque(maxlen=200_000)
        self.resent: list[int | None] = []  # what brokers said to held requests that arrived late
        self._routes = dict(routes)
        self._held: list[_Held] = []
        self._links: set[_Link] = set()
        self._links_made = 0
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises OSError where a port is taken."""
        self._thread.start()
        self._ready.wait(START_TIMEOUT_S)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End every connection. Raises what went wrong in the proxy itself, if anything did."""
        ended = self._ended
        if ended is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(ended.set)
        self._thread.join(START_TIMEOUT_S)
        if self._failure is not None:
            raise self._failure

    def cut(self) -> None:
        """End all connections now; clients may connect again."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def log(self, *apis: int) -> list[str]:
        """What passed so far, a line each, of these keys alone if any are named."""
        return [str(event) for event in list(self.events) if not apis or event.api in apis]

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        self._loop.set_exception_handler(self._broken)
        servers = [
            await asyncio.start_server(self._accept(to), HOST, port, reuse_address=True)
            for port, to in self._routes.items()
        ]
        self._ready.set()
        await self._ended.wait()
        for server in servers:
            server.close()
        self._abort_all()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait({task})

    def _broken(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])

    def _abort_all(self) -> None:
        for link in list(self._links):
            link.abort()

    def _accept(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                broker = await asyncio.open_connection(HOST, port)
            except OSError:  # the broker is away: so is its proxy
                writer.transport.abort()
                return
            self._links_made += 1
            link = _Link(self._links_made, port, (reader, writer), broker)
            self._links.add(link)
            pumps = {asyncio.create_task(self._requests(link)), asyncio.create_task(self._answers(link))}
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                for ended in await asyncio.gather(*pumps, return_exceptions=True):
                    expected = (_Gone, asyncio.IncompleteReadError, asyncio.CancelledError, OSError)
                    if isinstance(ended, BaseException) and not isinstance(ended, expected):
                        self._failure = ended
                link.abort()
                self._links.discard(link)

        return accept

    async def _requests(self, link: _Link) -> None:
        reader, writer = link.client[0], link.broker[1]
        while True:
            request = Request.parse(await _read(reader), link.number)
            fault = self.decide(request)
            self._note(request, "request" if fault is None else f"request, fault {fault}")
            match fault:
                case Cut(reached=False):
                    raise _Gone
                case Hold(until, cut):
                    self._held.append(_Held(request, until, link.port))
                    if cut:
                        raise _Gone
                case _:
                    link.asked[request.correlation] = request, fault
                    _write(writer, request.frame)
                    await writer.drain()

    async def _answers(self, link: _Link) -> None:
        reader, writer = link.broker[0], link.client[1]
        while True:
            answer = await _read(reader)
            (correlation,) = struct.unpack_from(">i", answer)
            request, fault = link.asked.pop(correlation)
            self._note(request, "answer", _error(request, answer))
            await self._resend(request, answer)
            match fault:
                case Delay(seconds):
                    await asyncio.sleep(seconds)
                case Cut():
                    raise _Gone
                case Swallow():
                    continue
                case Rewrite(change):
                    answer = change(answer)
                case _:
                    pass
            _write(writer, answer)
            await writer.drain()

    async def _resend(self, request: Request, answer: bytes) -> None:
        """Let what waited for this request arrive, if the broker took the request."""
        due = [held for held in self._held if held.until == request.api]
        if not due or _error(request, answer):
            return
        for held in due:
            self._held.remove(held)
            reader, writer = await asyncio.open_connection(HOST, held.port)
            try:
                _write(writer, held.request.frame)
                late = await asyncio.wait_for(_read(reader), RESEND_TIMEOUT_S)
            finally:
                writer.transport.abort()
            error = _error(held.request, late)
            self.resent.append(error)
            self._note(held.request, "arrived late", error)

    def _note(self, request: Request, what: str, error: int | None = None) -> None:
        event = Event(time.time(), what, request.api, request.connection, request.correlation, error)
        self.events.append(event)


class ProxiedKafka(KafkaCluster):
    """A cluster of our own with a proxy in front: ``bootstrap_servers`` goes around it, ``proxied_servers`` through it.

    A broker of the cluster that is killed takes its proxied connections with it, and the proxy stays.
    """

    def __init__(self, nodes: int = 1, properties: Mapping[str, str] | None = None) -> None:
        super().__init__(nodes, properties)
        taken = {port for node in self._nodes.values() for port in (node.port, node.controller_port)}
        ports = [port for port in free_ports(4 * nodes) if port not in taken][: 2 * nodes]
        self._fronts = dict(zip(self._nodes, ports[:nodes], strict=True))  # by node: where the proxy listens,
        self._backs = dict(zip(self._nodes, ports[nodes:], strict=True))  # and where the node does
        self.proxied_servers = ",".join(f"{HOST}:{port}" for port in self._fronts.values())
        self.proxy = Proxy({self._fronts[node]: self._backs[node] for node in self._nodes})

    def start(self) -> None:
        """As above; the proxy listens first."""
        self.proxy.start()
        super().start()

    def stop(self) -> None:
        """As above, and the proxy ends."""
        super().stop()
        self.proxy.stop()

    def _configuration(self, node: _Node) -> dict[str, str]:
        plain = super()._configuration(node)
        return plain | {
            "listeners": f"{plain['listeners']},{LISTENER}://{HOST}:{self._backs[node.id]}",
            "advertised.listeners": (
                f"PLAINTEXT://{HOST}:{node.port},{LISTENER}://{HOST}:{self._fronts[node.id]},"
                f"CONTROLLER://{HOST}:{node.controller_port}"
            ),
            "listener.security.protocol.map": f"{plain['listener.security.protocol.map']},{LISTENER}:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        }


def _nothing(_: Request) -> Fault | None:
    return None


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)


# The last versions of these whose answers are not flexible, as librdkafka 2.16 speaks them at most.
_READ: Final = {Api.ADD_PARTITIONS_TO_TXN: 2, Api.ADD_OFFSETS_TO_TXN: 2, Api.END_TXN: 2}


def _error(request: Request, answer: bytes) -> int | None:
    """The error code of an answer to a transaction's request, or the first of them; None where it is not read."""
    if request.api not in _READ or request.version > _READ[Api(request.api)]:
        return None
    at = 8  # correlation id and throttle time
    if request.api != Api.ADD_PARTITIONS_TO_TXN:
        return int(struct.unpack_from(">h", answer, at)[0])
    (topics,) = struct.unpack_from(">i", answer, at)
    at += 4
    for _ in range(topics):
        (length,) = struct.unpack_from(">h", answer, at)
        (partitions,) = struct.unpack_from(">i", answer, at + 2 + length)
        at += 6 + length
        for _ in range(partitions):
            (_, code) = struct.unpack_from(">ih", answer, at)
            at += 6
            if code:
                return int(code)
    return 0
