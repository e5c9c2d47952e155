"""Every command by its exit code, its stdout and its stderr."""

from __future__ import annotations

import json
import shutil

import pytest

from pvp_fast.cli import run
from pvp_fast.pocket import demo_set


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "words.txt").write_text("dog\ncat\ncar\n", encoding="utf-8")
    line = ["train", "--vocabulary", str(folder / "words.txt"), "--grammar", "40", "--quiet"]
    assert run([*line, "--steps", "2", "--out", str(folder / "run")]) == 0
    return folder / "run" / "artifact"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(sorted(demo_set().glob("*.jpg"))[0], folder / "été.jpg")
    return folder


COMMANDS = ["demo", "train", "tag", "evaluate", "sentences", "add-category", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    assert run([command, "--help"]) == 0
    assert "Example" in capsys.readouterr().out


def test_wrong_usage_is_2(capsys):
    assert run(["tag", "--no-such-option"]) == 2
    assert run(["sentences", "--vocabulary", "voc2007"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_line_and_debug_shows_all(tmp_path, capsys):
    line = ["tag", str(tmp_path / "missing"), str(tmp_path)]
    assert run(line) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    with pytest.raises(Exception, match="artifact"):
        run([*line, "--debug"])


def test_tag_writes_clean_json_lines(artifact, pictures, capsys):
    line = ["tag", str(artifact), str(pictures), "--threshold", "0", "--top-k", "2"]
    assert run(line) == 0
    (found,) = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert found["image"].endswith("été.jpg")
    assert len(found["tags"]) == 2


@pytest.mark.parametrize("format", ["jsonl", "csv", "table"])
def test_a_bad_image_is_listed_and_the_rest_is_tagged(artifact, pictures, tmp_path, capsys, format):
    (pictures / "empty.jpg").write_bytes(b"")
    out = tmp_path / "tags.txt"
    assert run(["tag", str(artifact), str(pictures), "--format", format, "-o", str(out)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "empty.jpg" in captured.err
    text = out.read_text(encoding="utf-8")
    assert "empty.jpg" in text
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_bad_image_does_not_hide_the_others(artifact, pictures, capsys):
    (pictures / "a.jpg").write_bytes(b"no image")
    assert run(["tag", str(artifact), str(pictures), "--threshold", "0"]) == 3
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert ["error" in row for row in rows] == [True, False]
    assert rows[1]["tags"]


def test_evaluate_prints_the_ladder(artifact, pictures, tmp_path, capsys):
    labels = {"categories": ["dog", "cat"], "photos": {"été.jpg": {"labels": ["dog"]}}}
    (pictures / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    line = ["evaluate", str(artifact), str(artifact), "--dataset", "folder", "--path"]
    assert run([*line, str(pictures), "--json", str(tmp_path / "all.json")]) == 0
    out = capsys.readouterr().out
    assert "zero-shot" in out
    assert "±" in out
    assert json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["images"] == 1


def test_sentences_from_the_grammar_and_labels(tmp_path, capsys):
    assert run(["sentences", "--vocabulary", "voc2007", "--grammar", "5"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert all(row["labels"] for row in rows)
    (tmp_path / "c.txt").write_text("A dog runs.\nNothing here.\n", encoding="utf-8")
    out = tmp_path / "labelled.jsonl"
    line = ["sentences", "--vocabulary", "voc2007", "--label", str(tmp_path / "c.txt")]
    assert run([*line, "-o", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["labels"] == ["dog"]


def test_add_category(artifact, tmp_path, capsys):
    assert run(["add-category", str(artifact), "tree", "--out", str(tmp_path / "new")]) == 0
    capsys.readouterr()
    assert run(["info", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["categories"].startswith("4: dog, cat, car, tree")


def test_info_names_every_backend(capsys):
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("C++ extension", "CUDA", "triton", "DALI", "pocket model"))


def test_info_names_the_instruction_set_of_the_top_k(monkeypatch, capsys):
    from pvp_fast import _C

    def line():
        assert run(["info", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["CPU top-k"]

    monkeypatch.delenv("PVP_FAST_ISA", raising=False)
    assert line().startswith(_C.isas()[0])
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    assert line().startswith("portable (chosen by PVP_FAST_ISA")
    monkeypatch.setenv("PVP_FAST_ISA", "z80")
    assert "z80 cannot run here" in line()
