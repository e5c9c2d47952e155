"""Tables and plots made from benchmarks/results/*.json, so that no number is typed by hand.

``python -m benchmarks.report`` rewrites what stands between ``<!-- table:NAME -->`` and
``<!-- /table -->`` in README.md and docs/, and the plots in docs/plots; ``--check`` only says
whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parent))
import plots

ROOT = Path(__file__).resolve().parent.parent
PLOTS = ROOT / "docs" / "plots"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table:(?P<name>\S+) -->\n)(?P<body>.*?)(<!-- /table -->)", re.DOTALL)

Cell = tuple[float, float]  # mean and standard deviation over seeds


def read(name: str, results: Path) -> Any:
    """A results file.

    Raises:
        InputError: it is missing or not JSON.
    """
    try:
        return json.loads((results / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{results / name}: {error}; measure it again") from error


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, *rows]
    text = [f"| {' | '.join(line)} |".replace("|  |", "| |", 1) for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]]) + "\n"


def with_best(names: list[str], columns: list[list[Cell]]) -> list[list[str]]:
    """Rows "mean ± deviation" with the best mean of each column in bold."""

    def shown(cell: Cell, best: float) -> str:
        middle, spread = cell
        text = f"{middle:.1f}" + (f" ± {spread:.1f}" if spread else "")
        return f"**{text}**" if middle == best else text

    bests = [max(middle for middle, _ in column) for column in columns]
    return [
        [name, *(shown(column[i], best) for column, best in zip(columns, bests, strict=True))]
        for i, name in enumerate(names)
    ]


def demo(results: Path) -> str:
    """The ladder of ``pvp-fast demo``."""
    ladder = read("demo.json", results)["ladder_mean_and_spread"]
    measures = ["mAP", "CF1@3", "OF1@3"]
    columns = [[tuple(rung[measure]) for rung in ladder.values()] for measure in measures]
    return markdown(["", *measures], with_best(list(ladder), columns))


def styles(results: Path) -> str:
    """mAP of every rung on every drawing style, over the seeds."""
    headings = {
        "seen": "styles seen",
        "twemoji": "Twemoji, never seen",
        "fxemoji": "FxEmoji, never seen",
    }
    whole = read("pocket_ladder.json", results)
    found = whole["styles"]
    columns = [
        [(mean(rung["map"]), stdev(rung["map"])) for rung in found[style]["rungs"]]
        for style in headings
    ]
    names = [rung["name"] for rung in found["seen"]["rungs"]]
    rows = with_best(names, columns)
    if whole.get("supervised", {}).get("map"):
        judged = whole["supervised"]
        name = f"linear classifier, {judged['scenes']:,} labelled scenes"
        rows.append([name, *(f"{judged['map'][style]:.1f}" for style in headings)])
    return markdown(["", *headings.values()], rows)


def few(results: Path) -> str:
    """mAP with 1 to 16 labelled images a category, over the seeds."""
    found = read("pocket_few.json", results)["map"]
    headings = {"twemoji": "Twemoji", "fxemoji": "FxEmoji"}
    views = read("pocket_few_views.json", results)["map"]
    names = (
        "text only",
        "adapt, unlabelled too",
        "adapt, 3 views",
        "adapt",
        "linear probe",
        "Tip-Adapter",
        "CoOp",
    )
    body = []
    for style, heading in headings.items():
        for count, row in found[style].items():
            row = row | views.get(style, {}).get(count, {})
            means = {name: mean(row[name]) for name in names if name in row}
            best = max(means.values())
            shown = {n: f"**{v:.1f}**" if v == best else f"{v:.1f}" for n, v in means.items()}
            body.append([f"{heading}, {count}", *(shown.get(name, "–") for name in names)])
    return markdown(["", *names], body)


def topk(results: Path) -> str:
    """Milliseconds of the top-k contenders at C = 100 000."""
    shown = {
        "ours float32": "**TagIndex float32**",
        "ours bfloat16": "**TagIndex bfloat16**",
        "ours int8": "**TagIndex int8**",
        "torch float32": "torch float32",
        "torch bfloat16": "torch bfloat16",
        "NumPy float32": "NumPy float32",
        "FAISS flat, BLAS": "FAISS flat (BLAS)",
        "FAISS SQ8": "FAISS SQ8",
        "usearch exact": "usearch exact",
    }
    rows = [r for r in read("bench_topk.json", results)["rows"] if r["categories"] == 100_000]
    header = ["", *(f"B = {row['batch']}" for row in rows)]
    body = [[title, *(f"{row['ms'][name]:.1f}" for row in rows)] for name, title in shown.items()]
    return markdown(header, body)


def losses(results: Path) -> str:
    """Milliseconds and memory of ours beside plain PyTorch, one line a case."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in read("bench_losses.json", results)["rows"]:
        if "ms" in row:
            regions = f" × {row['regions']}" if row["regions"] > 1 else ""
            size = (row["loss"], f"{row['rows']:,}{regions}", f"{row['categories']:,}")
            cases.setdefault(size, {})[row["contender"]] = row
    body = []
    for size, rows in cases.items():
        own = [name for name in ("pvp_fast", "pvp_fast, lists") if name in rows]
        others = ["PyTorch eager", "PyTorch compiled"]
        chosen = [rows.get(name) for name in (own[0], *others)]
        body.append(
            [
                *size,
                *("–" if row is None else f"{row['ms']:.2f}" for row in chosen),
                *("–" if row is None else f"{row['peak_bytes'] / 2**20:.1f}" for row in chosen),
            ]
        )
    header = ["loss", "B", "C", "ours, ms", "eager", "compiled", "ours, MiB", "eager", "compiled"]
    return markdown(header, body)


