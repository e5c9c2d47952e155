"""A vocabulary that lives: what nobody touched keeps every bit, after any changes in any order."""

from __future__ import annotations

import dataclasses
import random
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pvp_fast import Backbone, Tagger
from pvp_fast.artifact import Artifact
from pvp_fast.cli import run
from pvp_fast.modules.scoring import LocalBranch
from pvp_fast.names import Request, prepare
from pvp_fast.names.zero_shot import head_of
from pvp_fast.vocabulary import Category, Vocabulary

NAMES = ("giraffe", "kite", "cow", "bus", "boat", "tree", "lamp", "cake", "tower", "glove")


def rows_of(artifact: Artifact) -> dict[str, str]:
    """A digest of every bit that decides about a category, by its name."""
    head, linear = artifact.head, artifact.head.linear()
    adapter = head.adapter.state_dict()
    parts = [adapter[name] for name in ("original", "text", "visual", "alpha_logit", "beta_logit")]
    parts += [head.platt, head.thresholds, linear.vectors, linear.intercept]
    if head.local is not None:
        parts += [head.local.vectors, head.local.weight, linear.gain]
    if artifact.state is not None:
        parts += [artifact.training.pixels, artifact.training.text_only]
    count = len(artifact.vocabulary)
    table = torch.cat([part.detach().reshape(count, -1).float() for part in parts], 1).numpy()
    said = ((c.synonyms, c.ignore, c.label) for c in artifact.vocabulary)
    return {
        name: sha256(row.tobytes() + repr(words).encode()).hexdigest()
        for name, row, words in zip(artifact.vocabulary.names, table, said, strict=True)
    }


@pytest.fixture
def start(
    request: pytest.FixtureRequest, pocket: Backbone, tmp_path: Path
) -> tuple[Path, Backbone]:
    """An artifact of the kind asked for, with thresholds of its own for each category."""
    kind = request.param
    if kind == "full":
        found = Artifact.load(request.getfixturevalue("artifact"))
    elif kind == "local":
        found = Artifact.load(request.getfixturevalue("local_run") / "artifact")
    elif kind in ("none", "text"):
        words = Vocabulary([Category(name, label=f"{name} (1)") for name in NAMES])
        written = tuple(f"a {a} near a {b}" for a in NAMES for b in NAMES)
        texts = written if kind == "text" else None
        wanted = Request(words, kind, sentences=texts)
        found = prepare(wanted, pocket, cache=tmp_path / "kept").loaded()
    else:  # ten thousand
        generator = torch.Generator().manual_seed(1)
        words = Vocabulary([f"kind{i} lamp" for i in range(10_000)])
        one, two, near = (
            F.normalize(torch.randn(10_000, pocket.embed_dim, generator=generator), dim=-1)
            for _ in range(3)
        )
        head = head_of(one, two, 0.3)
        local = LocalBranch(near, torch.rand(10_000, generator=generator), torch.tensor([0.1]))
        head = dataclasses.replace(head, local=local if kind == "many, local" else None)
        found = Artifact(words, pocket.record(), head, config={"learn": "text"})
    count = len(found.vocabulary)
    generator = torch.Generator().manual_seed(2)
    platt, cuts = (
        torch.rand(count, 2, generator=generator),
        torch.rand(count, generator=generator),
    )
    head = found.head.calibrated(platt + 0.1, cuts)
    dataclasses.replace(found, head=head).save(tmp_path / "start")
    return tmp_path / "start", pocket


@pytest.mark.parametrize(
    "start", ["none", "text", "full", "local", "many", "many, local"], indirect=True
)
def test_what_is_not_touched_keeps_every_bit(
    start: tuple[Path, Backbone], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, backbone = start
    now = rows_of(Artifact.load(path))
    rng = random.Random(7)
    learns = Artifact.load(path).state is not None
    has_local = Artifact.load(path).has_local
    kinds = ["remove", "rename", "merge", "add"] * (2 if len(now) < 100 else 1)
    rng.shuffle(kinds)
    if has_local and not learns:  # names alone cannot extend a local branch, which is said
        assert run(["add-category", str(path), "zebra", "--out", str(tmp_path / "no")]) == 1
        assert "local branch" in capsys.readouterr().err
        kinds = [kind for kind in kinds if kind != "add"]
    for number, kind in enumerate(kinds):
        out = tmp_path / f"after{number}"
        names = list(now)
        first, second = rng.sample(names, 2)
        if kind == "remove" and len(names) > 2:
            assert run(["remove-category", str(path), first, "--out", str(out)]) == 0
            del now[first]
            changed = set()
        elif kind == "rename":
            new = f"thing{number} gate"
            assert run(["rename-category", str(path), first, new, "--out", str(out)]) == 0
            now = {new if name == first else name: row for name, row in now.items()}
            changed = {new}  # its words, not its numbers
        elif kind == "merge" and len(names) > 2:
            assert run(["merge-category", str(path), first, second, "--out", str(out)]) == 0
            del now[second]
            changed = {first}
        else:
            new = f"new{number} fence"
            if learns:
                Tagger.load(path, backbone=backbone).add_category(new, steps=1).save(out)
            else:
                (tmp_path / "more.txt").write_text(f"{new}\nnew{number} door\n")
                more = str(tmp_path / "more.txt")
                assert run(["add-category", str(path), more, "--out", str(out)]) == 0
            fresh = [new] if learns else [new, f"new{number} door"]
            now |= dict.fromkeys(fresh, "")
            changed = set(fresh)
        before, after = now, rows_of(Artifact.load(out))
        assert list(after) == list(before), kind
        differing = {name for name in after if after[name] != before[name]}
        assert differing <= changed, kind
        now, path = after, out


def test_labels_and_ignored_phrases_of_a_file_stay(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pvp_fast.training import increment

    monkeypatch.setitem(increment.add_category.__kwdefaults__, "steps", 1)
    words = tmp_path / "more.yaml"
    words.write_text("orange: {label: Orange (Obst), ignore: [orange shirt]}\nkite_(toy):\n")
    out = tmp_path / "grown"
    assert run(["add-category", str(artifact), str(words), "--out", str(out)]) == 0
    added = list(Artifact.load(out).vocabulary)[-2:]
    assert added == [
        Category("orange", (), ("orange shirt",), "Orange (Obst)"),
        Category("kite toy", ("kite",), (), "kite (toy)"),
    ]


def test_means_stand_for_what_nobody_measured(pocket: Backbone, tmp_path: Path) -> None:
    from pvp_fast.names import add_names
    from pvp_fast.training.merge import merge_categories

    found = prepare(Request(Vocabulary(NAMES)), pocket, cache=tmp_path).loaded()
    cuts = torch.linspace(0.1, 0.9, len(NAMES))
    own = dataclasses.replace(found, head=found.head.calibrated(found.head.platt, cuts))
    grown = add_names(pocket, own, ["zebra"], cache=tmp_path)
    assert float(grown.head.thresholds[-1]) == pytest.approx(0.5)
    joined = merge_categories(own, "giraffe", "cow")
    assert float(joined.head.thresholds[0]) == pytest.approx(float(cuts[0] + cuts[2]) / 2)
