"""The page at ``/``: drop photos, see tags, move the threshold, add a category by its name.

One file that asks nothing of any other server. Its policy lets in its own script and style alone,
by their hashes; names from files and of tags are only ever set as text.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import re
import statistics
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from pvp_fast.errors import InputError
from pvp_fast.report.page import fill
from pvp_fast.serve.batching import Batcher
from pvp_fast.serve.config import ServeConfig

MOST = 4096  # bytes of a request to /categories

_NAME_BODY = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 100}},
}


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """The page and its headers."""
    text = fill("page.html", {}, "pvp_fast.serve")

    def hashed(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = sha256(found.group(1).encode() if found else b"").digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    policy = (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def add_page(
    app: FastAPI,
    config: ServeConfig,
    running: Callable[[], Batcher],
    check_token: Callable[[Request], None],
) -> None:
    """``/`` and ``/about``, and ``/categories`` where the configuration lets clients add some.

    Args:
        running: gives what tags, or raises Closed.
        check_token: raises HTTPException where a request lacks the token.
    """

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        text, headers = page()
        return Response(text, headers=headers, media_type="text/html")

    @app.get("/about", summary="What the page needs to know", include_in_schema=False)
    async def about() -> dict[str, Any]:
        tagger = running().tagger
        thresholds = tagger.tagger.artifact.head.thresholds.tolist()
        return {
            "artifact": tagger.version,
            "categories": len(tagger.tagger.artifact.vocabulary) + len(tagger.added),
            "threshold": round(statistics.median(thresholds), 2),
            "room": config.max_added - len(tagger.added),
            "token": config.token is not None,
        }

    if config.max_added:
        _add_categories(app, config, running, check_token)


def _add_categories(
    app: FastAPI,
    config: ServeConfig,
    running: Callable[[], Batcher],
    check_token: Callable[[Request], None],
) -> None:
    one = asyncio.Lock()
    answers = {
        400: "No usable name, or one that is there.",
        401: "The bearer token is missing or wrong.",
        409: "No more can be added.",
        413: "The body is too large.",
        415: "The body is no application/json.",
        503: "Another is being added, or the service is shutting down.",
    }

    @app.post(
        "/categories",
        summary="Add a category by its name",
        responses={status: {"description": text} for status, text in answers.items()},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _NAME_BODY}},
            },
            "security": [{"bearer": []}] if config.token else [],
        },
    )
    async def add(request: Request) -> dict[str, Any]:
        """The name is taken through prompt templates: nothing is learned, no other score changes.

        The category is there for every client, until this process ends.
        """
        check_token(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Another site's page in a visitor's browser cannot send this type without being asked.
        if kind != "application/json":
            raise HTTPException(415, f"content type {kind!r}: send application/json")
        name = _name(await request.body())
        batcher = running()
        if one.locked():
            raise HTTPException(503, "another category is being added", {"Retry-After": "1"})
        async with one:
            if len(batcher.tagger.added) >= config.max_added:
                raise HTTPException(409, f"{config.max_added} were added, and no more can be")
            try:
                grown = await asyncio.to_thread(batcher.tagger.grown, name)
            except InputError as error:
                raise HTTPException(400, str(error)) from error
            batcher.tagger = grown
        return {"name": grown.added[-1], "artifact": grown.version}


def _name(body: bytes) -> str:
    try:
        name = json.loads(body)["name"]
        name.encode()  # a lone surrogate is no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HTTPException(400, 'send {"name": "…"}') from None
    return str(name)