def encoder(results: Path) -> str:
    """Images per second from files to tags."""
    files = {
        "ViT-B/32": "bench_encoder_vit.json",
        "pocket model": "bench_encoder_pocket.json",
        "pocket model, two other busy processes": "bench_encoder_pocket_busy.json",
    }
    columns = {title: read(name, results)["contenders"] for title, name in files.items()}
    shown = {
        "streams, bfloat16": "**pvp_fast, bfloat16**",
        "streams, int8": "**pvp_fast, int8**",
        "streams": "**pvp_fast, float32**",
        "one batch at a time": "the same without streams",
        "open_clip, DataLoader": "open_clip behind a DataLoader",
        "ONNX Runtime, DataLoader": "ONNX Runtime behind a DataLoader",
        "transformers, zero-shot pipeline": "transformers' zero-shot pipeline",
    }

    def cell(column: dict[str, Any], name: str) -> str:
        return f"{column[name]['images_per_second']:.0f}" if name in column else "–"

    body = [
        [title, *(cell(column, name) for column in columns.values())]
        for name, title in shown.items()
        if any(name in column for column in columns.values())
    ]
    return markdown(["", *columns], body)


def parity(results: Path) -> str:
    """How far each way of reading images is from open_clip's transform."""
    body = [
        [
            name,
            f"{row['max_levels']:.0f}",
            f"{row['mean_levels']:.4f}",
            f"{row['lowest_cosine']:.5f}",
            f"{row['mean_cosine']:.5f}",
        ]
        for name, row in read("loader_parity.json", results)["loaders"].items()
    ]
    return markdown(["", "largest", "mean", "lowest cosine", "mean cosine"], body)


def scaling(results: Path) -> str:
    """How the time of each operation grows on the machine of scaling.json."""
    body = []
    for row in read("scaling.json", results)["time"]:
        sizes, even = row["sizes"], row["even"]
        body.append(
            [
                row["operation"],
                row["grows_with"],
                f"{sizes[0]:,} to {sizes[-1]:,}",
                f"{row['ms'][-1]:,.1f}",
                f"{abs(row['exponent']):.2f}",
                "–" if even is None else f"{even:,.0f}",
            ]
        )
    header = ["operation", "grows with", "sizes", "ms at the largest", "exponent", "knee"]
    return markdown(header, body)


