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
