"""The recipes in deploy/ name what there is: extras, files, options and probes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pvp_fast.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"]


def parsed(words: list[str]) -> dict[str, Any]:
    """What ``pvp-fast serve`` makes of its command line."""
    group: Any = typer.main.get_command(app)
    return group.commands["serve"].make_context("serve", words).params


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_starts_the_service_and_installs_what_it_needs(file: Path) -> None:
    found = instructions(file)
    last = dict(found)
    start = [*yaml.safe_load(last["ENTRYPOINT"]), *yaml.safe_load(last["CMD"])]
    assert start[:2] == ["pvp-fast", "serve"]
    assert parsed(start[2:])["host"] == "0.0.0.0"
    assert last["USER"] != "root"
    extras = {extra for _, rest in found for extra in re.findall(r'"\.\[([\w,]+)\]"', rest)}
    assert extras
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    assert "serve" in ",".join(extras)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_its_context_holds_what_the_build_reads_and_no_more(file: Path) -> None:
    lines = file.with_name(f"{file.name}.dockerignore").read_text(encoding="utf-8").split()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    read = re.findall(r'^readme = "(.*)"|^license-files = \["(.*)"\]', project, re.MULTILINE)
    packages = re.findall(r'^"pvp_fast.*" = "(.*)"', project, re.MULTILINE)
    needed = {*("".join(pair) for pair in read), *packages, "pyproject.toml", "CMakeLists.txt"}
    assert {*needed, "csrc"} == set(kept)


def test_the_unit_starts_the_service(tmp_path: Path) -> None:
    text = (DEPLOY / "pvp-fast.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=\S*pvp-fast serve (.*)", text, re.MULTILINE)
    found = parsed(shlex.split(line))
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)
    assert int(stop) > found["timeout"]
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "pvp-fast.service"
    # It looks whether the program is there.
    unit.write_text(text.replace("/opt/pvp-fast/bin/pvp-fast", sys.executable))
    done = subprocess.run(
        [program, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert "pvp-fast.service" not in done.stderr, done.stderr


def test_the_manifest_fits_the_service() -> None:
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    deployment, service = found
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed(container["args"])
    assert pod["terminationGracePeriodSeconds"] > options["timeout"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert str(options["artifact"]) in mounts
    assert str(options["token_file"].parent) in mounts
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": options["port"]}]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
