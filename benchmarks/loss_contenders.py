"""Everyone's way to a loss and its gradients: ours, plain PyTorch, and what others publish.

A contender is a function from a case to its forward function, which takes the inputs to the loss
(or to the pooled scores) and leaves the gradients to autograd. It raises Unavailable with the
reason where it cannot take part.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from loss_cases import LOSSES, Case, Inputs
from torch import Tensor

from pvp_fast import losses, spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError

Forward = Callable[[Inputs], Tensor]

ALL_REGIMES = ("small", "chunked", "recompute")  # where the annotation does not name them
DENSE_RANKING = 1 << 28  # elements of (B, C, C) that the dense ranking hinge may take
WHOLE_REGIONS = {"cpu": 1 << 28, "cuda": 4 << 30}  # elements of (B, L, C)


class Unavailable(Exception):
    """Why a contender takes no part."""


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise Unavailable(f"{name} is not installed ({missing})") from missing


def _needs_cuda(case: Case) -> None:
    if case.device.type != "cuda":
        raise Unavailable("needs a CUDA device")


def unit(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return F.normalize(inputs.x, dim=-1), F.normalize(inputs.w, dim=-1)


# ---------------------------------------------------------------------------------------- ours


def _labels(inputs: Inputs, dense: bool) -> torch.Tensor | losses.CSRLabels | None:
    if inputs.case.loss == "clip":
        return None  # the pairs (i, i)
    return inputs.dense if dense else inputs.lists


def ours(dense: bool, **options: str) -> Callable[[Case], Forward]:
    """The public functions; ``options`` are regime= and backend=, which may refuse a case."""

    def prepare(case: Case) -> Forward:
        if dense and not case.dense_labels_fit and case.loss not in ("clip", "pool"):
            raise Unavailable("dense labels do not fit")

        def pooled(inputs: Inputs) -> Tensor:
            scores = spatial_softmax_pool(inputs.x, inputs.w, scale=inputs.scale, **options)
            if case.loss == "pool":
                return scores
            return losses.asl_loss_from_scores(scores, _labels(inputs, dense))

        def refusing(forward: Forward) -> Forward:
            def run(inputs: Inputs) -> Tensor:
                try:
                    return forward(inputs)
                except (BackendError, InputError) as reason:
                    raise Unavailable(str(reason)) from reason

            return run if options else forward

        if case.pooled:
            return refusing(pooled)
        function = getattr(losses, f"{case.loss}_loss")
        return refusing(
            lambda inputs: function(
                inputs.x, inputs.w, _labels(inputs, dense), scale=inputs.scale, bias=inputs.bias,
                **options,
            )
        )  # fmt: skip

    return prepare


def regimes(case: Case) -> tuple[str, ...]:
    """The regimes that the public function of a case names, beside "auto"."""
    name = "spatial_softmax_pool" if case.pooled else f"{case.loss}_loss"
    function = spatial_softmax_pool if case.pooled else getattr(losses, name)
    if "regime" not in inspect.signature(function).parameters:
        return ()
    names = typing.get_args(typing.get_type_hints(function)["regime"])
    return tuple(name for name in names or ALL_REGIMES if name != "auto")


# --------------------------------------------------------------------------- plain PyTorch


def _scores(inputs: Inputs) -> Tensor:
    """scale · cosines + bias: the product in the inputs' dtype, as under autocast; then float32."""
    x, w = unit(inputs)
    scores = inputs.scale * (x @ w.T).float()
    return scores if inputs.bias is None else scores + inputs.bias


def _plain_pool(inputs: Inputs) -> Tensor:
    z, w = unit(inputs)
    cosines = (z @ w.T).float()
    return inputs.scale * ((50.0 * cosines).softmax(1) * cosines).sum(1)


def _plain_ranking(scores: Tensor, inputs: Inputs) -> Tensor:
    """Positives gathered from padded lists: (B, P, C), no loop over the positives."""
    at, there = inputs.positives
    hinge = F.relu(1 - scores.gather(1, at)[:, :, None] + scores[:, None, :])
    return (hinge * there[:, :, None] * ~inputs.dense[:, None, :]).sum() / len(scores)


