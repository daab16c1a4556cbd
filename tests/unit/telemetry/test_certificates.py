from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.brokers.certificates import Authority
from worker.telemetry.certificates import REPEAT_S, WARN_S, CertificateWatch, OwnCertificate, of_file, of_kafka


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return Authority(tmp_path_factory.mktemp("certificates")).issue("worker")


def _ends(certificate: Path) -> float:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


def test_the_ends_of_certificates_are_read_in_every_way_that_librdkafka_takes_them(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    own = x509.load_pem_x509_certificate(certificate.read_bytes())
    private = load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    keystore = tmp_path / "keystore.p12"
    keystore.write_bytes(pkcs12.serialize_key_and_certificates(b"w", private, own, None, encryption))  # type: ignore[arg-type]
    ends_at_s = _ends(certificate)
    properties = {
        "ssl.certificate.location": str(certificate),
        "ssl.certificate.pem": certificate.read_text(),
        "ssl.keystore.location": str(keystore),
        "ssl.keystore.password": "secret",
        "session.timeout.ms": 6000,
    }
    assert list(of_kafka(properties, "kafka.properties")) == [
        OwnCertificate("kafka.properties.ssl.certificate.location", ends_at_s),
        OwnCertificate("kafka.properties.ssl.certificate.pem", ends_at_s),
        OwnCertificate("kafka.properties.ssl.keystore.location", ends_at_s),
    ]
    assert list(of_kafka(properties | {"ssl.keystore.password": "wrong"}, "x"))[2:] == []


def test_what_cannot_be_read_is_left_to_whoever_uses_it(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_bytes(b"no certificate")
    assert list(of_file("schema_registry.certificate", str(nonsense))) == []
    assert list(of_file("schema_registry.certificate", str(tmp_path / "missing.pem"))) == []
    assert list(of_kafka({"ssl.keystore.location": str(nonsense)}, "kafka.properties")) == []


def test_one_that_nears_its_end_is_told_of_once_a_day_and_always_a_metric() -> None:
    registry = CollectorRegistry()
    watch = CertificateWatch([OwnCertificate("a", 1e9), OwnCertificate("b", 2e9)], registry)
    assert registry.get_sample_value("xnli_worker_certificate_expiry_timestamp_seconds", {"setting": "a"}) == 1e9
    with capture_logs() as lines:
        for now_s in (1e9 - WARN_S - 1, 1e9 - WARN_S, 1e9 - WARN_S + REPEAT_S, 1e9 - WARN_S + REPEAT_S + 1, 1e9 + 1e7):
            watch.step(now_s)
    assert [(line["setting"], line["days"]) for line in lines] == [("a", 13.0), ("a", -115.7)]
    assert lines[0]["at"] == "2001-09-09T01:46:40+00:00"


def test_without_any_there_is_no_metric() -> None:
    registry = CollectorRegistry()
    CertificateWatch([], registry).step(1e9)
    assert list(registry.collect()) == []
