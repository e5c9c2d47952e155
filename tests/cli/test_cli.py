"""Every command by its exit code, its stdout and its stderr."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support.artifacts import NAMES
from support.chat import running_server
from support.image_files import write_shard

from pvp_fast.cli import run
from pvp_fast.demo import demo_set


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(sorted(demo_set().glob("*.jpg"))[0], folder / "été.jpg")
    return folder


def test_a_local_branch_is_a_rung_and_a_stage_of_steps(local_run, pictures, tmp_path, capsys):
    last = {"visual": "1,", "text": "1,", "adapter": "1,", "local": "2,"}  # the run's --steps
    for stage, step in last.items():
        assert (local_run / stage / "log.csv").read_text().splitlines()[-1].startswith(step)
    path = str(local_run / "artifact")
    capsys.readouterr()
    assert run(["evaluate", path, "--dataset", "folder", "--path", str(demo_set())]) == 0
    assert "+ local" in capsys.readouterr().out
    assert run(["tag", path, str(pictures), "--threshold", "0"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tags"]) == len(NAMES)
    assert run(["add-category", path, "castle", "--out", str(tmp_path / "more")]) == 0


COMMANDS = [
    "demo",
    "train",
    "tag",
    "embed",
    "untag",
    "evaluate",
    "sentences",
    "add-category",
    "info",
    "adapt",
    "calibrate",
    "report",
]


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


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_progress_on_a_terminal_leaves_stdout_clean(artifact, pictures, monkeypatch, capsys):
    import pty

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    capsys.readouterr()
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert run(["tag", str(artifact), str(pictures), "--threshold", "0"]) == 0
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert json.loads(capsys.readouterr().out)["tags"]
    assert "images/s" in shown
    assert "1/1" in shown


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


def test_tag_resumes_merges_and_can_only_look(artifact, pictures, tmp_path, capsys):
    shutil.copy(pictures / "été.jpg", pictures / "b.jpg")
    line = ["tag", str(artifact), str(pictures), "--threshold", "0"]
    out = tmp_path / "tags.jsonl"
    append = [*line, "--append", "-o", str(out)]
    assert run([*append, "--dry-run"]) == 0
    assert "dry run: 2 images would be tagged" in capsys.readouterr().err
    assert not out.exists()
    assert run(append) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])  # as a crash leaves it
    assert run(append) == 0
    assert out.read_bytes() == whole
    assert "1 had been before" in capsys.readouterr().err
    assert run([*line, "--format", "sqlite", "-o", str(tmp_path / "tags.db")]) == 0
    assert run([*line, "--format", "sqlite", "-o", str(tmp_path / "tags.db")]) == 0
    assert "2 had been before" in capsys.readouterr().err
    (pictures / "b.jpg.xmp").write_bytes(b"<broken")
    assert run([*line, "--format", "xmp"]) == 3
    assert "b.jpg.xmp" in capsys.readouterr().err
    assert b"dog" in (pictures / "été.jpg.xmp").read_bytes()
    assert run([*line, "--format", "txt"]) == 0
    caption = (pictures / "b.txt").read_text(encoding="utf-8").strip()
    assert set(caption.split(", ")) == set(NAMES)
    for wrong in (["--append"], ["--format", "sqlite"], ["--format", "xmp", "-o", "x"]):
        assert run([*line, *wrong]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_tag_reads_tar_shards(artifact, pictures, tmp_path, capsys):
    data = (pictures / "été.jpg").read_bytes()
    shard = tmp_path / "shard-0.tar"
    with tarfile.open(shard, "w") as tar:
        for name, body in (("a.jpg", data), ("b.jpg", b"no image"), ("c.jpg", data)):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    out = tmp_path / "tags.jsonl"
    pattern = str(tmp_path / "shard-{0..0}.tar")
    line = ["tag", str(artifact), pattern, str(pictures), "--threshold", "0"]
    assert run([*line, "-o", str(out)]) == 3
    rows = [json.loads(row) for row in out.read_text(encoding="utf-8").splitlines()]
    keys = [f"{shard}/{name}" for name in "abc"] + [str(pictures / "été.jpg")]
    assert [row["image"] for row in rows] == keys
    assert ["error" in row for row in rows] == [False, True, False, False]
    assert rows[0]["tags"] == rows[3]["tags"]
    assert run([*line, "--append", "-o", str(out)]) == 3  # what failed is tried again
    assert len(out.read_text(encoding="utf-8").splitlines()) == 4
    assert run(["tag", str(artifact), pattern, "--format", "xmp"]) == 1
    assert "shards" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_number_of_images(artifact, pictures, tmp_path):
    """What a process has used at most after a few batches of images, and after many more."""
    code = (
        "import sys\nfrom pvp_fast.cli import run\n"
        "for count in sys.argv[3:]:\n"
        "    line = ['tag', sys.argv[1], f'{sys.argv[2]}/{count}']\n"
        "    assert run([*line, '-o', f'{sys.argv[2]}/{count}.jsonl']) == 0\n"
        "    status = open('/proc/self/status').read()\n"  # ru_maxrss starts at the parent's
        "    print(status.split('VmHWM:')[1].split()[0])"
    )
    counts = (300, 2000)
    scene = pictures / "été.jpg"
    Image.open(scene).resize((160, 160)).save(scene)
    for count in counts:
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            os.link(scene, tmp_path / str(count) / f"{number:05d}.jpg")
    line = [sys.executable, "-c", code, str(artifact), str(tmp_path), *map(str, counts)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    few, many = (int(peak) / 1024 for peak in done.stdout.split())
    for count in counts:
        assert len((tmp_path / f"{count}.jsonl").read_text().splitlines()) == count
    assert many < few + 56  # the others are 130 MB decoded, and 84 MB as the encoder's input


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
    found = json.loads(capsys.readouterr().out)["categories"]
    assert found.startswith(f"6: {', '.join(NAMES)}, tree")


def test_info_names_every_backend(capsys):
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("C++ extension", "CUDA", "triton", "DALI", "pocket model"))


def test_info_names_the_instruction_set_of_the_top_k(monkeypatch, capsys):
    from pvp_fast import native

    def line():
        assert run(["info", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["CPU top-k"]

    monkeypatch.delenv("PVP_FAST_ISA", raising=False)
    assert line().startswith(native.isa())
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    assert line().startswith("portable (chosen by PVP_FAST_ISA")
    monkeypatch.setenv("PVP_FAST_ISA", "z80")
    assert "'z80' is not available here" in line()


@pytest.fixture
def endpoint():
    """Its first answer is a 503."""
    with running_server() as server:
        server.script.append((503, {}, b""))
        yield server


def test_sentences_from_a_language_model(endpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "words.txt").write_text("dog\ncat\n", encoding="utf-8")
    record, out = tmp_path / "record.jsonl", tmp_path / "llm.jsonl"
    line = ["sentences", "--vocabulary", str(tmp_path / "words.txt"), "--llm", "tiny"]
    line += ["--base-url", endpoint.url, "--workers", "1"]
    line += ["--record", str(record)]
    assert run([*line, "--generate", "6", "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    rows = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    assert all(set(row["labels"]) <= {"dog", "cat"} and row["labels"] for row in rows)
    assert set(endpoint.keys) == {"Bearer sk-secret"}
    assert "sk-secret" not in record.read_text(encoding="utf-8") + captured.err

    asked = len(endpoint.requests)  # all that is wanted is in the record: nothing is asked again
    assert run([*line, "--generate", "6"]) == 0
    assert [json.loads(text) for text in capsys.readouterr().out.splitlines()] == rows
    assert len(endpoint.requests) == asked
    # What it wrote is a corpus that train and --label read.
    assert run(["sentences", *line[1:3], "--label", str(out)]) == 0


def test_a_category_learns_from_what_a_language_model_wrote(
    artifact, endpoint, tmp_path, capsys, monkeypatch
):
    from pvp_fast.artifact import Artifact

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    line = ["add-category", str(artifact), "drone", "--out", str(tmp_path / "new")]
    model = ["--base-url", endpoint.url, "--llm", "tiny"]
    assert run([*line, *model]) == 1
    assert "--generate" in capsys.readouterr().err
    assert run([*line, "--generate", "4"]) == 1
    assert "--base-url" in capsys.readouterr().err
    taken = ["add-category", str(artifact), "dog", "--out", str(tmp_path / "no")]
    assert run([*taken, *model, "--generate", "4"]) == 1
    assert endpoint.requests == []  # nothing is asked for a run that cannot end well
    assert not (tmp_path / "new").exists()

    assert run([*line, *model, "--generate", "4", "--workers", "1"]) == 0
    record = (tmp_path / "new.record.jsonl").read_text(encoding="utf-8")
    written = [text for row in record.splitlines() for text in json.loads(row)["sentences"]]
    assert len(written) >= 4
    assert all("drone" in text for text in written)
    assert "sk-secret" not in record + capsys.readouterr().err
    asked = len(endpoint.requests)
    assert run([*line, *model, "--generate", "4"]) == 0  # the record answers
    assert len(endpoint.requests) == asked

    plain = tmp_path / "plain"
    assert run([*line[:3], "--out", str(plain)]) == 0
    old, new, bare = (Artifact.load(p) for p in (artifact, tmp_path / "new", plain))
    assert new.vocabulary.names == (*old.vocabulary.names, "drone")
    assert (new.head.adapter.text[:-1] == old.head.adapter.text).all()
    assert not (new.head.adapter.visual[-1] == bare.head.adapter.visual[-1]).all()


def test_a_language_model_that_is_not_there_is_one_sentence(tmp_path, capsys):
    line = ["sentences", "--vocabulary", "voc2007", "--generate", "3"]
    line += ["--record", str(tmp_path / "record.jsonl")]
    assert run(line) == 1
    assert "--base-url" in capsys.readouterr().err
    assert run([*line, "--local-llm", str(tmp_path / "nothing")]) == 1
    err = capsys.readouterr().err
    assert "nothing" in err
    assert "Traceback" not in err


def test_the_demo_over_two_seeds_shows_the_spread(tmp_path, capsys):
    line = ["demo", "--out", str(tmp_path), "--sentences", "30", "--steps", "1"]
    assert run([*line, "--seeds", "2"]) == 0
    captured = capsys.readouterr()
    page = Path(captured.out.strip().splitlines()[-1])
    assert "±" in page.read_text(encoding="utf-8")
    assert "±" in captured.out + captured.err
    assert {"seed0", "seed1"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="makes a pipe small")
def test_a_reader_that_goes_away_ends_the_run_in_silence(artifact, tmp_path):
    import fcntl

    source = sorted(demo_set().glob("*.jpg"))[0]
    for number in range(60):
        shutil.copy(source, tmp_path / f"{number:03}.jpg")
    program = [sys.executable, "-c", "import pvp_fast.cli as c; c.main()"]
    with subprocess.Popen(
        [*program, "tag", str(artifact), str(tmp_path), "--batch-size", "1", "--threshold", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # Elsewhere than in a checkout, whose own pvp_fast/ would hide the installed one.
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        # The pipe holds a part of the rows, so the program is in the middle of them for sure.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        first = process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()
    assert json.loads(first)["image"].endswith("000.jpg")
    assert process.returncode == 141
    assert complaints == ""


SHOWN = ("dog", "cat", "car")


def voc_tree(root, photos):
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    shutil.move(photos, root / "JPEGImages")
    for column, name in enumerate(SHOWN):
        values = [1 if i % 3 == column else 0 if i == column + 1 else -1 for i in range(6)]
        rows = "".join(f"{i:06} {value:2d}\n" for i, value in enumerate(values))
        (lists / f"{name}_test.txt").write_text(rows, encoding="utf-8")


def coco_tree(root, photos):
    (root / "annotations").mkdir()
    shutil.move(photos, root / "val2014")
    data = {
        "images": [{"id": 70 + i, "file_name": f"{i:06}.jpg"} for i in range(6)],
        "categories": [{"id": 90 - c, "name": name} for c, name in enumerate(SHOWN)],
        "annotations": [
            {"id": i, "image_id": 70 + i % 6, "category_id": 90 - i % 3, "bbox": [0, 0, 1, 1]}
            for i in range(12)
        ],
    }
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(data))


def nuswide_tree(root, photos):
    (root / "Flickr").mkdir()
    shutil.move(photos, root / "Flickr" / "sky")
    (root / "ImageList").mkdir()
    (root / "TrainTestLabels").mkdir()
    listed = "".join(f"sky\\{i:06}.jpg\n" for i in range(6))
    (root / "ImageList" / "TestImagelist.txt").write_text(listed)
    for column, name in enumerate(SHOWN):
        rows = "".join(f"{int(i % 3 == column)}\n" for i in range(6))
        (root / "TrainTestLabels" / f"Labels_{name}_Test.txt").write_text(rows)


@pytest.mark.parametrize(
    ("kind", "build"), [("voc", voc_tree), ("coco", coco_tree), ("nuswide", nuswide_tree)]
)
def test_evaluate_reads_every_data_set(artifact, tmp_path, capsys, kind, build):
    photos, root, out = tmp_path / "photos", tmp_path / "VOC2007", tmp_path / "all.json"
    photos.mkdir()
    root.mkdir()
    for number, path in enumerate(sorted(demo_set().glob("*.jpg"))[:6]):
        shutil.copy(path, photos / f"{number:06}.jpg")
    build(root, photos)
    line = ["evaluate", str(artifact), "--dataset", kind, "--path", str(root), "--json", str(out)]
    maps = []
    for difficult in ("ignore", "negative", "positive"):
        assert run([*line, "--difficult", difficult]) == 0
        table = capsys.readouterr().out
        for rung in ("zero-shot CLIP", "text prompts", "text prompts + transfer", "+ dual adapter"):
            (row,) = [x for x in table.splitlines() if x[:26].strip() == rung]
            assert all(0 <= float(value) <= 100 for value in row[26:].split())
        found = json.loads(out.read_text(encoding="utf-8"))
        assert (found["images"], found["failures"]) == (6, 0)
        maps.append(table.split("zero-shot CLIP")[1].splitlines()[0])
    assert (len(set(maps)) > 1) == (kind == "voc")  # only VOC has difficult objects

    gone = next(root.rglob("*000003.jpg"))
    gone.unlink()
    assert run(line) == 3
    captured = capsys.readouterr()
    assert "5 images, 1 unreadable" in captured.out
    assert "000003.jpg: no such file" in captured.err
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"")
    assert run(line) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "zero bytes" in err
    assert "none of the 6 images" in err


def test_the_output_of_tag_is_named_by_its_ending_and_may_be_stdout(
    artifact, pictures, tmp_path, capsys
):
    line = ["tag", str(artifact), str(pictures), "--threshold", "0"]
    assert run([*line, "-o", str(tmp_path / "tags.csv")]) == 0
    assert (tmp_path / "tags.csv").read_text(encoding="utf-8").startswith("image,tag,score")
    assert run([*line, "-o", str(tmp_path / "tags.csv"), "--format", "jsonl"]) == 1
    assert "named as csv" in capsys.readouterr().err
    photo = pictures / "été.jpg"
    before = photo.read_bytes()
    assert run([*line, "-o", str(photo)]) == 1
    assert photo.read_bytes() == before
    for stdout in ("-", "/dev/stdout"):
        assert run([*line, "-o", stdout]) == 0
        assert json.loads(capsys.readouterr().out)["tags"]


def test_json_on_stdout_is_nothing_but_json(artifact, pictures, tmp_path, capsys):
    labels = {"categories": ["dog", "cat"], "photos": {"été.jpg": {"labels": ["dog"]}}}
    (pictures / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    line = ["evaluate", str(artifact), "--dataset", "folder", "--path", str(pictures)]
    assert run([*line, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 1
    assert "zero-shot" in captured.err
    line = ["calibrate", str(artifact), "--grammar", "20", "--out", str(tmp_path / "tuned")]
    assert run([*line, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["categories"]
    assert "threshold" in captured.err
    (tmp_path / "link.json").symlink_to("real.json")
    line = ["evaluate", str(artifact), "--dataset", "folder", "--path", str(pictures)]
    assert run([*line, "--json", str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text(encoding="utf-8"))


def test_files_beside_images_are_shown_written_and_taken_back(
    artifact, pictures, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("lxml")
    sidecar = pictures / "été.xmp"
    space = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    before = f'<rdf:RDF xmlns:rdf="{space}"><rdf:Description rdf:about=""/></rdf:RDF>'.encode()
    sidecar.write_bytes(before)
    line = ["tag", str(artifact), str(pictures), "--threshold", "0", "--top-k", "2"]
    assert run([*line, "--format", "xmp", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{sidecar} (changed)"
    assert out[1].startswith("  + dc:subject: ")
    assert sidecar.read_bytes() == before
    assert run([*line, "--format", "xmp"]) == 0
    assert all(name in sidecar.read_text("utf-8") for name in out[1].split(": ")[1].split(", "))
    assert run([*line, "--format", "xmp", "--append"]) == 0
    assert "1 had been before" in capsys.readouterr().err
    more = ["--caption-prefix", "sks", "--caption-ending", ".caption"]
    assert run([*line, "--format", "txt", *more]) == 0
    assert (pictures / "été.caption").read_text("utf-8").startswith("sks, ")
    assert run(["untag", str(pictures), "--caption-ending", ".caption", "--dry-run"]) == 0
    assert f"{sidecar} (changed)" in capsys.readouterr().out.splitlines()
    assert sidecar.read_bytes() != before
    assert run(["untag", str(pictures), "--caption-ending", ".caption"]) == 0
    assert sidecar.read_bytes() == before
    assert not (pictures / "été.caption").exists()
    assert run(["untag", str(pictures)]) == 0
    assert "1 image looked at, 0 files of theirs changed" in capsys.readouterr().err
    sidecar.write_bytes(b"<broken")
    assert run(["untag", str(pictures)]) == 3
    assert run([*line, "--replace"]) == 1
    assert run([*line, "--sidecar", "stem"]) == 1
    monkeypatch.chdir(pictures)
    assert run(["embed", "été.jpg", "--out", str(tmp_path / "embeddings")]) == 0
    monkeypatch.chdir(tmp_path)
    line = ["tag", str(artifact), "--embeddings", str(tmp_path / "embeddings")]
    assert run([*line, "--threshold", "0", "--format", "xmp"]) == 3
    assert "no file" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.xmp"))


def test_going_on_asks_for_the_same_settings_and_tries_failures_again(
    artifact, pictures, tmp_path, capsys, monkeypatch
):
    shutil.copy(pictures / "été.jpg", pictures / "a.jpg")
    (pictures / "b.jpg").write_bytes(b"")
    half = (pictures / "a.jpg").read_bytes()
    (pictures / "c.jpg").write_bytes(half[: len(half) // 3])
    out = tmp_path / "tags.jsonl"
    line = ["tag", str(artifact), str(pictures), "--append", "-o", str(out)]
    assert run(line) == 3
    assert run(line) == 3  # the damaged one is remembered and still told of
    err = capsys.readouterr().err
    assert "2 had been before" in err
    assert "1 found damaged before" in err
    assert run([*line, "--top-k", "1"]) == 1
    assert "--redo" in capsys.readouterr().err
    shutil.copy(pictures / "a.jpg", pictures / "b.jpg")
    shutil.copy(pictures / "a.jpg", pictures / "c.jpg")
    monkeypatch.chdir(pictures)
    line[2] = "."
    assert run(line) == 0
    assert "2 had been before" in capsys.readouterr().err
    rows = [json.loads(row) for row in out.read_text("utf-8").splitlines()]
    assert sorted(os.path.basename(row["image"]) for row in rows) == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "été.jpg",
    ]
    assert not any("error" in row for row in rows)
    assert run([*line, "--top-k", "1", "--redo", "--threshold", "0"]) == 0
    rows = [json.loads(row) for row in out.read_text("utf-8").splitlines()]
    assert [len(row["tags"]) for row in rows] == [1, 1, 1, 1]


def test_every_command_that_walks_folders_takes_the_same_options(
    artifact, pictures, tmp_path, capsys
):
    photo = (pictures / "été.jpg").read_bytes()
    (pictures / "raw").mkdir()
    for name in ("raw/b.jpg", ".c.jpg"):
        (pictures / name).write_bytes(photo)
    write_shard(pictures / "s.tar", {"one.jpg": photo, "two.two.jpg": photo})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jpg").write_bytes(photo)
    (pictures / "link").symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "page.html"
    report = ["report", str(artifact), str(pictures), "-o", str(out)]

    def shown(*options):
        assert run([*report, *options]) == 0
        page = out.read_text("utf-8")
        assert "cannot be read" not in page
        data = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', page, re.S)[1])
        assert all(image["u"].startswith("data:image/jpeg") for image in data["images"])
        return {image["n"] for image in data["images"]}

    everything = {"été.jpg", "raw/b.jpg", "s.tar/one", "s.tar/two.two", ".c.jpg", "link/d.jpg"}
    assert shown("--hidden", "--follow") == everything
    assert shown("--exclude", "raw/", "--exclude", "*.tar") == {"été.jpg"}
    halves = [shown("--hidden", "--follow", "--shard", f"{n}/2") for n in (1, 2)]
    assert halves[0] | halves[1] == everything
    assert not halves[0] & halves[1]
    # A tags file says which images, those in shards as well.
    tags = tmp_path / "tags.jsonl"
    assert run(["tag", str(artifact), str(pictures / "s.tar"), "-o", str(tags)]) == 0
    report[1] = str(tags)
    assert shown() == {str(pictures / "s.tar/one"), str(pictures / "s.tar/two.two")}
    assert run([*report, "--exclude", "x"]) == 1
    assert "give an artifact" in capsys.readouterr().err

    line = ["tag", str(artifact), str(pictures), "--threshold", "0", "--format", "txt", "--hidden"]
    assert run([*line, "--exclude", "*.tar"]) == 0
    sidecars = {name: (pictures / name).with_suffix(".txt") for name in ("été.jpg", "raw/b.jpg")}
    assert all(path.exists() for path in sidecars.values())
    capsys.readouterr()
    assert run(["untag", str(pictures), "--exclude", "raw"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 image looked at, 1 files of theirs changed; passed over: 3 hidden, 3 excluded" in said
    assert not sidecars["été.jpg"].exists()
    assert sidecars["raw/b.jpg"].exists()
    for part in ("1/2", "2/2"):
        assert run(["untag", str(pictures), "--shard", part, "--hidden"]) == 0
    assert not list(pictures.rglob("*.txt"))
    assert run(["untag", str(tmp_path / "none")]) == 1


def test_adapt_learns_from_labelled_images_and_others(artifact, tmp_path, capsys):
    from pvp_fast.artifact import Artifact

    photos = tmp_path / "photos"
    photos.mkdir()
    scenes = sorted(demo_set().glob("*.jpg"))
    shown = [["dog"], ["cat"], ["car"]]
    labels = {}
    for i, scene in enumerate(scenes[:12]):
        shutil.copy(scene, photos / scene.name)
        labels[scene.name] = {"labels": shown[i % 3]}
    record = {"categories": ["dog", "cat", "car"], "photos": labels}
    (photos / "labels.json").write_text(json.dumps(record))
    others = tmp_path / "others"
    others.mkdir()
    for scene in scenes[12:16]:
        shutil.copy(scene, others / scene.name)
    (others / "bad.jpg").write_bytes(b"no picture")
    line = ["adapt", str(artifact), "--images", str(photos), "--views", "1"]
    line += ["--unlabelled", str(others), "--out", str(tmp_path / "new")]
    assert run(line) == 3
    out, err = capsys.readouterr()
    assert "12 images, 4 without labels; mAP on left-out ones" in out
    assert "bad.jpg" in err
    images = Artifact.load(tmp_path / "new").metrics["images"]
    assert (images["count"], images["unlabelled"]) == (12, 4)
    assert images["map_after"] >= images["map_before"]
    assert run([*line[:6], "--out", str(tmp_path / "alone")]) == 0
    assert "12 images; mAP" in capsys.readouterr().out


def test_every_command_says_the_same_of_the_same_folder(artifact, tmp_path, capsys):
    """One folder in trouble: the counts, the reasons and the exit code do not depend on the
    command, and no name moves a terminal's cursor."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes = sorted(demo_set().glob("*.jpg"))[:3]
    for scene in scenes:
        shutil.copy(scene, folder)
    shutil.copy(scenes[0], folder / "red\x1b[31m.jpg")
    (folder / "cut.jpg").write_bytes(scenes[0].read_bytes()[:400])
    (folder / "empty\n.png").write_bytes(b"")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / ".hidden.jpg").write_bytes(b"")
    names, out = str(artifact), str(tmp_path / "out")
    made = tmp_path / "made"
    lines = {
        "tag": ["tag", names, str(folder), "-o", f"{out}.jsonl"],
        "csv": ["tag", names, str(folder), "-o", f"{out}.csv"],
        "sqlite": ["tag", names, str(folder), "-o", f"{out}.db"],
        "dry": ["tag", names, str(folder), "--format", "xmp", "--dry-run"],
        "embed": ["embed", str(folder), "--out", str(made)],
        "report": ["report", names, str(folder), "-o", f"{out}.html"],
    }
    said = {}
    for name, line in lines.items():
        capsys.readouterr()
        assert run(line) == 3, name
        err = capsys.readouterr().err.splitlines()
        failures = sorted(line for line in err if line.startswith("pvp-fast: "))
        assert [re.sub(r".*/", "", f.partition(": ")[2]).partition(": ")[0] for f in failures] == [
            "cut.jpg",
            "empty\\n.png",
            "gone.jpg",
        ]
        assert "\x1b" not in "".join(err)
        said[name] = err[-1]
    end = "; 3 failed, each named above; passed over: 1 .svg, 1 hidden"
    assert said["tag"] == said["csv"] == said["sqlite"] == f"4 images tagged{end}"
    assert said["dry"] == f"dry run: 4 images would be tagged{end}"
    assert said["embed"] == f"4 images embedded in {made}{end}"
    assert said["report"] == f"4 images shown{end}"
    # Once more: what had been done before, and what was found damaged.
    shutil.copy(scenes[0], folder / "new.jpg")
    again = (
        "1 image {}; 4 had been before; 2 failed, each named above; 1 found damaged before, "
        "unchanged (--retry-failed tries them again); passed over: 1 .svg, 1 hidden"
    )
    for line, words in (
        (lines["sqlite"], "tagged"),
        ([*lines["tag"], "--append"], "tagged"),
        (lines["embed"], f"embedded in {made}"),
    ):
        capsys.readouterr()
        assert run(line) == 3
        assert capsys.readouterr().err.splitlines()[-1] == again.format(words)
