"""Ray: found, joined or started, tried with one worker, and its errors told as ours."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pvp_fast.bulk.worker import GAVE_UP
from pvp_fast.errors import InputError, PvpFastError


def import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError('engine: Ray is not installed; pip install "pvp_fast[ray]"') from error
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray reports its use to its makers unless told not to; whoever wants that starts Ray.
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = before or "0"
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # Without an address Ray would join the last one that was started on this machine.
        place = address or os.environ.get("RAY_ADDRESS") or "local"
        alone = {"include_dashboard": False} if place == "local" else {}
        ray.init(address=place, logging_level="ERROR", **alone)
        yield
    finally:
        ray.shutdown()
        context.enable_progress_bars = bars
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]


class _Ready:
    """A worker that does nothing."""

    def ready(self) -> bool:
        """Whether it has started."""
        return True


def start_one(ray: Any) -> None:
    """Start one worker, and do not try again as bulk work does for ever.

    Raises:
        InputError: it dies before it has begun, as where a setup hook fails.
    """
    worker = ray.remote(max_restarts=0, num_cpus=0)(_Ready).remote()
    try:
        ray.get(worker.ready.remote())
    except ray.exceptions.RayError as error:
        raise InputError(f"engine: Ray's workers cannot start here: {_why(error)}") from error
    finally:
        ray.kill(worker)


def _why(error: Exception) -> str:
    """What Ray says of a worker's death, in one line: its own words, and the exception's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition("exit detail: ")[2] for line in lines if "exit detail: " in line]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return " ".join([*told[:1], *raised[-1:]]) or lines[0]


@contextlib.contextmanager
def our_errors(staging: Path) -> Iterator[None]:
    """Raise what an actor raised on purpose, not the wrapping that Ray puts around it."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            raise InputError((staging / GAVE_UP).read_text("utf-8")) from None
        for inner in _causes(error):
            if isinstance(inner, PvpFastError):
                raise inner from None
        raise


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
