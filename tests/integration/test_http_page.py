"""The page in a browser: alive with scripts, true without, and nothing on it comes from outside or runs from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.brokers.browser import chromium
from tests.brokers.java import Unavailable
from tests.conftest import without
from tests.unit.http.served import Served, served
from worker.http.health import LatestDeadLetter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = "<script>document.title = 'taken'</script>"


@contextmanager
def browser(**options: Any) -> Iterator[Any]:
    try:
        with chromium(**options) as driver:
            yield driver
    except Unavailable as missing:
        without(missing)


@pytest.fixture(scope="module")
def worker() -> Iterator[Served]:
    with served() as found:
        metrics: Any = found.endpoint._metrics
        metrics.identify(version="1", model="a-model", revision="abc", device="cpu", precision="fp32")
        found.health.assigned(2)
        metrics.lag("requests", 0, 7)
        metrics.lag("requests", 1, 0)
        metrics.dead_lettered("invalid", 3)
        found.health.dead_lettered(LatestDeadLetter("invalid", f"requests{SCRIPT}", 1, 42, time.time()))
        yield found


@pytest.fixture(scope="module")
def shown(worker: Served) -> Iterator[Any]:
    with browser() as driver:
        driver.get(f"http://127.0.0.1:{worker.endpoint.port}/")
        yield driver


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def text(driver: Any, selector: str) -> str:
    found: str = driver.find_element("css selector", selector).text
    return found


def test_it_says_what_the_worker_is_doing(shown: Any) -> None:
    assert shown.title == "a-model · xnli-worker"
    assert text(shown, "#state") == "working"
    now = text(shown, "#now")
    for said in ("messages a second", "requests-0", "invalid", "42"):
        assert said in now
    assert "exactly once" in text(shown, ".facts")
    assert "max_wait_ms" in shown.page_source  # the settings


def test_it_is_kept_up_to_date(worker: Served, shown: Any) -> None:
    worker.endpoint._metrics.lag("requests", 1, 4321)
    until(lambda: "4,321" in text(shown, "#now"), "the new lag")


def test_what_comes_from_outside_is_text(shown: Any) -> None:
    assert SCRIPT in text(shown, "#now")
    assert shown.title != "taken"
    assert [entry for entry in shown.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_text_is_tried(worker: Served, shown: Any) -> None:
    for name, value in (("text", "Where is it?"), ("labels", "late, lost ,")):
        field = shown.find_element("name", name)
        field.clear()
        field.send_keys(value)
    shown.find_element("css selector", "#try button").click()
    until(lambda: "late" in text(shown, "#answer"), "the answer")
    rows = [row.text.split() for row in shown.find_elements("css selector", "#answer tbody tr")]
    assert rows == [["late", "0.500"], ["lost", "0.333"]]
    assert "Where is it?" in [text for run in worker.engine.runs for text in run]


def test_what_is_refused_says_why(shown: Any) -> None:
    shown.find_element("name", "labels").clear()
    shown.find_element("css selector", "#try button").click()
    until(lambda: "CLASSIFY needs at least one label" in text(shown, "#answer"), "why")


def test_evidence_is_marked_where_python_counts_it(shown: Any) -> None:
    """Behind a letter of two UTF-16 units."""
    marked = shown.execute_script(
        "return highlighted('\U0001f600 it is late', [{start: 8, end: 12}]).querySelector('mark').textContent"
    )
    assert marked == "late"


def test_a_calibrated_score_stands_before_the_raw_one_where_there_is_one(shown: Any) -> None:
    drawn = (
        "return drawn('text', {outcome: {labels: arguments[0]}}).map((part) => Array.from(part.querySelectorAll('tr'),"
        " (row) => Array.from(row.children, (cell) => cell.textContent)))[0]"
    )
    labels = [{"label": "late", "score": 0.83, "calibrated": 0.97}, {"label": "lost", "score": 0.1}]
    rows = [["label", "", "calibrated", "score"], ["late", "", "0.970", "0.830"], ["lost", "", "–", "0.100"]]
    assert shown.execute_script(drawn, labels) == rows
    assert shown.execute_script(drawn, labels[1:]) == [["label", "", "score"], ["lost", "", "0.100"]]


def test_every_field_has_a_name_and_can_be_reached_by_the_keyboard(shown: Any) -> None:
    fields = shown.find_elements("css selector", "input:not([type=hidden]), textarea, select, button, summary, a")
    assert len(fields) > 6
    for field in fields:
        assert field.accessible_name, field.get_attribute("outerHTML")
    reached = set[str]()
    shown.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    body = shown.find_element("css selector", "body")
    for _ in range(3 * len(fields)):
        shown.switch_to.active_element.send_keys("\ue004") if reached else body.send_keys("\ue004")
        reached.add(shown.switch_to.active_element.id)
    assert {field.id for field in fields} <= reached


def test_without_a_script_it_says_the_same(worker: Served) -> None:
    with browser(has_scripts=False) as driver:
        driver.get(f"http://127.0.0.1:{worker.endpoint.port}/")
        assert text(driver, "#state") == "working"
        assert "requests-0" in text(driver, "#now")
        assert driver.find_elements("css selector", ".spark path.line[d^=M]")
        assert "needs JavaScript" in text(driver, "section[aria-labelledby=try-title]")


@pytest.mark.parametrize("width", [360, 1180])
def test_nothing_sticks_out_at_the_width_of_a_phone(worker: Served, width: int) -> None:
    with browser(width=width, height=800) as driver:
        driver.get(f"http://127.0.0.1:{worker.endpoint.port}/")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_dark_is_dark_and_text_stands_out_in_both(worker: Served) -> None:
    def lightness(driver: Any, selector: str, style: str) -> float:
        color = driver.find_element("css selector", selector).value_of_css_property(style)
        red, green, blue = (int(part) for part in color.split("(")[1].rstrip(")").split(",")[:3])
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255

    for is_dark in (False, True):
        with browser(is_dark=is_dark) as driver:
            driver.get(f"http://127.0.0.1:{worker.endpoint.port}/")
            ground, ink = lightness(driver, "body", "background-color"), lightness(driver, "body", "color")
            assert (ground < 0.2) == is_dark
            assert abs(ground - ink) > 0.7
            assert abs(ground - lightness(driver, ".tile .name", "color")) > 0.35


def test_the_policy_lets_nothing_in_from_outside(worker: Served) -> None:
    answer = worker.ask("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    page = answer.body.decode()
    assert "style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for path in ("page/page.css", "page/page.js", "page/icon.svg", "page/now"):
        assert worker.ask(f"/{path}").status == 200
