"""Every exception the package raises on purpose: it names the argument, the value, the fix."""

from __future__ import annotations

from pathlib import Path


class PvpFastError(Exception):
    """Base class: catching it catches everything the package raises on purpose."""


class InputError(PvpFastError, ValueError):
    """An argument cannot be used; the message names it, what was given and what would work."""


class ImageError(InputError):
    """One image cannot be read. ``reason`` is a short machine-friendly phrase."""

    def __init__(self, reason: str, source: str = "") -> None:
        super().__init__(f"{source}: {reason}" if source else reason)
        self.reason = reason
        self.source = source


class CorpusError(InputError):
    """A captions file or a corpus cannot be used."""


class ArtifactError(PvpFastError):
    """A saved artifact is missing, damaged or does not fit the backbone."""


class BackboneError(PvpFastError):
    """A CLIP model cannot be loaded or lacks what was asked of it."""


class BackendError(PvpFastError):
    """An explicitly requested backend cannot run here; nothing falls back in silence."""


class SinkError(PvpFastError):
    """Tags cannot be written where they were to go; nothing half-written is left there."""


class TrainingDiverged(PvpFastError):
    """A loss term became NaN or infinite.

    Attributes: ``step`` (0-based optimiser step), ``term`` (name of the loss term) and
    ``checkpoint`` (the last good checkpoint folder, or None when there is none yet).
    """

    def __init__(self, step: int, term: str, checkpoint: Path | None) -> None:
        where = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"
        super().__init__(f"loss term {term!r} is not finite at step {step}; {where}")
        self.step = step
        self.term = term
        self.checkpoint = checkpoint
