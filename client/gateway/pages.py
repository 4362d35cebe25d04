"""The page: its files as they lie beside this module, with the headers that keep a browser from anything else.

It owns what a browser is told about the files. What the page does, it does with the gateway's endpoints, as any caller;
its fields for numbers are those of a chat's body, so that a new one is there by being there.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagewire.client.gateway.bodies import ChatBody

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # A browser asks each time, and is told that nothing has changed.
    "cache-control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NOT_OFFERED = {"n", "priority", "top_logprobs", "max_completion_tokens"}
"""Numbers of a body that the page has no use for: it shows one answer, and no log-probabilities."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def routes() -> list[Route]:
    """The page at `/`, what it loads below `/page/`. Reads every file once, now."""
    files = {
        file.name: _file(file.read_bytes(), _TYPES[file.name[file.name.rindex(".") :]])
        for file in resources.files(__package__).joinpath("page").iterdir()
    }
    files["fields.json"] = _file(json.dumps(number_fields()).encode(), "application/json")

    async def index(request: Request) -> Response:
        return _answered(request, files["index.html"])

    async def part(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        return Response(status_code=404, headers=dict(HEADERS)) if file is None else _answered(request, file)

    return [Route("/", index), Route("/page/{name}", part)]


def number_fields() -> list[dict[str, object]]:
    """The numbers that a chat's body may hold and the page asks for: name, and whether it is whole. A length first,
    then in the order of the body."""
    kinds = {
        name: bool(int in typing.get_args(hint))
        for name, hint in typing.get_type_hints(ChatBody).items()
        if set(typing.get_args(hint)) in ({int, type(None)}, {float, type(None)}) and name not in _NOT_OFFERED
    }
    return [{"name": name, "is_whole": is_whole} for name, is_whole in kinds.items()]


def _file(content: bytes, media_type: str) -> _File:
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answered(request: Request, file: _File) -> Response:
    """The file, or that the one the browser has is still right."""
    headers = {**HEADERS, "etag": file.etag}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.media_type})
