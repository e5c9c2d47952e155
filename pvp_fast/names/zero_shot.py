"""Names to tags with nothing learned: centred prompt ensembles, and probabilities that mean it.

    e_c = normalise(mean over templates of f_T(template(name_c)))
    s_c = ⟨x, normalise(e_c − m)⟩,   m = mean of e over the names of COCO

m is what all names have in common and none owns (C³, arXiv 2401.08567, has it for sentences). Taken
over fixed names, it leaves a category's vector free of which others there are: it can be kept, and
no bit of it changes when the list does. On the pocket model's demo scenes it is worth more than
twelve templates in place of one: mAP 50.7 with one, 58.2 with twelve, 69.4 with one and the centre
(benchmarks/NOTES-method.md).

A cosine is no probability, and sentences do not tell where images lie. The drawn scenes that come
with the package are labelled and every CLIP can read them: one slope and intercept are fitted on
their cosines with their names. With more names than theirs the chance that a given one is there is
lower: the odds are divided by C / 70, and the threshold is the best F1's under that.

What was learned for other names has no labels there. Its scores on the same drawings get the slope
and intercept that give them the probabilities of the names alone, highest for highest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.files import atomic_write
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.modules.scoring import Head
from pvp_fast.modules.templates import CLIP_TEMPLATES
from pvp_fast.names.cache import NameVectors, Progress
from pvp_fast.training.thresholds import fit_platt
from pvp_fast.vocabulary.categories import Vocabulary

# A photo, one seen from near, a scene and a drawing; with the centre more add nothing.
TEMPLATES = tuple(CLIP_TEMPLATES[i] for i in (0, 3, 5, 11))
RECIPE = "names 1\n" + "\n".join(TEMPLATES)
CENTRE = "coco80"
DRAWN = "pocket70"
SCENES = 150
_CARRIED = 512  # categories
_HIGHEST = 0.1  # of their scores


@dataclass(frozen=True)
class ImageSide:
    """Features (N, D) and labels (N, 70) bool of the drawn scenes, by one model."""

    z: Tensor
    labels: Tensor

    @classmethod
    def of(cls, backbone: Backbone, folder: Path) -> ImageSide:
        """Encode the scenes, or read what an earlier run kept in ``folder``."""
        from pvp_fast.demo import demo_set
        from pvp_fast.evaluation import encode_set, read_folder

        scenes = read_folder(demo_set())
        path = _scenes_of(backbone, folder)
        try:
            z = load_file(path)["z"]
            if z.shape == (len(scenes.paths), backbone.embed_dim):
                return cls(z, scenes.labels > 0)
        except (OSError, SafetensorError, KeyError):
            pass  # not there, or damaged: made again
        z = encode_set(backbone, scenes).z
        with atomic_write(path) as stream:
            stream.write(save({"z": z.contiguous()}))
        return cls(z, scenes.labels > 0)


def vectors_of(
    backbone: Backbone,
    names: Sequence[str],
    folder: Path,
    progress: Progress | None = None,
) -> Tensor:
    """e (C, D), unit rows, not centred; those that ``folder`` has are read from there."""
    store = store_of(backbone, folder)

    def encode(part: Sequence[str]) -> Tensor:
        return prompt_ensemble(backbone, part, TEMPLATES)

    return store.get(names, encode, recipe=RECIPE, progress=progress)


def store_of(backbone: Backbone, folder: Path) -> NameVectors:
    """The file that keeps a model's vectors of names."""
    return NameVectors(folder / f"{_called(backbone)}.sqlite", backbone.embed_dim)


def missing(backbone: Backbone, names: Sequence[str], folder: Path) -> tuple[int, int]:
    """How many texts and drawings :func:`zero_shot` would encode now."""
    fixed = [name for known in (CENTRE, DRAWN) for name in Vocabulary.builtin(known).names]
    count = store_of(backbone, folder).missing([*dict.fromkeys((*names, *fixed))], RECIPE)
    return count * len(TEMPLATES), 0 if _scenes_of(backbone, folder).exists() else SCENES


