"""``pvp-fast serve``."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import progress_console
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.vocabulary import NOTHING, Chosen, NameOptions, takes_names
from pvp_fast.errors import BackendError, InputError

TOKEN = "PVP_FAST_TOKEN"


@takes_names
def serve(
    artifact: Annotated[
        Path | None,
        typer.Argument(help="Artifact folder, as train writes it; none with --vocabulary."),
    ] = None,
    given: NameOptions = NOTHING,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    max_batch: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 64,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long an image waits for others to share a batch.")
    ] = 2.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 2,
    queue: Annotated[
        int, typer.Option(min=1, help="Images accepted and not answered; beyond it: 503.")
    ] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Images of one request.")] = 64,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Size of one request.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds until a request gets 504.")] = 30.0,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with a bearer token clients must send (or set {TOKEN})."),
    ] = None,
    max_added: Annotated[
        int, typer.Option(min=0, help="Categories that clients may add by name; 0 for none.")
    ] = 0,
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Tag images over HTTP: a page at /, POST /tag, GET /healthz, GET /metrics, GET /docs.

    Images of different requests share batches. Ctrl-C, or SIGTERM, ends the service after the
    requests that it has accepted.

    Examples:

      pvp-fast serve runs/coco/artifact

      pvp-fast serve --vocabulary tags.txt

      curl -F images=@photo.jpg 'http://127.0.0.1:8000/tag?top_k=3'

      curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg http://127.0.0.1:8000/tag
    """
    try:
        import uvicorn
    except ImportError as error:
        raise BackendError("serve needs uvicorn: pip install 'pvp_fast[serve]'") from error
    from pvp_fast.serve import ServeConfig, create_app

    chosen = Chosen(artifact, given)

    config = ServeConfig(
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        workers=workers,
        queue=queue,
        max_body=max_body_mib << 20,
        max_images=min(max_images, queue),
        timeout=timeout,
        token=_token(token_file),
        max_added=max_added,
    )
    if max_added and config.token is None and not _is_loopback(host):
        raise InputError(
            f"max_added: {host} can be reached from elsewhere; set a token ({TOKEN}), or anybody "
            "could add categories"
        )
    if config.token is None and not _is_loopback(host):
        progress_console().print(
            f"[yellow]{host} can be reached from elsewhere and no token is set ({TOKEN})[/]"
        )
    tagger = chosen.tagger(device)
    tagger.pictures = picture_settings(upright, background, max_megapixels, tagger.pictures)
    app = create_app(tagger, config)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"token_file: {file} cannot be read: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