def _plain_clip(scores: Tensor, inputs: Inputs) -> Tensor:
    pairs = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


def _plain_asl(scores: Tensor, inputs: Inputs) -> Tensor:
    y = inputs.dense.float()
    present = scores.sigmoid()
    absent = (1 - present + 0.05).clamp(max=1)
    positive = y * present.clamp(min=1e-8).log() * (1 - present).detach()
    negative = (1 - y) * absent.clamp(min=1e-8).log() * (1 - absent).detach() ** 4
    return -(positive + negative).mean()


def _plain_bce(scores: Tensor, inputs: Inputs) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, inputs.dense.float())


def _plain_focal(scores: Tensor, inputs: Inputs) -> Tensor:
    y, p = inputs.dense.float(), scores.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(scores, y, reduction="none")
    wrong = torch.where(inputs.dense, 1 - p, p)
    return (entropy * wrong**2 * (0.25 * y + 0.75 * (1 - y))).mean()


def _plain_siglip(scores: Tensor, inputs: Inputs) -> Tensor:
    sign = 2 * torch.eye(len(scores), device=scores.device) - 1
    return -F.logsigmoid(sign * scores).sum() / len(scores)


PLAIN: dict[str, Callable[[Tensor, Inputs], Tensor]] = {
    "asl": _plain_asl, "bce": _plain_bce, "focal": _plain_focal, "siglip": _plain_siglip,
    "ranking": _plain_ranking, "clip": _plain_clip,
}  # fmt: skip


def eager(case: Case) -> Forward:
    if case.loss not in ("pool", "clip") and not case.dense_labels_fit:
        raise Unavailable("dense labels do not fit")
    if case.pooled:
        if case.rows * case.regions * case.categories > WHOLE_REGIONS[case.device.type]:
            raise Unavailable("(B, L, C) does not fit")
        if case.loss == "pool":
            return _plain_pool
        return lambda inputs: _plain_asl(_plain_pool(inputs), inputs)
    plain = PLAIN[case.loss]
    return lambda inputs: plain(_scores(inputs), inputs)


def compiled(case: Case) -> Forward:
    forward = eager(case)

    # Compiled over tensors, so that nothing of the inputs' class is traced.
    def whole(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None, *labels: Tensor) -> Tensor:
        return forward(_Traced(case, x, w, scale, bias, labels))

    function = torch.compile(whole, dynamic=False)

    def run(inputs: Inputs) -> Tensor:
        labels: tuple[Tensor, ...] = ()
        if case.loss not in ("pool", "clip", "siglip"):
            labels = (inputs.dense,)
        if case.loss == "ranking":
            labels += inputs.positives
        return function(inputs.x, inputs.w, inputs.scale, inputs.bias, *labels)

    return run


class _Traced:
    """The part of Inputs that the plain losses read, made of a compiled function's arguments."""

    def __init__(
        self, case: Case, x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None,
        labels: tuple[Tensor, ...],
    ) -> None:  # fmt: skip
        self.case, self.x, self.w, self.scale, self.bias = case, x, w, scale, bias
        if labels:
            self.dense, self.positives = labels[0], labels[1:]


def two_pass_asl(case: Case) -> Forward:
    """ASL as its authors publish it: (B, C) factors for every step of equations 4 to 7."""
    if not case.dense_labels_fit:
        raise Unavailable("dense labels do not fit")

    def loss(inputs: Inputs) -> Tensor:
        y = inputs.dense.float()
        probability = _scores(inputs).sigmoid()
        shifted = (1 - probability + 0.05).clamp(max=1)
        likelihood = y * probability.clamp(min=1e-8).log()
        likelihood = likelihood + (1 - y) * shifted.clamp(min=1e-8).log()
        with torch.no_grad():
            right = probability * y + shifted * (1 - y)
            focus = torch.pow(1 - right, 1.0 * y + 4.0 * (1 - y))
        return -(likelihood * focus).sum() / y.numel()

    return loss


