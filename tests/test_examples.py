"""Every example runs as a user would run it, and ends with what it promises."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

FEW_STEPS = """\
from pvp_fast import TrainConfig
from pvp_fast.cli.train import make_config
few = make_config("demo", seed=0, steps="2")
TrainConfig.demo = staticmethod(lambda: few)"""

# One after the other, in the one process that all of them share to save its start.
EACH = """\
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script]
    print("==", script)
    runpy.run_path(script, run_name="__main__")"""


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each script printed. The first measures the peak of the process's memory."""
    scripts = ["custom_loss.py", "from_open_clip.py"]
    if importlib.util.find_spec("matplotlib") is not None:
        scripts.append("names_to_tags.py")
    done = subprocess.run(
        [sys.executable, "-c", EACH, *(str(EXAMPLES / name) for name in scripts)],
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = (part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    return {Path(script).name: rest for script, rest in parts}


@pytest.fixture(scope="module")
def notebook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook", EXAMPLES / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_names_to_tags(printed: str) -> dict[str, float]:
    """The mAP of each rung that was printed."""
    assert "the others' scores the same: True" in printed
    rungs = re.findall(r"^(\S.*?)  +(\d+\.\d) ", printed, re.MULTILINE)
    return {name: float(value) for name, value in rungs}


def test_from_open_clip(printed: dict[str, str]) -> None:
    assert "150 images, 70 categories" in printed["from_open_clip.py"]


def test_custom_loss(printed: dict[str, str]) -> None:
    scores = re.findall(r"mAP (\S+) on 150 scenes", printed["custom_loss.py"])
    assert float(scores[1]) > float(scores[0]) + 0.03


def test_the_notebook_is_the_script(notebook: ModuleType) -> None:
    stored = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    written = notebook.cells(notebook.SCRIPT.read_text(encoding="utf-8"))
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in stored]
    assert found == written, "run python examples/notebook.py"
    pictures = [out for cell in stored for out in cell.get("outputs", ()) if "data" in out]
    assert len(pictures) == 2


def test_names_to_tags_as_a_notebook(
    notebook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own shows the pictures
    pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install nbclient ipykernel")
    built = notebook.build(notebook.SCRIPT.read_text(encoding="utf-8"))
    # Its cells are the script's, which is run with all its steps below.
    built.cells[0].update(cell_type="code", source=FEW_STEPS, outputs=[], execution_count=None)
    done = notebook.run(built, str(tmp_path))
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "text prompts + transfer" in check_names_to_tags(text)
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 2


def test_names_to_tags_as_a_script(printed: dict[str, str]) -> None:
    pytest.importorskip("matplotlib")
    rungs = check_names_to_tags(printed["names_to_tags.py"])
    assert rungs["text prompts + transfer"] > rungs["zero-shot CLIP"] + 5
