#!/usr/bin/env bash
# FAISS, exact search: where scores are equal, IndexFlatIP lists the highest row first and IndexFlatL2
# the lowest first. Which rows are kept is the same for both: the lowest.
# Seen with faiss-cpu 1.15.1. Whoever compares its rows with another library's must compare sets.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 faiss-cpu==1.15.1
cd "$work"
venv/bin/python - <<'PYTHON'
import faiss
import numpy as np

print("faiss", faiss.__version__)
rows, query = np.ones((500, 8), np.float32), np.ones((3, 8), np.float32)
answers = {}
for kind in (faiss.IndexFlatIP, faiss.IndexFlatL2):
    index = kind(8)
    index.add(rows)
    for k in (5, 200):
        answers[kind.__name__, k] = index.search(query, k)[1][0].tolist()
        print(kind.__name__, f"k={k}:", answers[kind.__name__, k][:5], "...")
for k in (5, 200):
    assert answers["IndexFlatIP", k] == list(range(k))[::-1]
    assert answers["IndexFlatL2", k] == list(range(k))
PYTHON
