"""--vocabulary where something else tags: Ray's workers and the HTTP service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE, until

from pvp_fast.cli import run
from pvp_fast.demo import demo_set

SCENES = [str(demo_set() / f"scene_{i:03}.jpg") for i in range(3)]


@pytest.fixture
def named(tmp_path: Path) -> list[str]:
    """Options of three names, one with a label, and an empty cache."""
    words = tmp_path / "tags.yaml"
    words.write_text("giraffe: {label: Giraffe (Tier)}\nkite:\ncow:\n", encoding="utf-8")
    return ["--vocabulary", str(words), "--model", "pocket", "--cache", str(tmp_path / "kept")]


def test_ray_tags_with_names(
    named: list[str],
    tmp_path: Path,
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
