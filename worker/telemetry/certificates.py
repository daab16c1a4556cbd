"""Certificates of the worker's own, and when they end: a warning in time, and a metric.

Clients read them once, at their start, so that is when they are read here, and a new file takes effect at a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Gauge

WARN_S: Final = 14 * 86_400.0
REPEAT_S: Final = 86_400.0

log = structlog.get_logger("worker")


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A certificate: the setting that names it, and when it ends, in seconds since 1970."""

    setting: str
    ends_at_s: float


def of_kafka(properties: Mapping[str, object], where: str) -> Iterable[OwnCertificate]:
    """The certificate that properties of librdkafka name, in any of its ways. ``where`` is the setting they are of."""
    if isinstance(path := properties.get("ssl.certificate.location"), str):
        yield from of_file(f"{where}.ssl.certificate.location", path)
    if isinstance(text := properties.get("ssl.certificate.pem"), str):
        yield from _pem(f"{where}.ssl.certificate.pem", text.encode())
    if isinstance(path := properties.get("ssl.keystore.location"), str):
        password = str(properties.get("ssl.keystore.password", "")).encode()
        yield from _keystore(f"{where}.ssl.keystore.location", path, password)


def of_file(setting: str, path: str) -> Iterable[OwnCertificate]:
    """The certificate in a PEM file. What cannot be read is none: whoever uses it says so."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return
    yield from _pem(setting, data)


def _pem(setting: str, data: bytes) -> Iterable[OwnCertificate]:
    from cryptography import x509  # noqa: PLC0415 (who shows no certificate need not wait for it)

    try:
        own = x509.load_pem_x509_certificates(data)[0]  # behind it follow those of its authorities
    except ValueError:
        return
    yield OwnCertificate(setting, own.not_valid_after_utc.timestamp())


def _keystore(setting: str, path: str, password: bytes) -> Iterable[OwnCertificate]:
    from cryptography.hazmat.primitives.serialization import pkcs12  # noqa: PLC0415 (as above)

    try:
        own = pkcs12.load_key_and_certificates(Path(path).read_bytes(), password or None)[1]
    except (OSError, ValueError):
        return
    if own is not None:
        yield OwnCertificate(setting, own.not_valid_after_utc.timestamp())


class CertificateWatch:
    """Writes event ``certificate_expires`` once a day for each that ends within two weeks, or has ended.

    Args:
        certificates: Those in use.
        registry: Where the metric goes.
    """

    def __init__(self, certificates: Iterable[OwnCertificate], registry: CollectorRegistry) -> None:
        self._certificates = tuple(certificates)
        self._next_s = 0.0 if self._certificates else float("inf")
        if self._certificates:
            gauge = Gauge(
                "xnli_worker_certificate_expiry_timestamp_seconds",
                "When a certificate of the worker's own ends, in seconds since 1970.",
                ["setting"],
                registry=registry,
            )
            for each in self._certificates:
                gauge.labels(each.setting).set(each.ends_at_s)

    def step(self, wall_s: float) -> None:
        """Write what is due. ``wall_s`` is in seconds since 1970."""
        if wall_s < self._next_s:
            return
        self._next_s = wall_s + REPEAT_S
        for each in self._certificates:
            if each.ends_at_s - wall_s < WARN_S:
                log.warning(
                    "certificate_expires",
                    setting=each.setting,
                    at=datetime.fromtimestamp(each.ends_at_s, UTC).isoformat(timespec="seconds"),
                    days=round((each.ends_at_s - wall_s) / 86_400, 1),
                    mend="put a new one in its place and restart the worker: it is read at the start",
                )
