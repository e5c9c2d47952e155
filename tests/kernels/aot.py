"""Ahead-of-time compilation: every kernel, for real targets, on a machine without a GPU.

What it finds without running anything: kernels that do not compile, registers spilled to memory,
and more shared memory than a multiprocessor has.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvp_fast.errors import BackendError


@dataclass(frozen=True)
class AotSpec:
    """One kernel in one configuration.

    Attributes:
        signature: Triton type of each argument that is not a constexpr: ``"*fp32"``, ``"i32"``, ….
        constexprs: value of each constexpr argument.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    least_c: int = 16  # the BLOCK_C of a launch over one category


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel: registers a thread, stack bytes (spills), shared bytes."""

    registers: int
    stack: int
    shared: int


# Arguments that are None where the option is not taken.
OPTIONAL = {
    "HAS_WEIGHT": ("weight_ptr",),
    "HAS_MASK": ("mask_ptr",),
    "HAS_NORMS": ("row_inverse_ptr", "col_inverse_ptr"),
    "HAS_Y": ("y_ptr", "y_rows_ptr", "y_cols_ptr"),
}


def absent(constexprs: dict[str, Any]) -> dict[str, None]:
    """The arguments of the options that are not taken."""
    return {
        name: None
        for option, names in OPTIONAL.items()
        if not constexprs.get(option, True)
        for name in names
    }


def with_ones(spec: AotSpec) -> AotSpec:
    """The spec without its options and with every integer argument 1.

    Triton compiles an argument that is 1 as a constant, which other code paths must stand.
    """
    ones = {name: 1 for name, kind in spec.signature.items() if kind == "i32"}
    plain = {k: False if k.startswith("HAS_") else v for k, v in spec.constexprs.items()}
    narrow = {"BLOCK_C": spec.least_c} if "BLOCK_C" in spec.constexprs else {}
    return AotSpec(
        f"{spec.name} of ones",
        spec.kernel,
        {name: kind for name, kind in spec.signature.items() if name not in ones},
        plain | ones | narrow,
        spec.num_warps,
        spec.num_stages,
    )


def collect() -> list[AotSpec]:
    """The specs of every kernel module, in order, and each kernel with arguments of 1."""
    from specs import SPECS

    found = []
    for specs_of in SPECS:
        own = specs_of()
        firsts = {spec.kernel: spec for spec in reversed(own)}
        found += [*own, *map(with_ones, reversed(firsts.values()))]
    return found


def jit_function(kernel: Any) -> Any:
    """The kernel under its heuristics."""
    from triton.runtime import Heuristics

    return kernel.fn if isinstance(kernel, Heuristics) else kernel


def compile_spec(spec: AotSpec, capability: int) -> Usage:
    """Compile for ``capability`` (80, 90, …) and read the resources from the cubin.

    Raises:
        BackendError: the spec leaves an argument out, or cuobjdump prints no usage line.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = jit_function(spec.kernel)
    names = kernel.arg_names
    constexprs = spec.constexprs | absent(spec.constexprs)
    types = {name: kind for name, kind in spec.signature.items() if name not in constexprs}
    if missing := [n for n in names if n not in types and n not in constexprs]:
        raise BackendError(f"{spec.name}: the spec says nothing about {', '.join(missing)}")
    # PyTorch allocations are 16-byte aligned, as a launch would find them.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if types.get(name, "").startswith("*")
    }
    signature = {name: types.get(name, "constexpr") for name in names}
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": spec.num_warps, "num_stages": spec.num_stages},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", str(cubin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise BackendError(f"{spec.name}: cuobjdump printed no resource usage")
    return Usage(int(found[1]), int(found[2]), int(compiled.metadata.shared))
