"""Names to an artifact: what is kept, what is planned, and probabilities that mean something."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pvp_fast import Backbone, Tagger, Vocabulary
from pvp_fast.demo import demo_set
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.evaluation import read_folder
from pvp_fast.metrics import mean_average_precision
from pvp_fast.names import NameVectors, Request, cache_folder, prepare, zero_shot
from pvp_fast.names import learn as learning
from pvp_fast.names.plan import Costs, choose, plan_none, plan_training, plan_vectors, shortened
from pvp_fast.names.zero_shot import ImageSide, calibration
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training import LoopConfig, TrainConfig
from pvp_fast.training.vectors import VectorConfig

NAMES = ["dog", "cat", "car", "pizza"]


def count_texts(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each call of ``encode_text`` from now on."""
    calls: list[int] = []
    plain = type(backbone).encode_text

    def counted(self: Backbone, texts: Any, **options: Any) -> torch.Tensor:
        calls.append(len(texts))
        return plain(self, texts, **options)

    monkeypatch.setattr(type(backbone), "encode_text", counted)
    return calls


def test_a_list_is_made_once_and_found_again(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    request = Request(Vocabulary(NAMES))
    first = prepare(request, backbone, cache=tmp_path, say=lines.append)
    assert not first.cached
    assert first.loaded().vocabulary.names == tuple(NAMES)
    assert first.path.is_relative_to(tmp_path)
    assert "4 categories" in lines[0]
    calls = count_texts(backbone, monkeypatch)
    second = prepare(request, backbone, cache=tmp_path, say=lines.append)
    assert second.cached
    assert second.loaded().version == first.loaded().version
    assert calls == []


def test_changed_names_alone_are_encoded_and_the_others_keep_every_bit(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zero_shot(backbone, NAMES, tmp_path)
    calls = count_texts(backbone, monkeypatch)
    second = zero_shot(backbone, ["quokka", *NAMES[1:]], tmp_path)
    assert calls == [4]  # one name through the templates
    assert torch.equal(first.linear().vectors[1:], second.linear().vectors[1:])
    assert not torch.equal(first.linear().vectors[0], second.linear().vectors[0])


def test_a_plan_counts_what_is_not_there_yet(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning.Costs, "of", lambda *given, **options: Costs(1.0, 1.0, 1.0, 100.0))

    def seconds(names: list[str], learn: str = "none") -> dict[str, float]:
        request = Request(Vocabulary(names), learn)
        plan = prepare(request, backbone, cache=tmp_path, dry_run=True).plan
        assert plan is not None
        return dict(plan.stages)

    fixed = {*Vocabulary.builtin("coco80").names, *Vocabulary.builtin("pocket70").names}
    first = seconds(["quokka"])
    calls = count_texts(backbone, monkeypatch)
    prepare(Request(Vocabulary(["quokka"])), backbone, cache=tmp_path)
    assert first["names"] == pytest.approx(sum(calls), abs=1)
    assert sum(calls) == 4 * (1 + len(fixed))
    assert first["drawings"] == pytest.approx(150 * 100, rel=0.01)
    again = seconds(["quokka", "tapir"])
    assert again["names"] == pytest.approx(4, abs=0.1)
    assert "drawings" not in again
    assert seconds(["quokka", "tapir"], "text")["names"] == pytest.approx(4, abs=0.1)


def test_a_dry_run_makes_nothing(backbone: Backbone, tmp_path: Path) -> None:
    found = prepare(Request(Vocabulary(NAMES)), backbone, cache=tmp_path, dry_run=True)
    assert found.artifact is None
    assert found.plan is not None
    assert not found.path.exists()


def test_an_artifact_of_nothing_learned_holds_one_bank(backbone: Backbone, tmp_path: Path) -> None:
    from safetensors import safe_open

    found = prepare(Request(Vocabulary(NAMES)), backbone, cache=tmp_path)
    (file,) = found.path.glob("*.artifact.safetensors")
    with safe_open(file, "pt") as stored:
        assert {"text", "visual"}.isdisjoint(stored.keys())
    again = prepare(Request(Vocabulary(NAMES)), backbone, cache=tmp_path).loaded()
    assert torch.equal(again.head.linear().vectors, found.loaded().head.linear().vectors)


@pytest.mark.parametrize("learn", ["text", "full"])
def test_sentences_teach_a_list(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learn: str
) -> None:
    plain = learning._config
    monkeypatch.setattr(learning, "_config", lambda *given: shortened(plain(*given), 0.02))
    monkeypatch.setattr(backbone, "name", "pocket")  # the short preset
    sentences = tuple(f"a {a} beside a {b}" for a in NAMES for b in NAMES)
    request = Request(Vocabulary(NAMES), learn, sentences=sentences)
    tagger = Tagger(prepare(request, backbone, cache=tmp_path).loaded(), backbone)
    assert tagger.artifact.config["learn"] == learn
    assert len(set(tagger.artifact.head.thresholds.tolist())) == 1  # carried over from the names
    assert (tagger.artifact.state is None) == (learn == "text")
    assert prepare(request, backbone, cache=tmp_path).cached


def test_a_damaged_store_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database" * 1000)
    store = NameVectors(path, 3)
    rows = store.get(["a", "b"], lambda texts: torch.ones(len(texts), 3))
    assert torch.equal(rows, torch.ones(2, 3))
    again = store.get(["b"], lambda texts: torch.zeros(len(texts), 3))
    assert torch.equal(again, torch.ones(1, 3))
    assert store.missing(["a", "c"]) == 1


def test_a_recipe_is_part_of_a_key(tmp_path: Path) -> None:
    store = NameVectors(tmp_path / "store.sqlite", 1)
    store.get(["a"], lambda texts: torch.ones(1, 1), recipe="one")
    other = store.get(["a"], lambda texts: torch.zeros(1, 1), recipe="two")
    assert float(other) == 0


def test_more_names_make_each_less_probable() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(400, 10, generator=generator) < 0.1
    scores = torch.randn(400, 10, generator=generator) + 2 * labels
    few = calibration(scores, labels, 10)
    many = calibration(scores, labels, 1000)
    assert few[0] == many[0]
    assert few[1] - many[1] == pytest.approx(4.605, abs=1e-3)  # the logarithm of 100
    # Logistic by construction: N(2, 1) against N(0, 1) at one in ten.
    assert few[0] == pytest.approx(2.0, abs=0.2)
    assert few[1] == pytest.approx(-2 - 2.197, abs=0.2)
    assert 0.2 < few[2] < 0.6
    # The best F1's probability is half of that F1, which more distractors lower.
    assert many[2] < few[2]


def test_auto_takes_the_best_that_fits(backbone: Backbone) -> None:
    costs = Costs(text=0.001, prompt=0.01, image=0.1, picture=0.03)
    base = TrainConfig(text=dataclasses.replace(TrainConfig().text, loop=LoopConfig(steps=100)))
    full = plan_training(backbone, base, 50, 1000, costs)
    text = plan_vectors(backbone, VectorConfig(epochs=50), 50, 1000, costs)
    none = plan_none(backbone, 50, 200, costs)
    assert full.seconds > 10 * text.seconds > none.seconds

    def shorter(plan: Any, share: float) -> Any:
        config = shortened(plan.config, share)
        remake: Any = plan_vectors if plan.learn == "text" else plan_training
        return remake(backbone, config, 50, 1000, costs)

    def pick(minutes: float | None, memory: int = 1 << 40) -> Any:
        return choose([full, text, none], minutes, shorter, memory)

    assert pick(None).learn == "full"
    assert pick(full.seconds / 60 / 2).learn == "full"  # with half of the steps
    assert pick(full.seconds / 60 / 2).seconds <= full.seconds / 2 + 1
    assert pick(2 * text.seconds / 60).learn == "text"
    assert pick(0.01).learn == "none"
    assert "nothing that learns" in pick(0.01).why
    assert pick(1e6, memory=full.memory - 1).learn == "text"


def test_many_names_take_more_steps_and_no_more_memory_a_step(backbone: Backbone) -> None:
    demo = TrainConfig.demo()
    assert demo.sized(70) == demo
    sized = demo.sized(10_000)
    assert sized.visual.loop.steps * 128 >= 16 * 10_000
    assert sized.text.loop.steps * 128 >= 50 * 10_000
    costs = Costs(0.001, 0.01, 0.1, 0.03)
    few, many = (
        plan_training(backbone, demo.sized(count), count, 1000, costs) for count in (1000, 11_000)
    )
    assert many.memory - few.memory < 10_000 * 8192  # vectors and names; an image has 12,288 bytes
    assert many.disk - few.disk > 10_000 * 6 * 3_072  # a quarter of an image
    assert "text prompts" not in dict(many.stages)


def test_what_cannot_fit_is_refused_with_what_would(backbone: Backbone) -> None:
    costs = Costs(0.001, 0.01, 0.1, 0.03)
    plan = plan_training(backbone, TrainConfig(), 50, 1000, costs)
    plan.check(plan.memory)
    with pytest.raises(InputError, match="--learn text"):
        plan.check(plan.memory - 1)


def test_costs_are_measured_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Costs.of(backbone, tmp_path, learns=False).prompt == float("inf")  # not looked at
    first = Costs.of(backbone, tmp_path)
    assert Costs.of(backbone, tmp_path, learns=False) == first
    assert 0 < first.text < 1
    assert 0 < first.prompt < 1
    assert 0 < first.image < 1
    assert 0 < first.picture < 1
    calls = count_texts(backbone, monkeypatch)
    assert Costs.of(backbone, tmp_path) == first
    assert calls == []
    (tmp_path / "file").write_text("no folder")
    assert Costs.of(backbone, tmp_path / "file").text > 0  # measured, though it cannot be kept


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learn": "all"}, "none, text, full, auto"),
        ({"minutes": 0}, "more than 0"),
        ({"sentences": ("a dog",)}, "reads none"),
    ],
)
def test_bad_requests(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Request(Vocabulary(NAMES), **options)


def test_the_cache_is_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PVP_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pvp_fast"
    monkeypatch.setenv("PVP_FAST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder("given") == Path("given")


def test_auto_takes_what_is_cached_and_else_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from pvp_fast.clip.auto import CHOICES, resolve

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="--model pocket"):
        resolve()
    with pytest.raises(BackboneError, match="drawings"):
        Backbone.load("auto")
    last = CHOICES[-1]
    folder = tmp_path / f"models--{last.repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "open_clip_model.safetensors").write_bytes(b"weights")
    found = resolve()
    assert (found.name, found.pretrained) == (last.name, last.pretrained)
    assert "local cache" in found.note


def test_one_name_is_a_vocabulary(backbone: Backbone, tmp_path: Path) -> None:
    import numpy as np

    tagger = Tagger.from_names(["dog"], backbone=backbone, cache=tmp_path)
    (result,) = tagger.tag([np.zeros((32, 32, 3), np.uint8)], threshold=0)
    assert [tag.name for tag in result.tags] == ["dog"]
    again = Tagger.from_names(["dog"], backbone=backbone, cache=tmp_path)
    assert len(tagger.artifact.version) == 12
    assert again.artifact.version == tagger.artifact.version
    two = Tagger.from_names(["dog", "cat"], backbone=backbone, cache=tmp_path)
    assert two.restricted(without=["cat"]).artifact.vocabulary.names == ("dog",)


def test_what_was_made_from_names_can_be_evaluated(backbone: Backbone, tmp_path: Path) -> None:
    from pvp_fast.evaluation import Features, ladder

    artifact = prepare(Request(Vocabulary(NAMES)), backbone, cache=tmp_path).loaded()
    z = artifact.head.adapter.original
    labels = 2 * torch.eye(4, dtype=torch.int8) - 1
    result = ladder([artifact], Features(z, labels, tuple(NAMES), ()))
    assert [(rung.name, rung.map) for rung in result.rungs] == [
        ("zero-shot CLIP", [100.0]),
        ("+ dual adapter", [100.0]),
    ]


@pytest.mark.parametrize("learn", ["none", "text"])
def test_categories_rank_among_many_others_as_they_do_alone(
    pocket: Backbone, tmp_path: Path, learn: str
) -> None:
    scenes = read_folder(demo_set())
    z = ImageSide.of(pocket, tmp_path / "models").z
    own = Vocabulary(scenes.names)
    others = [f"kind{i} {head}" for i, head in enumerate(("lamp", "tower", "plate") * 60)]

    def ranked(names: list[str]) -> float:
        words = Vocabulary(names)
        # As many sentences a name: among others it is mentioned no less.
        written = tuple(grammar_sentences(words, 12 * len(names))) if learn == "text" else None
        made = prepare(Request(words, learn, sentences=written), pocket, cache=tmp_path)
        places = torch.tensor([words.index(name) for name in own.names])
        with torch.no_grad():
            scores = made.loaded().head.take(places).cosines(z)
        return 100 * mean_average_precision(scores, scenes.labels > 0)

    alone = ranked(list(own.names))
    assert alone > 65
    inside = ranked([*others[:90], *own.names, *others[90:]])
    assert inside == pytest.approx(alone, abs=0 if learn == "none" else 0.7)
