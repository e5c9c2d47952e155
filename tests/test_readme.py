"""The README's measured tables are those of benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
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


def test_readme_and_results_agree(report: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.update(text) == text, "run python -m benchmarks.report"


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