def memory(results: Path) -> str:
    """How the peak memory of the losses grows."""
    body = []
    for row in read("scaling.json", results)["memory"]:
        sizes = row["sizes"]
        size = f"{sizes[0]:,} to {sizes[-1]:,}"
        peak = f"{row['bytes'][-1] / 2**20:,.1f}"
        body.append([row["operation"], row["grows_with"], size, peak, f"{row['exponent']:.2f}"])
    return markdown(["", "grows with", "sizes", "MiB at the largest", "exponent"], body)


DAY = 86_400_000.0  # milliseconds
CATEGORIES = 1_000_000
BILLION = 1_000_000_000  # images


def deployment(results: Path) -> str:
    """A billion images, a million categories, on machines like the one measured."""
    costs = read("scaling.json", results)["vit_b_32_ms"]
    million = read("bench_topk_1m.json", results)["rows"]
    large = max((r for r in million if r["categories"] == CATEGORIES), key=lambda r: r["batch"])
    parts = {
        "read and decode": costs["reading a 500 x 375 JPEG"],
        "encode, ViT-B/32 in float32": costs["image, float32"],
        "top-k of a million, bfloat16": large["ms"]["ours bfloat16"] / large["batch"],
    }
    parts["together"] = sum(parts.values())
    body = []
    for name, ms in parts.items():
        days = ms * BILLION / DAY
        body.append([name, f"{ms:.2f}", f"{days:,.0f}", f"{math.ceil(days / 7):,}"])
    return markdown(["", "ms an image", "days on one", "machines for a week"], body)


def storage(results: Path) -> str:
    """What lies in memory or on disk for it."""
    sizes = read("scaling.json", results)["index_bytes_a_category"]
    body = [
        [f"index of a million categories, {dtype}", f"{size * CATEGORIES / 1e9:.1f} GB"]
        for dtype, size in sizes.items()
    ]
    body.append(["embeddings of a billion images, float16", f"{BILLION * 512 * 2 / 1e12:.1f} TB"])
    return markdown(["", "D = 512"], body)


def training(results: Path) -> str:
    """A million categories learned at the default settings, ten sentences each."""
    from pvp_fast import TrainConfig
    from pvp_fast.modules.images import image_space

    costs, config, each = read("scaling.json", results)["vit_b_32_ms"], TrainConfig(), 10
    learned = math.prod(image_space(224, config.visual.frequencies).shape)
    images = 4 * learned * CATEGORIES / 1e12
    context = 4 * 512 * config.text.n_ctx * CATEGORIES / 1e9
    steps = {"stage 1": config.visual.loop.steps, "stage 2": config.text.loop.steps}
    days = {
        "stage 1": steps["stage 1"] * costs["visual prompt, forward and backward"],
        # Twice: without the transfer, which the ladder shows, and with it.
        "stage 2": 2 * steps["stage 2"] * costs["text prompt, forward and backward"],
    }
    body = [
        [
            f"{each} sentences a category, encoded once",
            f"{each * costs['sentence'] * CATEGORIES / DAY:,.1f}",
            f"{each * CATEGORIES * 512 * 2 / 1e9:.0f} GB of features",
        ],
        [
            f"stage 1, {steps['stage 1']} steps of every prompt",
            f"{days['stage 1'] * CATEGORIES / DAY:,.0f}",
            f"{4 * images:.1f} TB: images, gradients, two moments",
        ],
        [
            f"stage 2, {steps['stage 2']} steps, twice",
            f"{days['stage 2'] * CATEGORIES / DAY:,.0f}",
            f"{4 * context:.0f} GB, contexts of their own",
        ],
        [
            "labels (N, C), one byte each",
            "–",
            f"{each * CATEGORIES * CATEGORIES / 1e12:.0f} TB",
        ],
    ]
    return markdown(["", "days on one", "memory"], body)


