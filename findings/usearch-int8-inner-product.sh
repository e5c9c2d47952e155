#!/usr/bin/env bash
# usearch with dtype "i8" scales every vector to the same length before it is stored, also for the metric
# "ip": the answer is ranked by cosine, not by inner product, and the distance is 1 - dot in units of
# the stored bytes (-12424 where float32 says 0.19). float32, float16 and bfloat16 keep lengths.
# Seen with usearch 2.26.6. Class vectors of unequal length (a scale, a weight) lose it without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 usearch==2.26.6
cd "$work"
venv/bin/python - <<'PYTHON'
import numpy as np
import usearch
from usearch.index import Index

print("usearch", usearch.__version__)
rng = np.random.default_rng(0)
rows = rng.standard_normal((300, 64)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
longer = rows * np.linspace(1, 9, 300, dtype=np.float32)[:, None]
query = rows[:1]
best = int(np.argmax(query @ longer.T))
found = {}
for dtype in ("f32", "bf16", "i8"):
    answers = []
    for vectors in (rows, longer):
        index = Index(ndim=64, metric="ip", dtype=dtype)
        index.add(np.arange(300), vectors)
        match = index.search(query[0], 1, exact=True)
        answers.append((int(match.keys[0]), float(match.distances[0])))
    found[dtype] = answers
    print(f"{dtype}: unit rows {answers[0]}, rows of length 1 to 9 {answers[1]}; inner product says {best}")
assert best != 0
assert found["f32"][1][0] == found["bf16"][1][0] == best
assert found["i8"][0] == found["i8"][1], "the lengths now count"
assert found["i8"][0][0] == 0
assert found["i8"][0][1] < -10000
PYTHON
