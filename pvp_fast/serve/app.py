"""The ASGI application: what a request may be, and what it gets."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import unquote, unquote_to_bytes

from pvp_fast.errors import BackendError, InputError
from pvp_fast.serve.batching import Batcher, Closed, QueueFull
from pvp_fast.serve.config import ServeConfig
from pvp_fast.serve.page import MOST, add_page
from pvp_fast.tagging.schema import RESULT, SCHEMA_VERSION
from pvp_fast.tagging.tagger import Tag, Tagger, TagResult

try:
    from fastapi import FastAPI, HTTPException, Query, Request, Response
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from starlette.datastructures import UploadFile
except ImportError as error:
    raise BackendError(
        f"the service needs FastAPI and more ({error}): pip install 'pvp_fast[serve]'"
    ) from error

_ANSWER = {
    "type": "object",
    "required": ["results", "artifact"],
    "properties": {
        "results": {"type": "array", "items": RESULT, "description": "In the request's order."},
        "artifact": {"type": "string", "description": "Version of the vocabulary that tagged."},
    },
}


def _body_of(item: dict[str, Any]) -> dict[str, Any]:
    images = {"type": "array", "minItems": 1, "items": item}
    return {"type": "object", "required": ["images"], "properties": {"images": images}}


_JSON_BODY = _body_of(
    {
        "type": "object",
        "required": ["data"],
        "properties": {
            "image": {"type": "string", "description": "A name; by default its number."},
            "key": {"type": "string", "deprecated": True, "description": "As image."},
            "data": {"type": "string", "format": "byte", "description": "Base64, or a data URI."},
        },
    }
)
_FORM_BODY = _body_of({"type": "string", "format": "binary"})
_DETAIL = {"type": "object", "properties": {"detail": {}}}
_ERRORS = {
    400: "The body is not what its content type says, or holds no image or too many.",
    401: "The bearer token is missing or wrong.",
    413: "The body is too large.",
    415: "The content type is none of those described.",
    503: "Too many images wait, or the service is shutting down; see Retry-After.",
    504: "No answer in time.",
}


class Metrics:
    """What /metrics tells, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pvp_fast_requests", "Requests to /tag.", ["status"], registry=self.registry
        )
        self.images = Counter(
            "pvp_fast_images", "Images answered.", ["outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "pvp_fast_request_seconds", "Time to an answer of /tag.", registry=self.registry
        )
        self.batch = Histogram(
            "pvp_fast_batch_images",
            "Images encoded at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "pvp_fast_images_waiting", "Accepted and not answered.", registry=self.registry
        )


class _Gate:
    """ASGI middleware: bounds every body, and counts and times the requests to /tag.

    A request whose body grows over ``most`` bytes, or its path's own limit, gets 413 and is read no
    further.
    """

    own = {"/categories": MOST}  # noqa: RUF012

    def __init__(self, app: Any, most: int, metrics: Metrics) -> None:
        self.app, self.most, self.metrics = app, most, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, read, status = time.perf_counter(), 0, 0
        most = min(self.most, self.own.get(scope["path"], self.most))
        declared = dict(scope["headers"]).get(b"content-length", b"")

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise _TooLarge
            return message

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if declared.isdigit() and int(declared) > most:
                raise _TooLarge
            await self.app(scope, counted, noted)
        except _TooLarge:
            if status:
                raise
            await self._refuse(noted, most)
        finally:
            if scope["path"] == "/tag":
                self.metrics.requests.labels(str(status or 500)).inc()
                self.metrics.seconds.observe(time.perf_counter() - start)

    async def _refuse(self, send: Any, most: int) -> None:
        body = json.dumps({"detail": f"the body is over {most} bytes"}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLarge(Exception):
    pass


def create_app(tagger: Tagger, config: ServeConfig | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        tagger: what tags.
        config: limits; the defaults of :class:`ServeConfig` otherwise.

    Returns:
        An app with ``POST /tag``, ``GET /healthz``, ``GET /metrics`` and a page at ``/``, and
        ``POST /categories`` with ``max_added``; its threads start and end with its lifespan.
    """
    config = config or ServeConfig()
    metrics = Metrics()
    batcher: Batcher | None = None
    reading = 0  # requests whose bodies are on their way

    def running() -> Batcher:
        if batcher is None:
            raise Closed
        return batcher

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(tagger, config, metrics.batch.observe)
        metrics.waiting.set_function(lambda: batcher.waiting if batcher else 0)
        try:
            yield
        finally:
            ended, batcher = batcher, None
            await ended.close()

    app = FastAPI(
        title="pvp_fast",
        summary="Tags images with a vocabulary learned from text.",
        lifespan=lifespan,
    )
    app.add_middleware(_Gate, most=config.max_body, metrics=metrics)

    async def answer(request: Request, top_k: int, threshold: float | None) -> dict[str, Any]:
        nonlocal reading
        # Before a body is held that nobody will look at.
        if running().waiting + reading >= config.queue:
            raise QueueFull
        reading += 1
        try:
            images = await _images(request, config.max_images)
        finally:
            reading -= 1
        good = [data for _, data in images if isinstance(data, bytes)]
        version = running().tagger.version  # nothing waits between this and tag()
        found = iter(await running().tag(good, top_k, threshold) if good else ())
        results = [
            _result(name, next(found) if isinstance(data, bytes) else data) for name, data in images
        ]
        for result in results:
            metrics.images.labels("tagged" if result["error"] is None else "failed").inc()
        return {"results": results, "artifact": version}

    @app.post(
        "/tag",
        summary="Tag images",
        responses={
            200: {"description": "Tags.", "content": {"application/json": {"schema": _ANSWER}}},
            **{
                status: {"description": text, "content": {"application/json": {"schema": _DETAIL}}}
                for status, text in _ERRORS.items()
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": _FORM_BODY},
                    "application/json": {"schema": _JSON_BODY},
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "security": [{"bearer": []}] if config.token else [],
        },
    )
    async def tag(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=10_000, description="Most tags an image.")] = 5,
        threshold: Annotated[
            float | None,
            Query(ge=0, le=1, description="Least probability (default: each category's own)."),
        ] = None,
    ) -> Response:
        """Images as multipart files, as base64 in JSON, or one image as the body itself.

        An image that cannot be read has its reason in ``error`` and does not harm the others.
        """
        _check_token(request, config.token)
        body = await asyncio.wait_for(answer(request, top_k, threshold), config.timeout)
        return Response(json.dumps(body, ensure_ascii=False), media_type="application/json")

    @app.get("/healthz", summary="Whether the service takes requests")
    async def healthz() -> dict[str, Any]:
        tags = running().tagger
        return {
            "status": "ok",
            "schema": SCHEMA_VERSION,
            "artifact": tags.version,
            "categories": len(tagger.artifact.vocabulary) + len(tags.added),
            "waiting": running().waiting,
        }

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    add_page(app, config, running, lambda request: _check_token(request, config.token))

    def failure(status: int, detail: str, **headers: str) -> Callable[..., Awaitable[Response]]:
        async def handler(request: Request, error: Exception) -> Response:
            body = json.dumps({"detail": detail})
            return Response(body, status, headers, media_type="application/json")

        return handler

    app.exception_handler(QueueFull)(
        failure(503, "too many images wait; try again", **{"Retry-After": "1"})
    )
    app.exception_handler(Closed)(failure(503, "shutting down", **{"Retry-After": "5"}))
    app.exception_handler(asyncio.TimeoutError)(
        failure(504, f"no answer within {config.timeout:g} s")
    )
    if config.token:
        _describe_token(app)
    return app


def _describe_token(app: FastAPI) -> None:
    schema = app.openapi()
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["bearer"] = {"type": "http", "scheme": "bearer"}


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # compare_digest: the time it takes tells nothing about the secret.
    same = secrets.compare_digest(given.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise HTTPException(401, "send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


async def _images(request: Request, most: int) -> list[tuple[str, bytes | str]]:
    """Names and encoded images of a request, or why one has none."""
    images: list[tuple[str, bytes | str]]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _from_form(request, most)
    elif kind == "application/json":
        images = _from_json(await request.body())
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [("0", await request.body())]
    else:
        raise HTTPException(
            415, f"content type {kind!r}: send multipart/form-data, application/json or image/*"
        )
    if not 1 <= len(images) <= most:
        raise HTTPException(400, f"{len(images)} images: send 1 to {most}")
    return images


async def _from_form(request: Request, most: int) -> list[tuple[str, bytes | str]]:
    async with request.form(max_files=most + 1, max_fields=most + 1) as form:
        images: list[tuple[str, bytes | str]] = []
        for name, value in form.multi_items():
            if name != "images" or not isinstance(value, UploadFile):
                raise HTTPException(400, f"form field {name!r}: send files named 'images'")
            images.append((value.filename or str(len(images)), await value.read()))
        return images


def _from_json(body: bytes) -> list[tuple[str, bytes | str]]:
    try:
        read = json.loads(body)
        images = read["images"]
        if not isinstance(images, list):
            raise InputError("images is no list")
        return [_from_entry(number, entry) for number, entry in enumerate(images)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(
            400, f'send {{"images": [{{"image": …, "data": BASE64}}, …]}} ({error})'
        ) from error


def _from_entry(number: int, entry: Any) -> tuple[str, bytes | str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise InputError(f"image {number} has no string 'data'")
    names = [entry[field] for field in ("image", "key") if field in entry]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"image {number} has a name that is no string")
    return (names or [str(number)])[0], _decoded(entry["data"])


def _decoded(text: str) -> bytes | str:
    """The bytes that Base64 stands for, or why it stands for none.

    As programs write it: wrapped to lines, with the two marks of URLs, without padding, or in a
    data URI (RFC 2397), which may also be percent-encoded.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma:
            return "a data URI without a comma"
        if not head.rstrip().lower().endswith(";base64"):
            return unquote_to_bytes(text)
        text = unquote(text)
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        return f"'data' is no Base64: {error}"


def _result(name: str, found: tuple[Tag, ...] | str) -> dict[str, Any]:
    """``found``: its tags, or why it has none."""
    if isinstance(found, str):
        return TagResult(name, (), found).to_dict()
    return TagResult(name, found).to_dict()