def architectures(results: Path) -> str:
    """What works on each architecture of open_clip, and a sentence of totals above it."""
    data = read("architectures.json", results)
    rows = data["architectures"]
    seen = {name: row for name, row in rows.items() if "image_error" in row}
    shared = [name for name, row in seen.items() if "shared_blocks" in row]
    failed = [f"{name} ({row['failed']})" for name, row in rows.items() if "failed" in row]
    errors = [row[key] for row in seen.values() for key in ("image_error", "text_error")]
    prompts = sum("no_prompts" not in row for row in seen.values())
    regions = sum("no_regions" not in row for row in seen.values())
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    text = (
        f"{len(seen)} of {data['known']} architectures were built ({versions}). Both encoders "
        f"equal open_clip's, by at most {max(errors):.0e} in a unit row; prompts are learned on "
        f"{prompts}, regions exist on {regions}."
    )
    if shared:
        text += (
            " With one memory for the weights of like blocks, since all of them at once would "
            f"have been too much for the machine of this run: {', '.join(shared)}."
        )
    if failed:
        text += f" Not built: {', '.join(failed)}."
    lines = [
        [
            name,
            f"{row['parameters'] / 1e6:.0f}",
            "x".join(str(side) for side in row["image_size"]),
            str(row["context_length"]),
            f"{row['image_error']:.0e}, {row['text_error']:.0e}",
            row.get("no_prompts", "yes"),
            row.get("no_regions") or str(row["regions"]),
            f"{row['image_seconds'] * 1000:.0f}" + (" (bfloat16)" if "image_dtype" in row else ""),
            f"{row['text_seconds'] * 1000:.0f}",
            row["picture"].removesuffix(f" of {name}").removesuffix(f" of {name} are published"),
        ]
        for name, row in seen.items()
    ]
    header = ["architecture", "million weights", "pixels", "tokens", "difference, image and text",
              "prompts", "regions", "ms an image", "ms a text", "its picture is"]  # fmt: skip
    return f"{text}\n\n{markdown(header, lines)}"


TABLES: dict[str, Callable[[Path], str]] = {
    "demo": demo,
    "styles": styles,
    "few": few,
    "topk": topk,
    "losses": losses,
    "encoder": encoder,
    "parity": parity,
    "scaling": scaling,
    "memory": memory,
    "deployment": deployment,
    "storage": storage,
    "training": training,
    "architectures": architectures,
}


def update(text: str, results: Path = RESULTS) -> str:
    """The text with every marked table made anew.

    Raises:
        InputError: a marker that names no table or is not closed, or results that are missing.
    """

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise InputError(f"table:{name} is none of {', '.join(TABLES)}")
        if "<!-- table:" in found["body"]:
            raise InputError(f"table:{name} is not closed by <!-- /table -->")
        return found[1] + TABLES[name](results) + found[4]

    made = BLOCK.sub(table, text)
    if text.count("<!-- table:") != len(BLOCK.findall(text)):
        raise InputError("a table marker is not closed by <!-- /table -->")
    return made


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail where it would")
    options = parser.parse_args()
    changed = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        made = update(text)
        if made != text:
            changed.append(path)
            if not options.check:
                with atomic_write(path, "w") as stream:
                    stream.write(made)
    for name in plots.stale(RESULTS, PLOTS):
        path = PLOTS / f"{name}.svg"
        changed.append(path)
        if options.check:
            continue
        if not plots.measured(name, RESULTS):
            path.unlink()
            continue
        with atomic_write(path, "w") as stream:
            stream.write(plots.svg(name, RESULTS))
    for path in changed:
        state = "differs from benchmarks/results" if options.check else "made anew"
        print(f"{path.relative_to(ROOT)} {state}")
    if options.check and changed:
        print("run python -m benchmarks.report")
        return 1
    if not changed:
        print("README.md and docs/ agree with benchmarks/results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
