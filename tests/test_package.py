"""The package as a whole: its version, its public names, the cost of importing it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pvp_fast


def run_python(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter, away from this checkout."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_version_matches_the_metadata() -> None:
    assert pvp_fast.__version__ == importlib.metadata.version("pvp_fast")


def test_pythons_are_the_same_wherever_they_are_named() -> None:
    root = Path(__file__).resolve().parent.parent
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'Python :: 3\.(\d+)"', project)
    assert f'requires-python = ">=3.{named[0]}"' in project
    builds = re.search(r'^build = "(.*)"$', project, re.MULTILINE)
    assert builds is not None
    assert builds[1].split() == [f"cp3{minor}-*" for minor in named]
    for page, between in (("README.md", "–"), ("docs/how-to/install.md", " to ")):
        said = f"Python 3.{named[0]}{between}3.{named[-1]}"
        assert said in (root / page).read_text(encoding="utf-8"), page


def test_public_names_load_and_are_all_there_is() -> None:
    for name in pvp_fast.__all__:
        assert getattr(pvp_fast, name) is not None
    assert set(pvp_fast.__all__) <= set(dir(pvp_fast))


def test_import_is_cheap_and_core_modules_need_nothing_of_the_others() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import pvp_fast
print(sorted(set(sys.modules) - before))
absent = "open_clip torchvision nvidia.dali rich typer httpx simplemma tensorboard transformers"
for name in [*absent.split(), "triton"]:
    assert name not in sys.modules
    sys.modules[name] = None  # makes any import of it fail
import pvp_fast.losses, pvp_fast.topk, pvp_fast.metrics, pvp_fast.modules
import pvp_fast.vocabulary, pvp_fast.tagging, pvp_fast.training, pvp_fast.clip.backbone
import pvp_fast.modules.prompts, pvp_fast.modules.adapters
print("ok")
"""
    assert run_python(code) == "['pvp_fast']\nok"


def test_what_is_installed_is_the_package_and_nothing_else() -> None:
    files = importlib.metadata.files("pvp_fast") or []
    names = {file.as_posix() for file in files}
    if not any(name.startswith("pvp_fast/losses/") for name in names):
        pytest.skip("an editable install lists no files of the package")
    tops = {name.split("/")[0] for name in names if not name.startswith("..")}
    assert {top.split("-")[0] for top in tops} == {"pvp_fast"}
    for wanted in (
        "pvp_fast/py.typed",
        "pvp_fast/_C.pyi",
        "pvp_fast/kernels/__init__.py",
        "pvp_fast/vocabulary/builtin/coco80.yaml",
        "pvp_fast/clip/weights/pocket.safetensors",
        "pvp_fast/report/template.html",
    ):
        assert wanted in names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".cuh"))]
