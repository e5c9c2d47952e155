"""A model that a checkpoint fills is made without random numbers, and must be filled whole."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import save_file
from support.towers import TEXT, VIT
from torch import nn

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.undrawn import never_loaded, undrawn
from pvp_fast.errors import BackboneError


def test_draws_are_left_out_in_this_thread_alone() -> None:
    other: list[nn.Linear] = []
    before = torch.get_rng_state()
    with undrawn():
        made = [
            nn.Linear(4, 3),
            nn.Embedding(5, 4),
            nn.MultiheadAttention(4, 2),
            nn.Conv2d(3, 4, 2),
        ]
        nn.init.trunc_normal_(made[0].weight, std=0.02)
        torch.nn.init.normal_(made[1].weight)
        assert torch.equal(torch.get_rng_state(), before)
        thread = threading.Thread(target=lambda: other.append(nn.Linear(4, 3)))
        thread.start()
        thread.join()
        assert torch.equal(torch.full((2,), 2.0) + 1, torch.full((2,), 3.0))
    for module in made:
        assert "weight" in str(never_loaded(module))
    assert not never_loaded(other[0])
    assert not never_loaded(nn.Linear(4, 3))
    assert not never_loaded(nn.LayerNorm(4))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", config)
    path = tmp_path / "tiny.safetensors"
    save_file(open_clip.create_model("tiny").state_dict(), path)
    return path


def test_loading_a_file_draws_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Backbone.load("tiny", str(checkpoint)).fingerprint
    drawn: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") in ("normal_", "uniform_", "erfinv_"):
                drawn.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():  # outside of the loader's own mode: it sees what passes that
        assert Backbone.load("tiny", str(checkpoint)).fingerprint == expected
        assert not drawn
        Backbone.load("tiny", "random")
    assert drawn


def test_a_file_that_leaves_a_weight_out_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = factory.load_state_dict

    def without(*given: Any, **options: Any) -> Any:
        state = real(*given, **options)
        return {name: value for name, value in state.items() if "ln_final" not in name}

    load = nn.Module.load_state_dict
    monkeypatch.setattr(factory, "load_state_dict", without)
    with pytest.raises(BackboneError, match=r"lacks 2 weights, ln_final"):
        Backbone.load("tiny", str(checkpoint))
    # Where a reader is content with what there is, the rest must not stay as memory was.
    monkeypatch.setattr(
        nn.Module,
        "load_state_dict",
        lambda self, state, strict=True: load(self, state, strict=False),
    )
    real_state = real

    def no_table(*given: Any, **options: Any) -> Any:
        state = real_state(*given, **options)
        return {name: value for name, value in state.items() if "token_embedding" not in name}

    monkeypatch.setattr(factory, "load_state_dict", no_table)
    with pytest.raises(BackboneError, match=r"1 weights are not in it or NaN, token_emb"):
        Backbone.load("tiny", str(checkpoint))
