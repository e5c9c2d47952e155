"""The script over all architectures, on one that is small."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from open_clip import factory
from support.towers import TEXT, VIT

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "architectures.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_says_what_works(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**TEXT, "no_causal_mask": True, "pool_type": "last"}
    config = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text, "custom_text": True}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", config)
    state = torch.get_rng_state()
    row = script.examine("tiny")
    torch.set_rng_state(state)
    assert row["image_error"] < 1e-6
    assert row["text_error"] < 1e-6
    assert row["prompt_error"] < 1e-6
    assert row["regions"] == 4
    assert "no_prompts" not in row
    assert "no_regions" not in row
    assert row["parameters"] > 49408 * 32
    assert torch.equal(torch.nn.init.zeros_(torch.ones(2)), torch.zeros(2))  # put back
    monkeypatch.setattr(script, "LARGE", 0)
    slim = script.examine("tiny", most=0)
    assert slim.pop("shared_blocks")
    assert slim.pop("image_dtype") == "bfloat16"
    assert slim["parameters"] == row["parameters"]
    assert slim["regions"] == 4
    assert max(slim[key] for key in ("image_error", "text_error", "prompt_error")) < 1e-6

    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", {**config, "text_cfg": {
        **text, "pool_type": "none", "proj_type": "none"}})  # fmt: skip
    assert "pools by 'none'" in script.examine("tiny")["no_prompts"]


def test_stand_in_tokenizers_have_the_hubs_markers(script: ModuleType) -> None:
    roberta = script.StandIn({"hf_model_name": "roberta-base", "context_length": 8})
    (ids,) = roberta(["a dog"]).tolist()
    assert ids[0] == 0
    assert ids[3:] == [2, 1, 1, 1, 1]
    siglip = script.StandIn(
        {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "vocab_size": 32000, "context_length": 6}
    )
    assert siglip(["", "dog"])[:, 1:].tolist() == [[1] * 5] * 2
    assert siglip(["one two three four five six seven"])[0, -1] == 1


def test_like_blocks_share_their_memory_and_nothing_else_does(script: ModuleType) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    script.share(model)
    script.draw(model)
    weights = dict(model.named_parameters())
    first, last = (weights[f"layers.{n}.linear1.weight"] for n in (0, 2))
    assert first.data_ptr() == last.data_ptr()
    script.halve(model.layers)
    halves = [weights[f"layers.{n}.linear1.weight"] for n in (0, 2)]
    assert halves[0].data_ptr() == halves[1].data_ptr()
    assert {value.dtype for value in halves} == {torch.bfloat16}
    assert not torch.equal(weights["layers.0.norm1.weight"], weights["layers.0.norm1.bias"])
    assert (
        weights["layers.0.norm1.weight"].data_ptr() != weights["layers.0.norm2.weight"].data_ptr()
    )
    assert len({row.sum().item() for row in first}) == len(first)
