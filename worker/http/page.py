"""The page for a person."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from worker.http.bearer import Bearer


class Page:
    """The page."""

    def routes(self, bearer: Bearer) -> list[BaseRoute]:
        """Its paths, for those whom ``bearer`` lets in."""

        async def show(request: Request) -> Response:
            bearer.require(request)
            return HTMLResponse("<!doctype html><title>xnli-worker</title>")

        return [Route("/", show, methods=["GET"])]
