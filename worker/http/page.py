"""The page at /: what the worker is doing now, for a person, and a text to try.

The worker draws it, lines included, so that it says the same without JavaScript. A script asks for the changing part
again and again. Whatever came from outside, names of topics and labels too, is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from worker import __version__, redaction
from worker.avro.json_request import JsonRequest
from worker.http.bearer import Bearer
from worker.http.drawing import text
from worker.http.figures import Figures
from worker.http.health import Health
from worker.http.readings import Reading, Readings

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES: Final = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_MOST_SETS: Final = 1000
_MARKS: Final = '<label><input type="checkbox" name="evidence" value="3"> mark what speaks for the first</label>\n'


class SettingShown(NamedTuple):
    """A setting as the page shows it."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the worker runs. ``guarantee`` is empty without a stream."""

    guarantee: str
    settings: Sequence[SettingShown]
    is_asked: bool
    examples: Sequence[str] = ("delivery", "payment", "praise")


class Page:
    """Draws the page. HTTP thread only.

    Args:
        facts: What does not change.
        health: The worker's state.
        readings: Its metrics, now and some minutes back.
        clock: The monotonic clock, in seconds, whose times ``health`` is given.
        label_sets: Names of the sets that a text can be tried against.
    """

    def __init__(
        self,
        facts: Facts,
        health: Health,
        readings: Readings,
        clock: Callable[[], float],
        label_sets: Callable[[], Iterable[str]],
    ) -> None:
        self._facts = facts
        self._health = health
        self._readings = readings
        self._figures = Figures(readings, health, has_stream=bool(facts.guarantee), is_asked=facts.is_asked)
        self._clock = clock
        self._label_sets = label_sets
        folder = resources.files("worker.http").joinpath("static")
        self._files = {name: folder.joinpath(name).read_bytes() for name in _FILES}
        self._template = Template(folder.joinpath("page.html").read_text("utf-8"))

    def routes(self, bearer: Bearer) -> list[BaseRoute]:
        """Its paths, for those whom ``bearer`` lets in."""

        async def whole(request: Request) -> Response:
            bearer.require(request)
            return _html(self.whole())

        async def now(request: Request) -> Response:
            bearer.require(request)
            return _html(
                f'<div id="now">\n{self.now(self._readings.now())}\n</div><div id="state">{self.state()}</div>'
            )

        async def file(request: Request) -> Response:
            bearer.require(request)
            name = request.url.path.rpartition("/")[2]
            return Response(self._files[name], headers=_HEADERS, media_type=_FILES[name])

        return [
            Route("/", whole, methods=["GET"]),
            Route("/page/now", now, methods=["GET"]),
            *(Route(f"/page/{name}", file, methods=["GET"]) for name in _FILES),
        ]

    def whole(self) -> str:
        """The whole page, as HTML."""
        now = self._readings.now()
        model = next(iter(now.samples.get("build_info", {})), ())
        facts = dict(model)
        named = facts.get("model", "")
        parts = [f"<strong>{text(named)}</strong>"] if named else []
        parts += [text(facts[key]) for key in ("revision", "device", "precision") if facts.get(key)]
        parts += [text(self._facts.guarantee.replace("_", " ") if self._facts.guarantee else "no stream")]
        parts.append(f"version {__version__}")
        return self._template.substitute(
            title=text(f"{named or 'xnli-worker'} · xnli-worker"),
            state=self.state(),
            facts=" · ".join(parts),
            now=self.now(now),
            settings="\n".join(_setting(shown) for shown in self._facts.settings),
            **{"try": self._try() if self._facts.is_asked else ""},
        )

    def state(self) -> str:
        """How it is, as one word in a pill."""
        kind, word = "good", "working"
        if not self._health.healthy(self._clock()).ok:
            kind, word = "bad", "failing"
        elif self._health.is_draining:
            kind, word = "warn", "draining"
        elif not self._health.ready().ok:
            kind, word = "warn", "not ready"
        return f'<span class="pill {kind}">{word}</span>'

    def now(self, now: Reading) -> str:
        """The part that changes, as HTML."""
        ready = self._health.ready()
        problems = [*self._health.healthy(self._clock()).problems, *ready.problems, *ready.notes]
        said = "".join(f"<li>{text(redaction.in_text(problem))}</li>" for problem in problems)
        parts = [f'<ul class="problems" aria-label="Problems">{said}</ul>' if said else ""]
        parts.append(f'<ul class="tiles" aria-label="Figures">{"".join(self._figures.tiles(now))}</ul>')
        parts.append(f'<div class="grid">{"".join(self._figures.cards(now))}</div>')
        return "\n".join(parts)

    def _try(self) -> str:
        names = sorted(self._label_sets())[:_MOST_SETS]
        options = "".join(f"<option>{text(name)}</option>" for name in names)
        sets = (
            f'<div><label for="label_set">or a label set</label><select id="label_set" name="label_set">'
            f'<option value="">(the labels above)</option>{options}</select></div>'
            if names
            else '<input type="hidden" name="label_set" value="">'
        )
        # Of requests that know evidence: how many spans of the text are wanted for a label.
        evidence = "evidence" in JsonRequest.model_fields
        marks = _MARKS if evidence else ""
        examples = text(", ".join(self._facts.examples))
        return f"""<section class="card wide" aria-labelledby="try-title">
<h2 id="try-title">Try a text</h2>
<noscript><p class="empty">This box needs JavaScript; <code>xnli-worker classify --url</code> does not.</p></noscript>
<div class="try">
<form id="try">
<div><label for="text">text</label><textarea id="text" name="text" required>My parcel has not arrived.</textarea></div>
<div><label for="labels">labels, with commas between</label>
<input type="text" id="labels" name="labels" value="{examples}"></div>
{sets}
<div><label for="template">hypothesis of a label (as the settings say, if empty)</label>
<input type="text" id="template" name="hypothesis_template" placeholder="This text is about {{}}."></div>
<div class="row"><label><input type="checkbox" name="multi_label"> score each label by itself</label>
{marks}<button>Classify</button></div>
</form>
<div id="answer" role="region" aria-live="polite" aria-label="Answer"><p class="empty">The scores stand here.</p></div>
</div>
</section>"""


def _html(body: str) -> Response:
    return Response(body, headers=_HEADERS, media_type="text/html")


def _setting(shown: SettingShown) -> str:
    value = "(not set)" if shown.value is None else json.dumps(shown.value, ensure_ascii=False)
    source = shown.source if shown.source == "default" else f'<span class="set">{text(shown.source)}</span>'
    name = f"<th scope='row'><code>{text(shown.name)}</code></th>"
    return f"<tr>{name}<td><code>{text(value)}</code></td><td>{source}</td></tr>"
