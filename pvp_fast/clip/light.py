"""torch and open_clip without what a plain tower does not use: for programs that load one model and
end.

A quarter of ``import torch`` describes its operators to its compiler. ``import open_clip`` loads
transformers and timm, for towers that most models do not have, torchvision's own models, data sets
and decoders, and by way of its region operators torch's compiler: most of its time. Where the first
two are out of reach open_clip leaves those towers out, as it leaves out the hub's client; of the
compiler one function is asked, whether it works here. That holds for the whole process, so only the
command line does it, and only for models whose towers are open_clip's own.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from types import ModuleType
from typing import Any

_UNUSED = ("transformers", "timm")
_HUB = "huggingface_hub"
_COMPILER = ("torch._dynamo", "torch._dynamo.utils")
_DESCRIPTIONS = "torch._meta_registrations"
_LATER = ("torchvision.models", "torchvision.datasets", "torchvision.io")
_PLAIN = re.compile(r"pocket|RN\d+(x\d+)?(-quickgelu)?|ViT-[BLHg]-\d+(-\d{3})?(-quickgelu)?")


def import_torch() -> None:
    """Import torch without its operators' descriptions, which its compiler loads where it needs
    them."""
    if "torch" in sys.modules:
        return
    sys.modules[_DESCRIPTIONS] = _Later(_DESCRIPTIONS)
    try:
        import torch
    finally:
        sys.modules.pop(_DESCRIPTIONS, None)
    sys.meta_path.insert(0, _Completing())
    with contextlib.suppress(ImportError):
        # From torch 2.14 on random generators need it, and only the descriptions load it.
        importlib.import_module("torch._prims.rng_prims")
    try:
        torch.Generator()
    except RuntimeError:
        complete_torch()


def complete_torch() -> None:
    """Load what :func:`import_torch` left out, if it did."""
    left_out = [finder for finder in sys.meta_path if isinstance(finder, _Completing)]
    for finder in left_out:
        sys.meta_path.remove(finder)
    if left_out:
        importlib.import_module(_DESCRIPTIONS)


def import_open_clip_for(name: str) -> None:
    """Import open_clip, without other libraries where the model ``name`` needs none of them."""
    if not _PLAIN.fullmatch(name):
        complete_torch()
        return
    if "open_clip" in sys.modules:
        return
    stand_ins: dict[str, Any] = dict.fromkeys(_UNUSED)  # None: importing it fails
    if name == "pocket":
        stand_ins[_HUB] = None
    if "torchvision" not in sys.modules:
        stand_ins |= {module: _Compiler(module) for module in _COMPILER}
        stand_ins |= {module: _Later(module) for module in _LATER}
    stand_ins = {module: value for module, value in stand_ins.items() if module not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        import open_clip  # noqa: F401
    finally:
        for module in stand_ins:
            sys.modules.pop(module, None)


class _Later(ModuleType):
    """A module that is loaded where something of it is used."""

    __path__: list[str] = []  # noqa: RUF012  # a package, which has modules

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Completing:
    """Among the finders of modules: finds none, but has torch complete before its compiler."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name in _COMPILER or name == "torch._inductor":
            complete_torch()


class _Compiler(ModuleType):
    """What torchvision imports of torch's compiler: loaded when it is called."""

    __path__: list[str] = []  # noqa: RUF012  # a package, which has modules

    @staticmethod
    def is_compile_supported(device: Any) -> bool:
        from torch._dynamo.utils import is_compile_supported

        return bool(is_compile_supported(device))
