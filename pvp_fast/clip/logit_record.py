"""What a model's own training says of its cosines: scale, bias, and the loss they belong to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class LogitRecord(NamedTuple):
    """How a model turns a cosine s into a logit, ``scale * s + bias``.

    Attributes:
        scale, bias: as learned; the scale is no logarithm. bias is 0 for a model without one.
        kind: "sigmoid" where each pair was judged alone (SigLIP, arXiv 2303.15343): the logit's
            sigmoid is a probability that text and image belong together. "softmax" where texts
            were compared with each other (CLIP): a single logit says nothing.
    """

    scale: float
    bias: float
    kind: str


def logit_record(model: Any) -> LogitRecord:
    """Of an open_clip or transformers model; a learned bias is what sigmoid losses add."""
    scale = float(model.logit_scale.detach().float().exp().mean())
    bias = getattr(model, "logit_bias", None)
    if bias is None:
        return LogitRecord(scale, 0.0, "softmax")
    if not isinstance(bias, torch.Tensor):
        bias = torch.tensor(float(bias))
    return LogitRecord(scale, float(bias.detach().float().mean()), "sigmoid")
