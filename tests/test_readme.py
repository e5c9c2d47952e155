"""The tables and plots of README.md and docs/ are those of benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from pvp_fast.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_results_agree(report: ModuleType) -> None:
    documents = report.documents()
    assert len(documents) > 10
    for path in documents:
        text = path.read_text(encoding="utf-8")
        assert report.update(text) == text, f"{path}: run python -m benchmarks.report"


def test_plots_and_results_agree(report: ModuleType) -> None:
    assert report.plots.stale(report.RESULTS, report.PLOTS) == []
    assert len(list(report.PLOTS.glob("*.svg"))) >= 5


def test_a_plot_of_other_numbers_is_found(report: ModuleType, tmp_path: Path) -> None:
    for name in ("pocket_ladder.json", "bench_training.json"):
        shutil.copy(report.RESULTS / name, tmp_path)
    plots = tmp_path / "plots"
    plots.mkdir()
    for name in ("ladder", "training", "calibration"):
        shutil.copy(report.PLOTS / f"{name}.svg", plots)
    # The results of "calibration" are gone.
    assert report.plots.stale(tmp_path, plots) == ["calibration"]
    changed = json.loads((tmp_path / "bench_training.json").read_text())
    changed["milliseconds"]["stage 1"] += 0.1
    (tmp_path / "bench_training.json").write_text(json.dumps(changed))
    assert report.plots.stale(tmp_path, plots) == ["calibration", "training"]


def test_a_plot_is_drawn_the_same_twice_and_carries_its_hash(
    report: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    size = {"loss": "asl", "rows": 64, "regions": 1, "width": 8}
    rows = [
        {**size, "categories": c, "contender": name, "ms": c / 100, "peak_bytes": 1024 * c}
        for name in ("pvp_fast", "PyTorch eager")
        for c in (20, 80)
    ]
    rows.append({**size, "categories": 20, "contender": "PyTorch compiled", "skipped": "no g++"})
    rows += [row | {"loss": "ranking"} for row in rows]
    (tmp_path / "bench_losses.json").write_text(json.dumps({"rows": rows}))
    first = report.plots.svg("losses", tmp_path)
    assert first == report.plots.svg("losses", tmp_path)
    (tmp_path / "losses.svg").write_text(first)
    assert report.plots.stale(tmp_path, tmp_path) == []
    assert "times eager's speed" in first


def test_a_number_typed_by_hand_does_not_survive(report: ModuleType, tmp_path: Path) -> None:
    ladder = {
        "plain": {"mAP": [50.04, 0.0], "CF1@3": [60.0, 1.0], "OF1@3": [1.0, 0.0]},
        "better": {"mAP": [51.0, 0.26], "CF1@3": [59.0, 1.0], "OF1@3": [1.0, 0.0]},
    }
    (tmp_path / "demo.json").write_text(json.dumps({"ladder_mean_and_spread": ladder}))
    text = "before\n<!-- table:demo -->\n| typed |\n<!-- /table -->\nafter\n"
    made = report.update(text, tmp_path)
    assert made == (
        "before\n<!-- table:demo -->\n"
        "| | mAP | CF1@3 | OF1@3 |\n|---|---|---|---|\n"
        "| plain | 50.0 | **60.0 ± 1.0** | **1.0** |\n"
        "| better | **51.0 ± 0.3** | 59.0 ± 1.0 | **1.0** |\n"
        "<!-- /table -->\nafter\n"
    )
    assert report.update(made, tmp_path) == made


def test_table_of_losses(report: ModuleType, tmp_path: Path) -> None:
    size = {"loss": "asl", "rows": 4096, "regions": 1, "categories": 80, "width": 768}
    rows = [
        {**size, "contender": "pvp_fast", "ms": 1.25, "peak_bytes": 2**20},
        {**size, "contender": "PyTorch eager", "ms": 9.0, "peak_bytes": 8 * 2**20},
        {**size, "contender": "PyTorch compiled", "skipped": "no compiler"},
    ]
    (tmp_path / "bench_losses.json").write_text(json.dumps({"rows": rows}))
    assert report.losses(tmp_path).splitlines()[2] == (
        "| asl | 4,096 | 80 | 1.25 | 9.00 | – | 1.0 | 8.0 | – |"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:speed -->\n<!-- /table -->", "none of demo"),
        ("<!-- table:demo -->\n| | mAP |\n", "not closed"),
        ("<!-- table:demo -->\n<!-- table:topk -->\n<!-- /table -->", "not closed"),
        ("<!-- table:demo -->\n<!-- /table -->", "measure it again"),
    ],
)
def test_markers_that_mean_nothing(
    report: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        report.update(text, tmp_path)
