"""Tables and plots made from benchmarks/results/*.json, so that no number is typed by hand.

``python -m benchmarks.report`` rewrites what stands between ``<!-- table:NAME -->`` and
``<!-- /table -->`` in README.md and docs/, and the plots in docs/plots; ``--check`` only says
whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
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
    found = read("pocket_ladder.json", results)["styles"]
    columns = [
        [(mean(rung["map"]), stdev(rung["map"])) for rung in found[style]["rungs"]]
        for style in headings
    ]
    names = [rung["name"] for rung in found["seen"]["rungs"]]
    return markdown(["", *headings.values()], with_best(names, columns))


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


TABLES: dict[str, Callable[[Path], str]] = {
    "demo": demo,
    "styles": styles,
    "topk": topk,
    "losses": losses,
    "parity": parity,
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
