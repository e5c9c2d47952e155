"""The documentation's plots from benchmarks/results/*.json, see benchmarks/report.py.

A plot is a function that picks what is drawn out of the results and one that draws it. The SVG
carries a hash of what was picked and of this file, so that a stale plot is found without drawing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

Data = dict[str, Any]
HASH = re.compile(r"data sha256:([0-9a-f]{64})")

# Okabe and Ito's colours, told apart by every kind of colour vision; markers tell the same again.
BLUE, ORANGE, GREEN, RED, PINK, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
)  # fmt: skip
GREY = "#767676"
STYLE = {
    "svg.hashsalt": "pvp_fast",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.markersize": 5,
}


def read(results: Path, name: str) -> Any:
    return json.loads((results / name).read_text(encoding="utf-8"))


# --- top-k ------------------------------------------------------------------------------------

# contender in the results: label, colour, marker, dashes
TOPK = {
    "ours float32": ("TagIndex float32", BLUE, "o", "-"),
    "ours bfloat16": ("TagIndex bfloat16", GREEN, "s", "-"),
    "ours int8": ("TagIndex int8", RED, "D", "-"),
    "torch float32": ("torch float32", SKY, "^", "--"),
    "torch bfloat16": ("torch bfloat16", ORANGE, "v", "--"),
    "NumPy float32": ("NumPy float32", PINK, "<", "--"),
    "FAISS flat, BLAS": ("FAISS flat (BLAS)", GREY, "P", ":"),
    "FAISS SQ8": ("FAISS SQ8", GREY, "X", ":"),
    "usearch exact": ("usearch exact", GREY, "*", ":"),
}


def topk_speed_data(results: Path) -> Data:
    points: dict[str, dict[str, list[list[float]]]] = {}
    for name in ("bench_topk_small.json", "bench_topk.json", "bench_topk_1m.json"):
        for row in read(results, name)["rows"]:
            for contender, ms in row["ms"].items():
                if contender in TOPK and row["batch"] in (1, 256):
                    lines = points.setdefault(str(row["batch"]), {})
                    lines.setdefault(contender, []).append([row["categories"], ms])
    return points


def draw_topk_speed(data: Data) -> Any:
    figure, axes = subplots(1, 2, size=(9.4, 3.9), sharey=True)
    for axis, (batch, lines) in zip(axes, data.items(), strict=True):
        for name, (label, colour, marker, dashes) in TOPK.items():
            if name in lines:
                x, y = zip(*lines[name], strict=True)
                width = 2.0 if dashes == "-" else 1.2
                axis.plot(x, y, dashes, color=colour, marker=marker, lw=width, label=label)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="categories C",
            title=f"B = {batch} {'query' if batch == '1' else 'queries'}",
        )
    axes[0].set_ylabel("milliseconds a call")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def topk_roofline_data(results: Path) -> Data:
    found = read(results, "bench_topk.json")
    points: dict[str, list[list[float]]] = {}
    for row in found["rows"]:
        work = 2.0 * row["batch"] * row["categories"] * row["width"]
        for dtype, ours in row["ours"].items():
            intensity = ours["gflops"] / ours["gb_per_s"]
            points.setdefault(f"ours {dtype}", []).append([intensity, ours["gflops"]])
            if (other := f"torch {dtype}") in row["ms"]:
                points.setdefault(other, []).append([intensity, work / row["ms"][other] / 1e6])
    return {"peaks": found["peaks"], "points": points}


def draw_topk_roofline(data: Data) -> Any:
    figure, axis = subplots(1, 1, size=(7.2, 4.3))
    peaks, low, high = data["peaks"], 0.3, 1000.0
    kinds = {
        "float32": ("float32_gflops", BLUE, "o"),
        "bfloat16": ("bfloat16_gflops", GREEN, "s"),
        "int8": ("int8_gops", RED, "D"),
    }
    kinds = {dtype: kind for dtype, kind in kinds.items() if peaks[kind[0]] is not None}
    top = max(peaks[key] for key, _, _ in kinds.values())
    bandwidth = peaks["bandwidth_gb"]
    axis.plot([low, top / bandwidth], [low * bandwidth, top], color=GREY, lw=1.2)
    axis.annotate(
        f"memory, {bandwidth:.0f} GB/s", (1.9, 1.9 * bandwidth), (-92, 4), color=GREY,
        textcoords="offset points",
    )  # fmt: skip
    for dtype, (key, colour, marker) in kinds.items():
        knee = peaks[key] / bandwidth
        axis.plot([knee, high], [peaks[key]] * 2, color=colour, lw=1.2)
        axis.annotate(
            f"{dtype} peak, {peaks[key]:.0f}", (knee, peaks[key]), (4, 3), color=colour,
            textcoords="offset points",
        )  # fmt: skip
        for name, filled in ((f"ours {dtype}", True), (f"torch {dtype}", False)):
            if name in data["points"]:
                x, y = zip(*data["points"][name], strict=True)
                face = colour if filled else "white"
                label = name.replace("ours", "TagIndex")
                axis.plot(x, y, marker, color=colour, mfc=face, ms=7, label=label)
    rates = [rate for points in data["points"].values() for _, rate in points]
    axis.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(0.7 * min(rates), 1.6 * max(top, *rates)),
        xlabel="operations a byte of class vectors",
        ylabel="billion operations a second",
    )
    axis.legend(loc="lower right")
    return figure


# --- losses -----------------------------------------------------------------------------------

# PyTorch eager is the line at 1.
LOSS_LINES = {
    "pvp_fast": ("pvp_fast", BLUE, "o", "-"),
    "pvp_fast, lists": ("pvp_fast, labels as lists", GREEN, "s", "-"),
    "PyTorch eager": ("PyTorch eager", ORANGE, "^", "--"),
    "PyTorch compiled": ("PyTorch compiled", PINK, "v", "--"),
}


def losses_data(results: Path) -> Data:
    """For each loss and contender [C, B, times eager's speed, share of eager's memory]."""
    cases: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in read(results, "bench_losses.json")["rows"]:
        if "ms" in row and row["contender"] in LOSS_LINES and row["loss"] not in ("siglip", "clip"):
            case = (row["loss"], row["categories"], row["rows"])
            cases.setdefault(case, {})[row["contender"]] = row
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for (loss, categories, rows), of in sorted(cases.items()):  # the largest B of a C is kept
        eager = of.get("PyTorch eager")
        if eager is None:
            continue
        for name in LOSS_LINES.keys() & of.keys() - {"PyTorch eager"}:
            speed = eager["ms"] / of[name]["ms"]
            memory = of[name]["peak_bytes"] / eager["peak_bytes"]
            lines = found.setdefault(loss, {}).setdefault(name, {})
            lines[categories] = [categories, rows, speed, memory]
    return {
        loss: {name: list(lines[name].values()) for name in LOSS_LINES if name in lines}
        for loss, lines in found.items()
    }


def draw_losses(data: Data) -> Any:
    size = (2.0 * len(data) + 1.2, 4.6)
    figure, axes = subplots(2, len(data), size=size, sharex="col", sharey="row", squeeze=False)
    for column, (loss, lines) in zip(axes.T, data.items(), strict=True):
        for name, points in lines.items():
            label, colour, marker, dashes = LOSS_LINES[name]
            x, _, speed, memory = zip(*points, strict=True)
            for axis, y in zip(column, (speed, [100 * m for m in memory]), strict=True):
                axis.plot(x, y, dashes, color=colour, marker=marker, label=label)
        column[0].set_title(loss)
        column[1].set_xlabel("categories C")
        for axis, equal in zip(column, (1.0, 100.0), strict=True):
            axis.axhline(equal, color=GREY, lw=1, ls="--")
            axis.set(xscale="log")
    axes[0, 0].set(ylabel="times eager's speed", ylim=(0, None))
    axes[1, 0].set(ylabel="% of eager's memory", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


MEMORY_LINES = {
    "ASL loss": ("ASL, pvp_fast", BLUE, "o", "-"),
    "ranking loss": ("ranking, pvp_fast", GREEN, "s", "-"),
    "ASL loss, plain PyTorch": ("ASL, PyTorch", ORANGE, "^", "--"),
    "ranking loss, plain PyTorch": ("ranking, PyTorch", PINK, "v", "--"),
}


def memory_data(results: Path) -> Data:
    found = read(results, "scaling.json")["memory"]
    return {
        row["operation"]: [[n, b / 2**20] for n, b in zip(row["sizes"], row["bytes"], strict=True)]
        for row in found
        if row["grows_with"] == "C"
    }


def draw_memory(data: Data) -> Any:
    figure, axis = subplots(1, 1, size=(6.4, 3.4))
    for name, (label, colour, marker, dashes) in MEMORY_LINES.items():
        x, y = zip(*data[name], strict=True)
        axis.plot(x, y, dashes, color=colour, marker=marker, label=label)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="categories C",
        ylabel="peak MiB of loss and gradients",
        title="B = 256, D = 256, float32",
    )
    axis.legend()
    return figure


# --- accuracy ---------------------------------------------------------------------------------

STYLES = {
    "seen": ("styles seen in CLIP's training", BLUE, "o"),
    "twemoji": ("Twemoji, never seen", RED, "s"),
    "fxemoji": ("FxEmoji, never seen", GREEN, "D"),
}


def ladder_data(results: Path) -> Data:
    found = read(results, "pocket_ladder.json")["styles"]
    return {
        style: [[r["name"], mean(r["map"]), stdev(r["map"])] for r in found[style]["rungs"]]
        for style in STYLES
    }


def draw_ladder(data: Data) -> Any:
    figure, axes = subplots(1, 3, size=(9.4, 2.9), sharey=True)
    for axis, (style, (title, colour, marker)) in zip(axes, STYLES.items(), strict=True):
        names, middle, spread = zip(*data[style], strict=True)
        y = list(range(len(names)))[::-1]
        axis.axvline(middle[0], color=GREY, lw=1, ls="--")
        axis.hlines(y, middle[0], middle, color=colour, lw=2, alpha=0.35)
        axis.errorbar(middle, y, xerr=spread, fmt=marker, color=colour, capsize=3, ms=6)
        for place, value in zip(y, middle, strict=True):
            axis.annotate(f"{value:.1f}", (value, place), (0, 6), textcoords="offset points",
                          ha="center", fontsize=8)  # fmt: skip
        edge = 0.14 * (max(middle) - min(middle))
        axis.set(
            yticks=y,
            yticklabels=names,
            title=title,
            xlabel="mAP, %",
            xlim=(min(middle) - edge, max(middle) + edge),
            ylim=(-0.6, len(y) - 0.3),
        )
        axis.grid(axis="y", visible=False)
    return figure


# method in the results: label, colour, marker, dashes
FEW = {
    "text only": ("text only", GREY, "", "--"),
    "adapt, unlabelled too": ("adapt, images without labels too", BLUE, "o", "-"),
    "adapt": ("adapt", GREEN, "s", "-"),
    "linear probe": ("linear probe", ORANGE, "^", "--"),
    "Tip-Adapter": ("Tip-Adapter", PINK, "v", "--"),
    "CoOp": ("CoOp", RED, "X", ":"),
}
FEW_STYLES = {"twemoji": "Twemoji", "fxemoji": "FxEmoji"}


def _few_lines(results: Path, name: str, number: re.Pattern[str]) -> Data:
    """style -> method -> [number in the case's name, mean, deviation]; what was measured."""
    found = read(results, name)["map"]
    lines: Data = {}
    for style in FEW_STYLES.keys() & found.keys():
        for case, row in found[style].items():
            if match := number.search(case):
                for method in FEW:
                    cell = [float(match[1]), mean(row[method]), stdev(row[method])]
                    lines.setdefault(style, {}).setdefault(method, []).append(cell)
    return {style: lines[style] for style in FEW_STYLES if style in lines}


def few_data(results: Path) -> Data:
    return _few_lines(results, "pocket_few.json", re.compile(r"^(\d+) a category$"))


def known_data(results: Path) -> Data:
    return _few_lines(results, "pocket_few_known.json", re.compile(r"(\d+) % known$"))


def _draw_few(data: Data, xlabel: str) -> Any:
    figure, axes = subplots(1, len(data), size=(9.4, 3.6), sharey=True, squeeze=False)
    for axis, (style, lines) in zip(axes[0], data.items(), strict=True):
        for method, (label, colour, marker, dashes) in FEW.items():
            x, y, spread = zip(*lines[method], strict=True)
            width = 2.0 if dashes == "-" else 1.2
            axis.errorbar(x, y, yerr=spread, ls=dashes, color=colour, marker=marker, lw=width,
                          capsize=2, label=label)  # fmt: skip
        axis.set(title=f"{FEW_STYLES[style]}, never seen", xlabel=xlabel, xticks=x)
    axes[0, 0].set_ylabel("mAP, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def draw_few(data: Data) -> Any:
    figure = _draw_few(data, "labelled images a category")
    for axis in figure.axes:
        ticks = axis.get_xticks()
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    return figure


def draw_known(data: Data) -> Any:
    return _draw_few(data, "labels known, %, of 4 images a category")


CALIBRATION = {
    "sentences, out of fold": ("sentences", "the same sentences, out of fold", BLUE, "o"),
    "sentences -> new sentences": ("sentences", "new sentences", SKY, "s"),
    "sentences -> images": ("sentences", "images", RED, "X"),
    "35 images -> the other 115": ("35 images", "115 other images", ORANGE, "v"),
    "120 images, out of fold": ("120 images", "the same images, out of fold", GREEN, "D"),
}


def calibration_data(results: Path) -> Data:
    found = read(results, "pocket_calibration.json")["percent"]
    return {
        target: {
            name: {
                m: [mean(v), stdev(v)] for m, v in values.items() if m in ("precision", "recall")
            }
            for name in CALIBRATION
            for values in [found[f"precision={target}: {name}"]]
        }
        for target in ("0.8", "0.9")
    }


def draw_calibration(data: Data) -> Any:
    figure, axes = subplots(1, 2, size=(9.4, 3.0), sharey=True)
    y = list(range(len(CALIBRATION)))[::-1]
    labels = [f"from {source}, on {judged}" for source, judged, _, _ in CALIBRATION.values()]
    for axis, (target, rows) in zip(axes, data.items(), strict=True):
        wanted = 100 * float(target)
        axis.axvline(wanted, color="black", lw=1.2)
        for place, (name, (_, _, colour, marker)) in zip(y, CALIBRATION.items(), strict=True):
            (precision, p_sd), (recall, r_sd) = rows[name]["precision"], rows[name]["recall"]
            axis.errorbar(precision, place, xerr=p_sd, fmt=marker, color=colour, ms=7, capsize=3)
            axis.errorbar(recall, place - 0.25, xerr=r_sd, fmt=marker, color=colour, mfc="white",
                          ms=5, capsize=2, lw=0.8)  # fmt: skip
        axis.set(yticks=y, yticklabels=labels, xlim=(25, 103), ylim=(-0.7, len(y) - 0.4),
                 xlabel="%: precision (filled), recall (hollow)",
                 title=f"target: precision {wanted:.0f} % (line)")  # fmt: skip
        axis.grid(axis="y", visible=False)
    return figure


def training_data(results: Path) -> Data:
    ms = read(results, "bench_training.json")["milliseconds"]
    return {name: value for name, value in ms.items() if name.startswith("stage 1")}


def draw_training(data: Data) -> Any:
    figure, axis = subplots(1, 1, size=(7.2, 1.9))
    names = list(data)
    y = list(range(len(names)))[::-1]
    colours = [GREY if "plain" in name or "own" in name else BLUE for name in names]
    axis.barh(y, list(data.values()), color=colours, height=0.62)
    for place, value in zip(y, data.values(), strict=True):
        axis.annotate(f"{value:.0f} ms", (value, place), (4, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    axis.set(yticks=y, yticklabels=names, xlabel="milliseconds a step",
             xlim=(0, 1.12 * max(data.values())))  # fmt: skip
    axis.grid(axis="y", visible=False)
    return figure


# --- files ------------------------------------------------------------------------------------


class Plot(NamedTuple):
    """The results it needs, what it shows of them, and how it draws that."""

    needs: tuple[str, ...]
    data: Callable[[Path], Data]
    draw: Callable[[Data], Any]


PLOTS = {
    "topk-speed": Plot(
        ("bench_topk_small.json", "bench_topk.json", "bench_topk_1m.json"),
        topk_speed_data,
        draw_topk_speed,
    ),
    "topk-roofline": Plot(("bench_topk.json",), topk_roofline_data, draw_topk_roofline),
    "losses": Plot(("bench_losses.json",), losses_data, draw_losses),
    "memory": Plot(("scaling.json",), memory_data, draw_memory),
    "ladder": Plot(("pocket_ladder.json",), ladder_data, draw_ladder),
    "few": Plot(("pocket_few.json",), few_data, draw_few),
    "known": Plot(("pocket_few_known.json",), known_data, draw_known),
    "calibration": Plot(("pocket_calibration.json",), calibration_data, draw_calibration),
    "training": Plot(("bench_training.json",), training_data, draw_training),
}


def subplots(rows: int, columns: int, *, size: tuple[float, float], **options: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)


def fingerprint(data: Data) -> str:
    text = json.dumps(data, sort_keys=True) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def measured(name: str, results: Path) -> bool:
    """Whether the results are there that a plot needs."""
    return all((results / need).exists() for need in PLOTS[name].needs)


def stale(results: Path, folder: Path) -> list[str]:
    """Names of the plots that a redraw would change. Without its results there is no plot."""
    found = []
    for name, plot in PLOTS.items():
        target = folder / f"{name}.svg"
        if not measured(name, results):
            found += [name] if target.exists() else []
            continue
        kept = HASH.search(target.read_text(encoding="utf-8")) if target.exists() else None
        if kept is None or kept[1] != fingerprint(plot.data(results)):
            found.append(name)
    return found


def svg(name: str, results: Path) -> str:
    """The plot as SVG; the same results give the same text."""
    import matplotlib
    from matplotlib import pyplot

    data = PLOTS[name].data(results)
    with matplotlib.rc_context(STYLE):
        figure = PLOTS[name].draw(data)
        text = io.StringIO()
        about = {"Date": None, "Creator": None, "Description": f"data sha256:{fingerprint(data)}"}
        figure.savefig(text, format="svg", metadata=about)
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
