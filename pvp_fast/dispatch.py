"""The one rule that picks an engine, and the reasons why one cannot run; and how its operator is
called.

An operation says which engines it has, each with a function that returns the reason why it cannot
run here, or None: ``choose(backend, device, {"triton": ..., "native": ...})``. Plain PyTorch runs
everywhere and is never in the list. Top-k is one more caller: its engines are "native" and "cuda".
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pvp_fast.errors import BackendError, InputError

WhyNot = Callable[[], str | None]

# What the engines take; any other float type is for the definition in plain PyTorch.
FUSED = (torch.float32, torch.float16, torch.bfloat16)
# The engine that "auto" tries before plain PyTorch.
_AT_HOME = {"cuda": "triton", "cpu": "native"}


def choose(backend: str, device: torch.device, engines: Mapping[str, WhyNot]) -> str:
    """The engine that runs: a name of ``engines``, or "torch".

    "auto" takes the engine at home on ``device`` ("triton" on CUDA, "native" on a CPU) if the
    operation has it and it can run, else "torch". An engine asked for by name runs or raises; one
    that is at home nowhere, such as top-k's "cuda", runs only when asked for.

    Args:
        engines: name -> a function that returns why it cannot run, or None. Called only when that
            engine is to be taken.

    Raises:
        InputError: a word that names no engine. BackendError: an explicit engine that cannot run.
    """
    words = ("auto", *engines, "torch")
    if backend not in words:
        raise InputError(f"backend={backend!r}: use one of {', '.join(map(repr, words))}")
    if backend == "torch":
        return backend
    if backend == "auto":
        own = _AT_HOME.get(device.type, "")
        return own if own in engines and engines[own]() is None else "torch"
    reason = engines[backend]()
    if reason is not None:
        raise BackendError(f"backend={backend!r}: {reason}; use 'auto' or 'torch'")
    return backend


def fuses(backend: str, dtype: torch.dtype) -> bool:
    """Whether an engine takes this dtype; what none takes is for the definition in plain PyTorch.

    Raises:
        InputError: an engine asked for by name and a dtype that it does not take.
    """
    if dtype in FUSED:
        return True
    if backend not in ("auto", "torch"):
        raise InputError(f"backend={backend!r} takes float32, float16 and bfloat16, not {dtype}")
    return False


def why_not_triton(*tensors: Tensor) -> str | None:
    """Triton's kernels take CUDA tensors; others by its interpreter (TRITON_INTERPRET=1) alone."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, pip install triton"
    if all(t.is_cuda for t in tensors) or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "it needs CUDA tensors (or TRITON_INTERPRET=1 for its interpreter)"


def why_not_native(device: torch.device) -> str | None:
    """The compiled extension works on a CPU."""
    return None if device.type == "cpu" else f"it works on a CPU, not on {device}"


def is_plain(*arguments: object) -> bool:
    """Nobody traces, fakes, transforms or watches a call of these arguments."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return (
        all(type(t) in _PLAIN and not t.is_meta for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        # torch.autograd.grad(…, is_grads_batched=True): tensors without values of their own
        and not any(map(torch._C._functorch.is_legacy_batchedtensor, tensors))
    )


def hands_out(g: Tensor) -> bool:
    """Whether backward, given g, may return the gradients it kept instead of g times those.

    g is 1, which only a CPU tells without waiting, and the graph is not retained: whoever gets
    them may write into them (zero_grad, clipping, autograd's own sums), and asks no more.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # a graph that others will run
        return False
    if g.device.type != "cpu" or not is_plain(g):
        return False
    return g.item() == 1.0 and not torch._C._autograd._get_current_graph_task_keep_graph()


_PLAIN = (Tensor, torch.nn.Parameter)


def with_gradient(
    operator: Any,
    body: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """A torch.library operator with this gradient; its body, where nobody would see the difference.

    torch's dispatcher takes longer than a small loss, so a plain call goes around it.
    """
    operator.register_autograd(backward, setup_context=setup)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = body(*inputs)
            if setup is not None:
                setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    def call(*inputs: Any) -> Any:
        return (Direct.apply if is_plain(*inputs) else operator)(*inputs)

    return call
