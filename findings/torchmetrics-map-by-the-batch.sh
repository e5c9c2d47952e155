#!/usr/bin/env bash
# The same cosines and labels have another mean average precision when they come in smaller batches.
# A metric of torchmetrics takes scores outside of 0 to 1 for logits and squashes them, and asks that
# of every batch by itself: where cosines are seldom negative, some batches are ranked as they are
# (0.0 to 0.4) and others squashed (0.5 to 0.6), all in one ranking. Seen with torchmetrics 1.9.0, torch 2.13.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0 torchmetrics==1.9.0
cd "$work"
venv/bin/python - <<'PYTHON'
import torch
import torchmetrics
from torchmetrics.classification import MultilabelAveragePrecision

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
labels = torch.rand(64, 5, generator=generator) < 0.3
cosines = 0.2 + 0.1 * torch.randn(64, 5, generator=generator) + 0.1 * labels


def mean_average_precision(scores: torch.Tensor, size: int) -> float:
    metric = MultilabelAveragePrecision(num_labels=5)
    for part, truth in zip(scores.split(size), labels.long().split(size)):
        metric.update(part, truth)
    return round(float(metric.compute()), 3)


print(f"{int((cosines < 0).sum())} of {cosines.numel()} cosines are negative")
found = {size: mean_average_precision(cosines, size) for size in (64, 16, 8, 4, 1)}
for size, value in found.items():
    print(f"batches of {size:2}: mAP {value}")
assert found[64] > found[8] > found[4] > found[1], found
assert found[64] - found[1] > 0.1, found
shifted = {size: mean_average_precision((cosines + 1) / 2, size) for size in (64, 1)}
print("the same ranking, moved into 0 to 1:", shifted)
assert shifted[64] == shifted[1] == found[64], (shifted, found)
PYTHON
