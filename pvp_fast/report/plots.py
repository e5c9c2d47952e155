"""Calibration as pictures for papers and slides, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write

if TYPE_CHECKING:
    from pvp_fast.evaluation import UnlabelledCalibration
    from pvp_fast.evaluation.calibrate import Calibration

GREEN, GREY, INK = "#1f6f54", "#9a948a", "#66625b"


def require_matplotlib() -> Any:
    """matplotlib's Figure; it draws without a display and without global state.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plots need matplotlib; install it with: pip install 'pvp_fast[plots]'"
        ) from error
    return Figure


def write_plots(result: Calibration, folder: Path) -> tuple[Path, Path]:
    """Write ``reliability.png`` and ``categories.png``.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for name, diagram, colour in (("before", result.before, GREY), ("after", result.after, GREEN)):
        some = diagram.count > 0
        axes.plot(
            diagram.chance[some].tolist(),
            diagram.share[some].tolist(),
            color=colour,
            marker="o",
            markersize=4,
            label=f"{name}, ECE {100 * diagram.ece:.2f} %",
        )
    axes.set(xlabel="probability", ylabel="how often it is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    first = _save(figure, folder / "reliability.png")

    names, counts = result.artifact.vocabulary.names, result.counts
    figure = require_matplotlib()(figsize=(6, 1 + 0.19 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(names))
    axes.barh(rows, counts.present.tolist(), color="#e4e0d8", label="present")
    axes.barh(rows, counts.kept.tolist(), height=0.5, color=GREY, label="kept")
    axes.barh(rows, counts.right.tolist(), height=0.5, color=GREEN, label="kept and right")
    # A name may hold a dollar sign, which matplotlib would read as mathematics.
    axes.set_yticks(rows, names, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_title(f"target {result.target}, out of fold", color=INK, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
    return first, _save(figure, folder / "categories.png")


def write_unlabelled(result: UnlabelledCalibration, folder: Path) -> Path:
    """Write ``scores.png``: all scores, what absent categories alone would give, the threshold.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    centres, entries, absent = result.histogram.T.tolist()
    width = centres[1] - centres[0]
    axes.bar(centres, entries, width, color="#e4e0d8", label="scores")
    axes.plot(centres, absent, color=GREY, label="of absent categories, expected")
    probability = float(result.artifact.head.thresholds[0])
    cut = (math.log(probability / (1 - probability)) - result.shift) / result.scale
    low, high = (100 * end for end in result.interval)
    axes.axvline(
        cut,
        color=GREEN,
        label=f"threshold: {100 * result.precision:.0f} % ({low:.0f} to {high:.0f}) right",
    )
    axes.set(yscale="log", ylim=(0.5, None), xlabel="logit before", ylabel="entries")
    axes.set_title(f"target {result.target}", color=INK, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, folder / "scores.png")


def _save(figure: Any, path: Path) -> Path:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    with atomic_write(path) as out:
        out.write(stream.getvalue())
    return path
