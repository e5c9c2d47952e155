"""``tag --vocabulary``: names and images are enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvp_fast.cli import run
from pvp_fast.demo import demo_set

SCENES = [str(demo_set() / f"scene_{i:03}.jpg") for i in range(3)]


@pytest.fixture
def words(tmp_path: Path) -> str:
    """A file of three names, two of which are in the first scenes."""
    path = tmp_path / "tags.txt"
    path.write_text("giraffe\nkite\ncow\n", encoding="utf-8")
    return str(path)


def test_names_tag_at_once(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["tag", "--vocabulary", words, "--model", "pocket", "--cache", str(tmp_path / "kept")]
    assert run([*line, "--dry-run", *SCENES]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "plan: 3 categories" in err
    assert not (tmp_path / "kept" / "vocabularies").exists()
    assert run([*line, *SCENES]) == 0
    out, err = capsys.readouterr()
    first, _, third = map(json.loads, out.splitlines())
    assert [tag["name"] for tag in first["tags"]] == ["giraffe"]
    assert third["tags"][0]["name"] == "kite"
    assert all(0 < tag["score"] < 0.995 for row in (first, third) for tag in row["tags"])
    assert f"made: {tmp_path / 'kept'}" in " ".join(err.split())
    assert run([*line, *SCENES]) == 0
    assert "plan" not in capsys.readouterr().err


def test_large_pictures_are_no_drawings_for_the_pocket_model(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (640, 480)).save(photo)
    line = ["tag", "--vocabulary", words, "--model", "pocket"]
    assert run([*line, str(photo), str(photo)]) == 0
    assert capsys.readouterr().err.count("--model auto") == 1
    page, store = str(tmp_path / "page.html"), str(tmp_path / "store")
    given = [str(photo.parent), "-o", page]
    assert run(["report", "--vocabulary", words, "--model", "pocket", *given]) == 0
    assert run(["embed", str(photo), "--model", "pocket", "--out", store]) == 0
    assert capsys.readouterr().err.count("--model auto") == 2
    assert run([*line, *SCENES]) == 0
    assert "--model auto" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--vocabulary", "FILE", "--learn", "text", "--captions", "none.txt"], "none.txt"),
        (["--learn", "text", "somewhere"], "--learn: only with --vocabulary"),
        (["--vocabulary", "FILE", "--minutes", "0"], "more than 0"),
    ],
)
def test_bad_combinations(
    words: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [words if option == "FILE" else option for option in options]
    assert run(["tag", *given, *SCENES]) == 1
    assert says in capsys.readouterr().err


def test_train_prints_its_plan_and_stops(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--vocabulary", words, "--grammar", "50", "--out", str(tmp_path / "run")]
    assert run([*line, "--learn", "text", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "--learn text" in err
    assert "on disk" in err
    assert not (tmp_path / "run").exists()
    assert run([*line, "--learn", "much", "--dry-run"]) == 1


def test_a_report_takes_names_too(words: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(Path(SCENES[0]).read_bytes())
    line = ["report", "--vocabulary", words, "--model", "pocket", str(folder), "-o", str(page)]
    assert run(line) == 0
    assert "giraffe" in page.read_text(encoding="utf-8")
    assert run(["report", str(folder), "-o", str(page)]) == 1


def test_a_label_is_what_tags_say_and_lists_allow_or_deny(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "tags.yaml"
    words.write_text("giraffe: {label: Giraffe (Tier)}\nkite:\ncow:\n", encoding="utf-8")
    line = ["tag", "--vocabulary", str(words), "--model", "pocket", *SCENES]

    def names(*options: str) -> list[list[str]]:
        assert run([*line, *options]) == 0
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        return [[tag["name"] for tag in row["tags"]] for row in rows]

    plain = names()
    assert plain[0] == ["Giraffe (Tier)"]
    assert plain[2] == ["kite"]
    assert names("--only", "kite") == [[], [], ["kite"]]
    (tmp_path / "deny.txt").write_text("kite\ncow\n", encoding="utf-8")
    assert names("--without", str(tmp_path / "deny.txt"))[2] == []
    assert run([*line, "--without", "kit"]) == 1
    assert "did you mean kite" in capsys.readouterr().err


def test_categories_leave_and_are_renamed(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from pvp_fast.artifact import Artifact

    old = Artifact.load(artifact)
    out = tmp_path / "fewer"
    assert run(["remove-category", str(artifact), "cat", "--out", str(out)]) == 0
    fewer = Artifact.load(out)
    kept = [i for i, name in enumerate(old.vocabulary.names) if name != "cat"]
    assert fewer.vocabulary.names == tuple(old.vocabulary.names[i] for i in kept)
    assert torch.equal(fewer.head.linear().vectors, old.head.linear().vectors[kept])
    assert torch.equal(fewer.training.pixels, old.training.pixels[kept])
    assert run(["rename-category", str(out), "dog", "Hund", "--out", str(out)]) == 0
    renamed = Artifact.load(out)
    assert renamed.vocabulary[0].name == "Hund"
    assert "dog" in renamed.vocabulary[0].synonyms
    assert torch.equal(renamed.head.linear().vectors, fewer.head.linear().vectors)
    assert run(["remove-category", str(out), *renamed.vocabulary.names, "--out", str(out)]) == 1
    assert "no category would be left" in capsys.readouterr().err


def test_two_categories_become_one(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import torch.nn.functional as F

    from pvp_fast.artifact import Artifact

    old, out = Artifact.load(artifact), tmp_path / "merged"
    names = old.vocabulary.names
    assert run(["merge-category", str(artifact), names[0], names[2], "--out", str(out)]) == 0
    merged = Artifact.load(out)
    assert merged.vocabulary.names == (names[0], names[1], *names[3:])
    assert names[2] in merged.vocabulary[0].synonyms
    others = [i for i in range(len(names)) if i not in (0, 2)]
    vectors, before = merged.head.linear().vectors, old.head.linear().vectors
    assert torch.equal(vectors[1:], before[others])
    both = F.normalize(old.head.adapter.text[0] + old.head.adapter.text[2], dim=-1)
    assert torch.equal(merged.head.adapter.text[0], both)
    assert torch.equal(merged.training.pixels[1:], old.training.pixels[others])
    assert run(["merge-category", str(out), names[0], names[0], "--out", str(out)]) == 1
    assert "one category" in capsys.readouterr().err


def test_a_file_of_names_joins_names(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from pvp_fast.artifact import Artifact

    line = ["tag", "--model", "pocket", "--cache", str(tmp_path), *SCENES[:1], "--vocabulary"]
    assert run([*line, words]) == 0
    (first,) = tmp_path.glob("vocabularies/*/artifact")
    more = tmp_path / "more.txt"
    more.write_text("zebra\nbus, coach\n", encoding="utf-8")
    out = tmp_path / "grown"
    assert run(["add-category", str(first), str(more), "--out", str(out)]) == 0
    assert run(["add-category", str(first), str(more), "--synonym", "x", "--out", str(out)]) == 1
    assert "give the synonyms there" in capsys.readouterr().err
    assert run(["add-category", str(first), "bus", "--generate", "3", "--out", str(out)]) == 1
    assert "no training state" in capsys.readouterr().err
    old, grown = Artifact.load(first), Artifact.load(out)
    assert grown.vocabulary.names == ("giraffe", "kite", "cow", "zebra", "bus")
    assert grown.vocabulary[4].synonyms == ("coach",)
    vectors = grown.head.linear().vectors
    assert torch.equal(vectors[:3], old.head.linear().vectors)
    # The same as if the list had held them from the start, up to the odds of a longer list.
    both = tmp_path / "all.txt"
    both.write_text("giraffe\nkite\ncow\nzebra\nbus\n", encoding="utf-8")
    assert run([*line, str(both)]) == 0
    (whole,) = set(tmp_path.glob("vocabularies/*/artifact")) - {first}
    torch.testing.assert_close(
        vectors, Artifact.load(whole).head.linear().vectors, atol=2e-3, rtol=0
    )


def test_names_are_served(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    from fastapi.testclient import TestClient

    answers = []

    def ask(app: object, **options: object) -> None:
        with TestClient(app) as client:  # type: ignore[arg-type]
            body = Path(SCENES[0]).read_bytes()
            headers = {"Content-Type": "image/jpeg"}
            answers.append(client.post("/tag", content=body, headers=headers).json())

    monkeypatch.setattr(uvicorn, "run", ask)
    line = ["serve", "--vocabulary", words, "--model", "pocket", "--cache", str(tmp_path)]
    assert run(line) == 0
    assert "giraffe" in json.dumps(answers)


def test_names_are_read_by_the_model_of_the_embeddings(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "embeddings")
    assert run(["embed", *SCENES, "--out", store, "--model", "pocket"]) == 0
    assert run(["tag", "--vocabulary", words, "--embeddings", store]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert [tag["name"] for tag in first["tags"]] == ["giraffe"]


def test_what_a_list_was_recognised_as_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "tags.csv"
    words.write_text("tag_id,name,category,count\n1,giraffe,0,9\n2,kite_(toy),0,5\n3,^_^,0,1\n")
    line = ["tag", "--vocabulary", str(words), "--model", "pocket", "--without", "Kite (toy)"]
    assert run([*line, *SCENES[:1]]) == 0
    out, err = capsys.readouterr()
    assert [tag["name"] for tag in json.loads(out)["tags"]] == ["giraffe"]
    assert err.count("tags.csv: a table: names from 'name'") == 1
    assert "1 signs without a word left out, such as '^_^'" in err
