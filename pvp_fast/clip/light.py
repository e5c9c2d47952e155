"""open_clip without what a plain tower does not use: for programs that load one model and end.

``import open_clip`` loads transformers and timm, for towers that most models do not have, and by
way of torchvision's region operators torch's compiler: most of its time. Where the first two are
out of reach open_clip leaves those towers out; of the compiler one function is asked, whether it
works here. That holds for the whole process, so only the command line does it, and only for models
whose towers are open_clip's own.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

_UNUSED = ("transformers", "timm")
_COMPILER = ("torch._dynamo", "torch._dynamo.utils")
_PLAIN = re.compile(r"pocket|RN\d+(x\d+)?(-quickgelu)?|ViT-[BLHg]-\d+(-\d{3})?(-quickgelu)?")


def import_open_clip_for(name: str) -> None:
    """Import open_clip, without other libraries where the model ``name`` needs none of them."""
    if "open_clip" in sys.modules or not _PLAIN.fullmatch(name):
        return
    stand_ins: dict[str, Any] = dict.fromkeys(_UNUSED)  # None: importing it fails
    if "torchvision" not in sys.modules:
        stand_ins |= {module: _Compiler(module) for module in _COMPILER}
    stand_ins = {module: value for module, value in stand_ins.items() if module not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        import open_clip  # noqa: F401
    finally:
        for module in stand_ins:
            sys.modules.pop(module, None)


class _Compiler(ModuleType):
    """What torchvision imports of torch's compiler: loaded when it is called."""

    __path__: list[str] = []  # noqa: RUF012  # a package, which has modules

    @staticmethod
    def is_compile_supported(device: Any) -> bool:
        from torch._dynamo.utils import is_compile_supported

        return bool(is_compile_supported(device))
