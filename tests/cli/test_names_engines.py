"""--vocabulary where something else tags: Ray's workers and the HTTP service."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chat import Server, captions_for, chat, running_server
from support.waiting import PATIENCE, until

from pvp_fast import Backbone, Tagger, Vocabulary
from pvp_fast.artifact import Artifact
from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.sentences import OpenAIChat
from pvp_fast.sentences.generate import prompt_for

SCENES = [str(demo_set() / f"scene_{i:03}.jpg") for i in range(3)]


@pytest.fixture
def named(tmp_path: Path) -> list[str]:
    """Options of three names, one with a label, and an empty cache."""
    words = tmp_path / "tags.yaml"
    words.write_text("giraffe: {label: Giraffe (Tier)}\nkite:\ncow:\n", encoding="utf-8")
    return ["--vocabulary", str(words), "--model", "pocket", "--cache", str(tmp_path / "kept")]


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def spoken(server: Server) -> list[str]:
    """Options that let the language model write and the names learn from it."""
    return ["--llm", "tiny", "--base-url", server.url, "--learn", "text"]


def test_one_language_model_serves_every_command(
    named: list[str],
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(Path(SCENES[0]).read_bytes())
    given = [*named, *spoken(server)]
    page = tmp_path / "page.html"
    assert run(["report", *given, str(folder), "-o", str(page)]) == 0
    said = capsys.readouterr().err
    assert re.search(r"(\d+) of the \1 sentences", said)
    assert "no sentence mentions" not in said
    assert "Giraffe (Tier)" in page.read_text(encoding="utf-8")
    asked = len(server.requests)
    (record,) = (tmp_path / "kept" / "sentences").glob("*.jsonl")
    assert len(record.read_text("utf-8").splitlines()) == asked
    # The sentences and what was learned from them are found again, whoever asks.
    served = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.append(app))
    assert run(["serve", *given]) == 0
    assert run(["tag", *given, *SCENES]) == 0
    out, err = capsys.readouterr()
    assert served
    assert err.count("artifact:") == 2
    assert json.loads(out.splitlines()[0])["tags"][0]["name"] == "Giraffe (Tier)"
    words = Vocabulary.load(named[1])
    tagger = Tagger.from_names(
        words,
        backbone=Backbone.load("pocket"),
        learn="text",
        writer=OpenAIChat(server.url, "tiny"),
        cache=tmp_path / "kept",
    )
    assert tagger.artifact.version == Artifact.load(found(tmp_path)).version
    assert len(server.requests) == asked


def found(tmp_path: Path) -> Path:
    """The only artifact in the cache."""
    (artifact,) = (tmp_path / "kept").glob("vocabularies/*/artifact")
    return artifact


def test_a_killed_run_asks_for_the_rest_alone(
    named: list[str], server: Server, tmp_path: Path
) -> None:
    line = ["tag", *named, *spoken(server), SCENES[0]]

    def held() -> tuple[int, dict[str, str], bytes]:
        released.wait(PATIENCE)
        return 500, {}, b""

    # One answered round of four, and a second that hangs while the process is killed.
    released = threading.Event()
    replies = [chat(captions_for(prompt_for(["giraffe"], 8), i)) for i in range(4)]
    server.script = [*replies, *[held] * 4]
    command = [sys.executable, "-c", "from pvp_fast.cli import main; main()"]
    process = subprocess.Popen([*command, *line], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        until(lambda: len(server.requests) >= 8 or process.poll() is not None)
        process.kill()
    finally:
        process.communicate(timeout=PATIENCE)
        released.set()
    (record,) = (tmp_path / "kept" / "sentences").glob("*.jsonl")
    before = record.read_bytes()
    assert len(before.splitlines()) == 4
    answered = {json.loads(row)["prompt"] for row in before.splitlines()}
    server.requests.clear()
    server.script.clear()
    assert run(line) == 0
    assert record.read_bytes().startswith(before)
    again = [request["messages"][0]["content"] for request in server.requests]
    entries = [json.loads(row) for row in record.read_text("utf-8").splitlines()]
    assert len(entries) == 4 + len(again)
    assert len({(entry["index"], entry["prompt"]) for entry in entries}) == len(entries)
    assert answered


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--llm", "tiny"], "needs --llm NAME and --base-url URL"),
        (["--llm", "tiny", "--base-url", "http://x/v1", "--local-llm", "here"], "not both"),
        (["--llm", "tiny", "--base-url", "http://x/v1", "--learn", "none"], "reads no sentences"),
    ],
)
@pytest.mark.parametrize("command", ["tag", "serve", "report"])
def test_wrong_options_are_refused_before_anything_is_loaded(
    named: list[str],
    command: str,
    options: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = {"tag": SCENES[:1], "serve": [], "report": [str(tmp_path)]}[command]
    assert run([command, *named, *options, *images]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_tags_that_are_there_take_no_options_of_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tags.jsonl").write_text("")
    line = ["report", str(tmp_path / "tags.jsonl"), str(tmp_path), "--learn", "text"]
    assert run(line) == 1
    assert "--learn: only with --vocabulary" in capsys.readouterr().err


def test_ray_tags_with_names(
    named: list[str],
    server: Server,
    tmp_path: Path,
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [*named, *spoken(server)]
    assert run(["tag", *named, *SCENES]) == 0
    alone = {
        row["image"]: row["tags"]
        for row in map(json.loads, capsys.readouterr().out.split("\n")[:-1])
    }
    monkeypatch.chdir(tmp_path)  # workers import from where the driver stands
    out = tmp_path / "out"
    line = ["tag", *named, *SCENES, "--engine", "ray", "--address", ray_address, "--actors", "1"]
    assert run([*line, "-o", str(out), "--only", "kite"]) == 1
    assert "--only" in capsys.readouterr().err
    try:
        assert run([*line, "-o", str(out), "--format", "jsonl"]) == 0
    finally:
        import ray

        ray.shutdown()
    assert "made:" not in capsys.readouterr().err  # the artifact is the one in the cache
    files = sorted((out / "tags").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    assert sorted(row["image"] for row in rows) == sorted(alone)
    for row in rows:
        assert [tag["name"] for tag in row["tags"]] == [tag["name"] for tag in alone[row["image"]]]
    assert ["Giraffe (Tier)"] in [[tag["name"] for tag in row["tags"]] for row in rows]


def test_the_service_tags_with_names(named: list[str], tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-c", "from pvp_fast.cli import main; main()", "serve"]
    process = subprocess.Popen(
        [*line, *named, "--port", str(port)],
        env={key: value for key, value in os.environ.items() if key != "PVP_FAST_TOKEN"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                return bool(httpx.get(f"{url}/healthz", timeout=PATIENCE).json()["status"] == "ok")
            return process.poll() is not None

        until(answers)
        head = {"content-type": "image/jpeg"}
        data = Path(SCENES[0]).read_bytes()
        answer = httpx.post(f"{url}/tag", content=data, headers=head, timeout=PATIENCE)
        assert [tag["name"] for tag in answer.json()["results"][0]["tags"]] == ["Giraffe (Tier)"]
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
        process.communicate()
    assert f"made: {tmp_path / 'kept'}" in " ".join(said.split())
