"""The pictures of docs/concepts.md, drawn from a run of the demo's training.

``python benchmarks/concept_figures.py [--run DIR]`` trains as ``pvp-fast demo`` does (under a
minute on two cores; DIR keeps the run) and writes docs/figures: pseudo visual prompts from noise to
what was learned, sentences beside the prompts they are nearest to, and a reliability diagram.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import plots
import torch
from torch import Tensor

from pvp_fast import Backbone, TrainConfig, Vocabulary, build_corpus, train
from pvp_fast.demo import demo_set
from pvp_fast.evaluation import encode_set, read_folder
from pvp_fast.evaluation.calibrate import calibrate, score_images
from pvp_fast.files import atomic_write
from pvp_fast.modules.prompts import PseudoVisualPrompts
from pvp_fast.report.plots import write_plots
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.thresholds import Target

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
SHOWN = ("dog", "cat", "bicycle", "airplane", "zebra", "giraffe", "umbrella", "pizza")
# Written for this figure, not by the grammar that training reads.
SENTENCES = (
    "a puppy asleep beside a tabby",
    "two bikes leaning on a wall",
    "a jet far above the clouds",
    "stripes: three zebras at the water",
    "somebody holds a parasol over a pizza",
    "a tall giraffe looks down at a dog",
)


def prompts(start: Tensor, learned: Tensor) -> Any:
    """Two rows of pictures: noise, and what became of it."""
    figure, axes = plots.subplots(2, len(SHOWN), size=(9.4, 2.75))
    for column, name in enumerate(SHOWN):
        for row, (title, images) in enumerate((("step 0", start), ("learned", learned))):
            axis = axes[row, column]
            axis.imshow(images[column])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(name, loc="center")
            if column == 0:
                axis.set_ylabel(title)
    return figure


def matrix(cosines: Tensor) -> Any:
    """Sentences by prompts, the cosines as numbers on a scale that one colour makes."""
    figure, axis = plots.subplots(1, 1, size=(8.2, 3.0))
    image = axis.imshow(cosines, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(cosines.tolist()):
        for column, value in enumerate(values):
            ink = "white" if value > 0.55 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
    axis.set_xticks(range(len(SHOWN)), SHOWN)
    axis.set_yticks(range(len(SENTENCES)), SENTENCES)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="cosine", fraction=0.03)
    return figure


def save(figure: Any, path: Path) -> None:
    data = io.BytesIO()
    if path.suffix == ".svg":
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(data, format="jpeg", dpi=120, pil_kwargs={"quality": 85})
    with atomic_write(path) as stream:
        stream.write(data.getvalue())
    print(path)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of the run, used again if it is there")
    options = parser.parse_args()
    backbone, vocabulary = Backbone.load("pocket"), Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    config = TrainConfig.demo()
    with tempfile.TemporaryDirectory() as scratch, torch.enable_grad():
        artifact = train(backbone, corpus, options.run or Path(scratch) / "run", config)
    rows = [vocabulary.index(name) for name in SHOWN]
    noise = PseudoVisualPrompts(
        len(vocabulary),
        backbone.image_size,
        seed=config.visual.loop.seed,
        frequencies=config.visual.frequencies,
    )
    start = noise.images(backbone.preprocess)[rows, 0]
    pixels = backbone.preprocess.denormalize(artifact.training.pixels[rows, 0])
    learned = pixels.permute(0, 2, 3, 1)
    cosines = backbone.encode_text(SENTENCES) @ artifact.head.adapter.visual[rows, 0].T
    scenes = encode_set(backbone, read_folder(demo_set()))
    data = score_images(artifact, scenes)
    calibrated = calibrate(artifact, data, Target.parse("precision=0.9"), common=True)
    with tempfile.TemporaryDirectory() as scratch:
        diagram, _ = write_plots(calibrated, Path(scratch))
        with atomic_write(FIGURES / diagram.name) as stream:
            stream.write(diagram.read_bytes())
    import matplotlib

    with matplotlib.rc_context(plots.STYLE):
        save(prompts(start, learned), FIGURES / "prompts.jpg")
        save(matrix(cosines), FIGURES / "sentences.svg")


if __name__ == "__main__":
    main()