def _scenes_of(backbone: Backbone, folder: Path) -> Path:
    return folder / f"{_called(backbone)}.scenes.safetensors"


def _called(backbone: Backbone) -> str:
    """Begins the names of a model's files: other precisions give other bits."""
    return f"{backbone.fingerprint[:16]}.{backbone.precision}"


def zero_shot(
    backbone: Backbone,
    names: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Head:
    """A head for C names without any training, calibrated; on the CPU.

    Args:
        folder: where vectors of names are kept from run to run.
        progress: called with (names at hand, C) as they are encoded.
    """
    place = Path(folder)
    middle = vectors_of(backbone, Vocabulary.builtin(CENTRE).names, place).mean(0)
    drawn = centred(vectors_of(backbone, Vocabulary.builtin(DRAWN).names, place), middle)
    side = ImageSide.of(backbone, place)
    vectors = centred(vectors_of(backbone, names, place, progress), middle)
    slope, intercept, threshold = calibration(side.z @ drawn.T, side.labels, len(names))
    return one_line(head_of(vectors, vectors, alpha=0.0), slope, intercept, threshold)


def head_of(names: Tensor, learned: Tensor, alpha: float) -> Head:
    """An uncalibrated head over two banks (C, D), with adapters that do nothing."""
    adapter = DualAdapter(names, learned, learned[:, None], alpha=alpha, bottleneck=1)
    return Head.uncalibrated(adapter.eval())


def one_line(head: Head, slope: float, intercept: float, threshold: float) -> Head:
    """The head with one slope, intercept and threshold for all categories."""
    platt = torch.tensor([slope, intercept]).repeat(len(head), 1)
    return head.calibrated(platt, torch.full((len(head),), threshold))


@torch.no_grad()
def carried(backbone: Backbone, learned: Head, names: Head, folder: Path) -> Head:
    """``learned`` with probabilities carried over from ``names``, a calibrated head of the same.

    The highest scores of the two on the drawings, over at most 512 categories, are laid on each
    other by a line; on the pocket model's demo that costs nothing against a fit on labels.
    """
    z = ImageSide.of(backbone, folder).z
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(names), generator=generator)[:_CARRIED].sort().values
    old, new = names.take(rows), learned.take(rows)
    logits = old.cosines(z) * old.platt[:, 0] + old.platt[:, 1]
    scores = new.cosines(z)
    count = max(2, round(_HIGHEST * scores.numel()))
    s, want = (v.flatten().double().topk(count).values for v in (scores, logits))
    off = s - s.mean()
    slope = float((off * (want - want.mean())).sum() / off.square().sum().clamp(min=1e-12))
    slope = max(slope, 1e-3)
    intercept = float(want.mean() - slope * s.mean())
    return one_line(learned, slope, intercept, float(names.thresholds[0]))


def centred(vectors: Tensor, middle: Tensor) -> Tensor:
    """Unit rows without what all names share."""
    return F.normalize(vectors - middle, dim=-1)


def calibration(scores: Tensor, labels: Tensor, count: int) -> tuple[float, float, float]:
    """Slope and intercept of the logit, and the probability of the best F1, for ``count`` names.

    Args:
        scores: (N, C) cosines of labelled images with C other names. labels: (N, C) bool.
        count: names to be tagged with. Where they are more than C, as many more are absent: each
            absent entry counts count / C times.
    """
    flat, truth = scores.reshape(-1, 1), labels.reshape(-1, 1)
    slope, intercept = fit_platt(flat, truth)[0].double().tolist()
    absent = max(1.0, count / scores.shape[1])
    intercept -= float(torch.tensor(absent).double().log())
    ranked, order = flat[:, 0].double().sort(descending=True)
    hits = truth[order, 0].double()
    kept = hits.cumsum(0) + absent * (1 - hits).cumsum(0)
    f1 = 2 * hits.cumsum(0) / (kept + hits.sum())
    best = int(f1.argmax())
    cut = (ranked[best] + ranked[min(best + 1, len(ranked) - 1)]) / 2
    return slope, intercept, float(torch.sigmoid(cut * slope + intercept))
