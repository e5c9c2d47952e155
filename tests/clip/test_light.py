"""What a command loads: --help no torch, the pocket model neither compiler nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from support.waiting import PATIENCE

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.names.zero_shot import head_of, one_line
from pvp_fast.vocabulary.categories import Category, Vocabulary

PROGRAM = """
import json, sys
from pvp_fast.cli import run
code = run(sys.argv[1:])
heavy = ("torch", "torch._dynamo", "torch._meta_registrations", "transformers", "timm", "open_clip",
         "torchvision.models", "torchvision.datasets", "huggingface_hub", "PIL")
print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


def loaded(*words: str) -> list[str]:
    """The heavy ones of the modules that a command line has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=PATIENCE
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return list(modules)


def test_help_loads_no_torch() -> None:
    assert loaded("tag", "--help") == []


def test_tagging_by_the_pocket_model_loads_what_it_uses() -> None:
    scene = str(demo_set() / "scene_000.jpg")
    line = ("tag", "--vocabulary", "pocket70", "--model", "pocket", scene)
    loaded(*line)  # makes the artifact
    assert loaded(*line) == ["torch", "open_clip", "PIL"]


def test_an_artifacts_command_loads_what_its_model_uses(tmp_path: Path) -> None:
    model = Backbone.load()
    vectors = model.encode_text(["dog", "cat"])
    head = one_line(head_of(vectors, vectors, alpha=0.0), 1.0, 0.0, 0.5)
    words = Vocabulary([Category("dog"), Category("cat")])
    Artifact(words, model.record(), head).save(tmp_path / "artifact")
    scene = str(demo_set() / "scene_000.jpg")
    line = ("tag", str(tmp_path / "artifact"), scene, "--threshold", "0")
    assert loaded(*line) == ["torch", "open_clip", "PIL"]


def test_what_was_left_out_can_still_be_loaded() -> None:
    program = (
        "from pvp_fast.clip import light\n"
        "light.import_torch(); light.import_open_clip_for('pocket')\n"
        "import sys, torch, torchvision, transformers, timm, huggingface_hub\n"
        "assert torchvision.models.resnet18 and torchvision.datasets.CIFAR10\n"
        "box = torch.tensor([[0, 0, 0, 4.0, 4.0]])\n"
        "print(torchvision.ops.roi_align(torch.ones(1, 3, 8, 8), box, 2).sum().item())\n"
        "print(torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(1)).item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.split() == ["12.0", "2.0"]


def test_torchs_compiler_finds_torch_whole() -> None:
    program = (
        "from pvp_fast.clip.light import import_torch; import_torch(); import_torch()\n"
        "import sys, torch\n"
        "assert 'torch._decomp' not in sys.modules\n"
        "print(torch.rand(1, generator=torch.Generator().manual_seed(0)).item())\n"
        "ways = [torch.compile(lambda x: x.cumsum(0).sum(), backend='aot_eager')]\n"
        "assert 'torch._decomp' in sys.modules\n"
        "print(ways[0](torch.ones(3)).item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    expected = torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
    assert [float(line) for line in done.stdout.split()] == [expected, 6.0]


def test_another_models_command_finds_torch_whole() -> None:
    program = (
        "from pvp_fast.clip import light\n"
        "light.import_torch(); light.import_open_clip_for('ViT-L-16-SigLIP-256')\n"
        "import sys; print('torch._meta_registrations' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.split() == ["True"]
