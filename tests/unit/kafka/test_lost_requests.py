"""What the debug log of a producer tells of lost requests. Its lines are of librdkafka 2.16."""

from __future__ import annotations

import logging

import pytest
import structlog

from worker.kafka.lost_requests import LostRequests

DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING


def line(lost: LostRequests, facility: str, text: str, level: int = DEBUG) -> None:
    lost.log(level, "%s [%s] %s", facility, "rdkafka#producer-1", text)


@pytest.mark.parametrize(
    ("facility", "text"),
    [
        ("ENDTXN", "[thrd:main]: EndTxn returned _TRANSPORT in state CommittingTransaction (may_retry=true)"),
        ("ENDTXN", "[thrd:main]: EndTxn returned REQUEST_TIMED_OUT in state AbortingTransaction (may_retry=true)"),
        ("ADDOFFSETS", "[thrd:main]: AddOffsetsToTxn response from TxnCoordinator/1: _TRANSPORT (Refresh,Retry)"),
        ("ADDOFFSETS", "[thrd:main]: AddOffsetsToTxn response from TxnCoordinator/1: _TIMED_OUT (Retry)"),
        ("REQTMOUT", "[thrd:a:9092/1]: a:9092/1: Timed out TxnOffsetCommitRequest in flight (after 60000ms, ...)"),
        ("FAIL", "[thrd:a:9092/1]: a:9092/1: Disconnected: closed by peer (after 139ms in state UP) (_TRANSPORT)"),
    ],
)
def test_a_lost_request_is_seen(facility: str, text: str) -> None:
    lost = LostRequests({})
    line(lost, facility, text)
    assert lost.why == text


@pytest.mark.parametrize(
    ("facility", "text"),
    [
        ("ENDTXN", "[thrd:main]: EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=true)"),
        ("ADDOFFSETS", "[thrd:main]: AddOffsetsToTxn response from TxnCoordinator/1: CONCURRENT_TRANSACTIONS (Retry)"),
        ("FAIL", "[thrd:a:9092/1]: a:9092/1: Connect failed: refused (after 0ms in state CONNECT) (_TRANSPORT)"),
        (
            "FAIL",
            "[thrd:a:9092/bootstrap]: a:9092/bootstrap: Decommissioning (after 7ms in state UP) (_DESTROY_BROKER)",
        ),
        ("TXNSTATE", "[thrd:main]: Transaction state change Ready -> InTransaction"),
    ],
)
def test_what_every_transaction_says_is_no_loss(facility: str, text: str) -> None:
    lost = LostRequests({})
    line(lost, facility, text)
    assert not lost.why


def test_the_end_of_a_transaction_is_seen_behind_a_loss_too() -> None:
    lost = LostRequests({})
    line(lost, "FAIL", "[thrd:a:9092/1]: a:9092/1: Disconnected: closed by peer (after 9ms in state UP) (_TRANSPORT)")
    line(lost, "ENDTXN", "[thrd:main]: EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=true)")
    with structlog.testing.capture_logs() as lines:
        lost.ended()
    assert not lines


@pytest.mark.parametrize(("facility", "level"), [("FATAL", logging.CRITICAL), ("TXNERR", logging.ERROR)])
def test_what_is_mended_within_milliseconds_is_no_more_than_a_warning(
    facility: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    line(LostRequests({}), facility, "Fatal error: Local: This instance has been fenced", level)
    assert [record.levelno for record in caplog.records] == [WARNING]


@pytest.mark.parametrize(
    ("config", "debug", "kept"),
    [
        ({}, "eos,broker", [INFO, WARNING]),
        ({"log_level": 4}, "eos,broker", [WARNING]),
        ({"debug": "msg"}, "msg,eos,broker", [DEBUG, INFO, WARNING]),
    ],
)
def test_operators_decide_what_reaches_the_log(
    config: dict[str, object],
    debug: str,
    kept: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = LostRequests(config)
    assert lost.properties["debug"] == debug
    with caplog.at_level(DEBUG, "librdkafka"):
        for level in (DEBUG, INFO, WARNING):
            line(lost, "X", "text", level)
    assert [record.levelno for record in caplog.records] == kept


def test_a_transaction_that_fails_for_records_refused_before_it_is_told_from_others() -> None:
    lost = LostRequests({})
    failed = "[thrd:a:9092/1]: Current transaction failed in state InTransaction: "
    line(lost, "TXNERR", f"{failed}ProduceRequest for t [0] with 1 message(s) failed: Broker: Message size too large")
    line(lost, "TXNERR", "[thrd:a:9092/1]: Ignoring sub-sequent abortable transaction error: skipped sequence numbers")
    before = lost.has_gap
    line(lost, "TXNERR", f"{failed}skipped sequence numbers (OUT_OF_ORDER_SEQUENCE_NUMBER, requires epoch bump)")
    assert (before, lost.has_gap) == (False, True)
    assert not lost.why
