"""Compile every kernel for sm_80 and sm_90 and fail on a spill; needs no GPU.

python tests/kernels/compile_all.py [part of a name]
"""

import sys

from aot import collect, compile_spec

# Shared memory a block may ask for, bytes.
LIMIT = {80: 163 * 1024, 90: 227 * 1024}


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    failures = compiled = 0
    print(f"{'kernel':44} {'target':>6} {'registers':>9} {'stack':>6} {'shared':>8}")
    for spec in collect():
        if wanted not in spec.name:
            continue
        for capability, limit in LIMIT.items():
            try:
                usage = compile_spec(spec, capability)
            # Whatever one kernel dies of, the table goes on and the exit status tells.
            except Exception as error:
                failures += 1
                reason = str(error).strip().splitlines() or [""]
                print(
                    f"{spec.name:44} sm_{capability}  FAILED: {type(error).__name__}: {reason[-1]}"
                )
                continue
            bad = usage.stack > 0 or usage.shared > limit
            failures += bad
            compiled += 1
            print(
                f"{spec.name:44} sm_{capability:<3} {usage.registers:9} {usage.stack:6} "
                f"{usage.shared:8}{'  TOO MUCH' if bad else ''}",
                flush=True,
            )
    if not compiled and not failures:
        print(f"no kernel's name holds {wanted!r}")
        return 1
    print(f"{failures} failed" if failures else "no spills, every kernel fits")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
