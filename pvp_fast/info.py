"""What this installation can do, and why it cannot do the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

from pvp_fast import native
from pvp_fast.errors import BackendError, InputError
from pvp_fast.threads import budget as threads


def environment() -> dict[str, str]:
    """Versions, devices and backends as printable facts; nothing in here raises."""
    import torch

    import pvp_fast

    facts = {
        "pvp_fast": pvp_fast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs",
        "threads": _threads(),
    }
    for package in ("open_clip_torch", "triton", "transformers", "simplemma", "resvg-py"):
        facts[package] = _version(package)
    facts["C++ extension"] = _extension()
    facts["CPU top-k"] = _topk()
    facts["CUDA"] = _cuda()
    facts["triton kernels"] = _triton()
    facts["DALI"] = _dali()
    facts["pocket model"] = _pocket()
    return facts


def describe_artifact(path: str | os.PathLike[str]) -> dict[str, str]:
    """The facts about one artifact folder.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    from pvp_fast.artifact import Artifact

    artifact = Artifact.load(path)
    names = artifact.vocabulary.names
    shown = ", ".join(names[:12]) + (f", … ({len(names) - 12} more)" if len(names) > 12 else "")
    facts = {
        "artifact": str(Path(path)),
        "version": artifact.version,
        "categories": f"{len(names)}: {shown}",
        "backbone": f"{artifact.backbone.get('name')} {artifact.backbone.get('pretrained') or ''}",
        "fingerprint": str(artifact.backbone.get("fingerprint")),
        "width": str(artifact.backbone.get("embed_dim")),
        "trained in": str(artifact.backbone.get("precision", "float32")),
        "local branch": "yes" if artifact.has_local else "no",
    }
    for stage, value in artifact.metrics.get("held_out_map", {}).items():
        facts[f"held-out mAP, {stage}"] = "none" if value is None else f"{value:.1f}"
    return facts


def _threads() -> str:
    """The budget, why it is that, and how bulk encoding deals it out."""
    try:
        if threads.said() is not None:
            why = f"said by --threads or {threads.VARIABLE}"
        else:
            quota = threads.cpu_quota()
            limit = "no quota" if quota is None else f"a quota of {quota:g}"
            why = f"{threads.affinity()} CPUs by affinity, {limit}"
        number, each = threads.streams()
    except InputError as error:
        return f"not available: {error}"
    return f"{threads.budget()} ({why}); images are encoded in {number} streams of {each}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extension() -> str:
    try:
        built = native.call("build_info")
    except BackendError as error:
        return f"not available: {error}"
    openmp = "OpenMP" if built["openmp"] else "no OpenMP: one thread"
    return f"available ({built['compiler']}, {openmp}; CUDA: {built['cuda']})"


def _topk() -> str:
    """The instruction set of the top-k engine: the best one here, or what the user asks for."""
    try:
        usable, best = native.call("isas"), native.isa()
    except BackendError as error:
        return f"not available: {error}"
    others = ", ".join(name for name in usable if name != best) or "none"
    why = "chosen by PVP_FAST_ISA" if os.environ.get("PVP_FAST_ISA") else "the best here"
    return f"{best} ({why}; also usable: {others})"


def _cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "not available: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "not available: no usable NVIDIA GPU or driver"
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"


def _triton() -> str:
    import torch

    if importlib.util.find_spec("triton") is None:
        return "not available: triton is not installed (it has wheels for Linux only)"
    if not torch.cuda.is_available():
        return "not available: they need a CUDA device; the torch reference runs instead"
    return "available"


def _dali() -> str:
    # find_spec of a nested name raises when the outer package is missing.
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return f"available ({_version('nvidia-dali-cuda130')})"
    return 'not available: pip install "pvp_fast[dali]" (Linux, NVIDIA GPU)'


def _pocket() -> str:
    folder = Path(__file__).parent / "clip" / "weights"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return f"not available: no weights in {folder}"
    return f"available ({files[0].stat().st_size / 1e6:.1f} MB)"
