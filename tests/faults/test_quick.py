"""Cells of the fault matrix, small, on the session's broker. The whole is `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.faults.matrix import play
from tests.faults.scenarios import SCENARIOS
from tests.faults.stage import Size

pytestmark = pytest.mark.kafka

SIZE = Size(messages=500, outage_s=3.0)
# Those that harm no broker and take few time-outs.
# Workers that are killed are in tests/integration/test_worker.py too.
CELLS = [
    ("registry_away", "at_least_once"),
    pytest.param("sigkill", "exactly_once", marks=pytest.mark.acceptance),
    pytest.param("sigterm", "at_least_once", marks=pytest.mark.acceptance),
    pytest.param("poison", "exactly_once", marks=pytest.mark.acceptance),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "guarantee"), CELLS)
def test_a_cell_keeps_its_promise(kafka: Kafka, tmp_path: Path, fault: str, guarantee: str) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == fault)
    row = play(scenario, guarantee, kafka, SIZE, seed=11, folder=tmp_path)
    assert not row.broken, row
