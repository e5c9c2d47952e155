#!/usr/bin/env bash
# torch.set_num_threads belongs to the calling thread and to every thread whose first call of torch is
# still to come, whoever started it. A worker that limits itself so limits all later workers, and even the
# main thread, though that had set a number itself, if setting it was all that it had done with torch;
# after a call of torch.get_num_threads a thread keeps its own.
# Seen with torch 2.13.0 (GNU OpenMP).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0
cd "$work"
venv/bin/python - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import torch

print("torch", torch.__version__)


def numbers(main_asks_first: bool) -> dict[str, int]:
    torch.set_num_threads(4)
    if main_asks_first:
        torch.get_num_threads()
    early, worker, late = (ThreadPoolExecutor(1) for _ in range(3))
    assert early.submit(torch.get_num_threads).result() == 4
    worker.submit(torch.set_num_threads, 1).result()
    return {
        "the worker itself": worker.submit(torch.get_num_threads).result(),
        "a thread from before": early.submit(torch.get_num_threads).result(),
        "a thread from later": late.submit(torch.get_num_threads).result(),
        "the main thread": torch.get_num_threads(),
    }


first, then = numbers(main_asks_first=False), numbers(main_asks_first=True)
print(f"{'':21} main had only set 4   and asked before")
for who in first:
    print(f"{who:>21}: {first[who]:18} {then[who]:18}")
assert list(first.values()) == [1, 4, 1, 1], first
assert list(then.values()) == [1, 4, 1, 4], then
PYTHON
