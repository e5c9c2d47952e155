"""The precision of models whose caller names none: said by a program, or by the environment.

Without torch, so that a command line can say it before anything heavy is imported.
"""

from __future__ import annotations

import os

from pvp_fast.errors import InputError

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
VARIABLE = "PVP_FAST_PRECISION"
_said: str | None = None


def set_precision(precision: str | None) -> None:
    """Say what models are loaded in where the caller does not; None: what the environment says.

    Raises:
        InputError: no such precision.
    """
    global _said
    _said = None if precision is None else known(precision)


def usual_precision() -> str:
    """What :func:`set_precision` was given, else ``PVP_FAST_PRECISION``, else float32."""
    return _said or known(os.environ.get(VARIABLE) or "float32")


def known(precision: str) -> str:
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: use one of {', '.join(PRECISIONS)}")
    return precision