def dense_ranking(case: Case) -> Forward:
    """The ranking hinge over every pair of categories, (B, C, C), as TaI-DPT forms it."""
    if case.rows * case.categories**2 > DENSE_RANKING:
        raise Unavailable("(B, C, C) does not fit")

    def loss(inputs: Inputs) -> Tensor:
        scores, y = _scores(inputs), inputs.dense.float()
        hinge = F.relu(1 - scores[:, :, None] + scores[:, None, :])
        return (hinge * y[:, :, None] * (1 - y)[:, None, :]).sum() / len(scores)

    return loss


# ------------------------------------------------------------------------------ other libraries


def open_clip(case: Case) -> Forward:
    loss = _module("open_clip.loss")
    if case.loss == "clip":
        function = loss.ClipLoss()
        return lambda inputs: function(*unit(inputs), inputs.scale)
    function = loss.SigLipLoss()
    return lambda inputs: function(*unit(inputs), inputs.scale, inputs.bias)


def _both_ways(cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Forward:
    """InfoNCE of (rows, classes, targets) -> cross-entropy, rows against columns and back."""

    def loss(inputs: Inputs) -> Tensor:
        x, w = unit(inputs)
        pairs = torch.arange(len(x), device=x.device)
        scale = inputs.scale.to(x.dtype)
        return (cross_entropy(scale * x, w, pairs) + cross_entropy(scale * w, x, pairs)) / 2

    return loss


def torch_linear_cross_entropy(case: Case) -> Forward:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy")
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    chunked = {} if options is None else {"options": options()}
    return _both_ways(lambda x, w, target: function(x, w, target, **chunked))


def memeff(case: Case) -> Forward:
    """Without a gradient of the scale, which it takes as a number."""
    module = _module("memeff")
    _needs_cuda(case)
    function = module.MemoryEfficientCLIPLoss(temperature=1 / case.scale, stable=False)
    return lambda inputs: function(inputs.x, inputs.w)


def liger(case: Case) -> Forward:
    module = _module("liger_kernel.transformers")
    _needs_cuda(case)
    function = module.LigerFusedLinearCrossEntropyLoss()
    return _both_ways(lambda x, w, target: function(w, x, target))


def cut_cross_entropy(case: Case) -> Forward:
    module = _module("cut_cross_entropy")
    _needs_cuda(case)
    if case.dtype == torch.float32:
        raise Unavailable("takes half precision only")
    return _both_ways(module.linear_cross_entropy)


def siglip_kernel(case: Case) -> Forward:
    _needs_cuda(case)  # it asks for a device when it is imported
    function = _module("siglip_kernel").fused_siglip_loss
    return lambda inputs: function(*unit(inputs), inputs.scale.log(), inputs.bias)


# Name -> what it computes, and how.
OTHERS: dict[str, tuple[tuple[str, ...], Callable[[Case], Forward]]] = {
    "PyTorch eager": (LOSSES, eager),
    "PyTorch compiled": (LOSSES, compiled),
    "ASL as published": (("asl",), two_pass_asl),
    "ranking (B, C, C)": (("ranking",), dense_ranking),
    "open_clip": (("clip", "siglip"), open_clip),
    "linear_cross_entropy": (("clip",), torch_linear_cross_entropy),
    "memeff": (("clip",), memeff),
    "liger-kernel": (("clip",), liger),
    "cut-cross-entropy": (("clip",), cut_cross_entropy),
    "siglip-kernel": (("siglip",), siglip_kernel),
}


def contenders(case: Case) -> dict[str, Callable[[Case], Forward]]:
    """Ours in every regime and backend there is, then everyone else's of this loss."""
    own = {"pvp_fast": ours(True)}
    if case.loss not in ("clip", "pool"):
        own["pvp_fast, lists"] = ours(False)
    for regime in regimes(case):
        own[f"pvp_fast {regime}"] = ours(case.dense_labels_fit, regime=regime)
    # "auto" is "native" on a CPU, "triton" on a CUDA device.
    own["pvp_fast in torch"] = ours(case.dense_labels_fit, backend="torch")
    others = {name: how for name, (of, how) in OTHERS.items() if case.loss in of}
    return {**own, **others}
