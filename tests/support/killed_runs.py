"""Command lines in processes that are killed at a step of their work, and what they leave.

A step is a file that is opened, made, renamed or removed below given folders: the same run has the
same steps on a slow machine and on a fast one, so a kill is told by the work done and not by time.
Processes are forked from one that has everything imported and nothing begun.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.collection import Collection

from pvp_fast.sinks.names import plain

_STEPS = frozenset({"open", "os.rename", "os.remove", "os.truncate", "os.mkdir"})
_PRELOAD = ["pvp_fast.cli.app", "pvp_fast.tagging.tagger", "pvp_fast.tagging.embeddings"]
_PRELOAD += ["pvp_fast.cli.tag", "pyarrow.parquet", "support.tiny"]


class Ended(NamedTuple):
    """How a run came to its end.

    Attributes:
        code: exit code, -9 when it was killed. steps: of its work. said: all of stderr.
    """

    code: int
    steps: int
    said: str

    @property
    def counts(self) -> dict[str, int]:
        """Images in the last line: done, before, failed, failed_before, passed."""
        lines = [line for line in self.said.splitlines() if re.match(r"\d+ images? ", line)]
        line = lines[-1] if lines else ""
        found = {
            "done": r"^(\d+) images? (?:tagged|embedded)",
            "before": r"(\d+) had been before",
            "failed": r"(\d+) failed, each",
            "failed_before": r"(\d+) found damaged before",
        }
        counts = {}
        for name, pattern in found.items():
            match = re.search(pattern, line)
            counts[name] = int(match.group(1)) if match else 0
        passed = re.sub(r"\([^)]*\)", "", line.partition("passed over: ")[2].partition(";")[0])
        counts["passed"] = sum(int(n) for n in re.findall(r"(?:^|, )(\d+) ", passed))
        return counts


class Runs:
    """Starts runs.

    Args:
        work: a folder for what they print. watched: folders whose files are steps.

    Attributes:
        cluster: address of a Ray cluster, which outlives the runs that are killed.
    """

    cluster: str | None = None

    def __init__(self, work: Path, watched: Sequence[Path]) -> None:
        self._work, self._watched = work, [os.fspath(path) for path in watched]
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        tests = os.fspath(Path(__file__).parents[1])  # for what is imported in there
        places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if tests not in places:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, *places]))

    def __call__(
        self, line: Sequence[str], *, die_at: int | None = None, backend: str | None = None
    ) -> Ended:
        """Run a command line, until it ends or has done ``die_at`` steps.

        Args:
            backend: of the loader, where the command would choose by the device.
        """
        said, steps = self._work / "said", self._work / "steps"
        steps.unlink(missing_ok=True)
        arguments = (list(line), self._watched, die_at, backend, self.cluster, said, steps)
        process = self._context.Process(target=_go, args=arguments)
        process.start()
        process.join()
        assert process.exitcode is not None
        done = int(steps.read_text()) if steps.exists() else die_at or 0
        return Ended(process.exitcode, done, said.read_text("utf-8", "replace"))


def _go(
    line: list[str],
    watched: list[str],
    die_at: int | None,
    backend: str | None,
    cluster: str | None,
    said: Path,
    steps: Path,
) -> None:
    """In the process that is to be killed."""
    printed = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(printed, descriptor)
    os.chdir(said.parent)
    from pvp_fast.cli import run
    from pvp_fast.loaders import stream

    _use_tiny_clip()
    if backend is not None:
        stream._pick_backend = lambda *_: backend  # as a CUDA device would have it
    if cluster is not None:
        import ray

        hook = {"worker_process_setup_hook": _use_tiny_clip}
        ray.init(cluster, logging_level="ERROR", runtime_env=hook)
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _STEPS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.fsdecode(arguments[0]).startswith(tuple(watched)):
            done += 1
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = run(line)
    sys.stderr.flush()
    steps.write_text(str(done))
    os._exit(code)


def _use_tiny_clip() -> None:
    """What is tried here is everything but the model."""
    from support.tiny import CLIP

    from pvp_fast.clip.backbone import Backbone

    Backbone.load = lambda *_, **__: CLIP  # type: ignore[assignment]


def tiny_artifact(folder: Path) -> Path:
    """An artifact of the tiny CLIP."""
    from support.training import small, tiny_clip

    from pvp_fast import Vocabulary, build_corpus
    from pvp_fast.sentences import grammar_sentences
    from pvp_fast.training import train

    vocabulary = Vocabulary(["dog", "cat", "car", "pizza"])
    corpus = build_corpus(grammar_sentences(vocabulary, 80, seed=0), vocabulary)
    train(tiny_clip(), corpus, folder / "run", small(), progress=False)
    return folder / "run" / "artifact"


# --- what is there in the end -------------------------------------------------------------------


def state(mode: str, out: Path) -> list[Any]:
    """All that an output holds, in an order of its own: equal states are equal bit for bit."""
    return sorted(_READERS[mode](out), key=ascii)


def keys(mode: str, out: Path) -> tuple[list[str], list[str]]:
    """Images of an output that were read, and those that failed."""
    if mode == "csv":  # a row a tag: the first of each image
        rows = {row["image"]: row for row in state(mode, out)}.values()
        return _split(rows)
    if mode == "sqlite":
        return _split({"image": r[1], "error": r[3]} for r in state(mode, out) if r[0] == "images")
    return _split(state(mode, out))


def _split(rows: Any) -> tuple[list[str], list[str]]:
    good: list[str] = []
    bad: list[str] = []
    for row in rows:
        (bad if row.get("error") else good).append(row["image"])
    return good, bad


def _jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _parquet(folder: Path) -> list[Any]:
    import pyarrow.parquet

    files = sorted(folder.glob("*.parquet"))
    return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]


def _sqlite(path: Path) -> list[Any]:
    database = sqlite3.connect(path)
    try:
        tables = {name: f"SELECT * FROM {name}" for name in ("images", "tags")}
        return [(name, *row) for name, query in tables.items() for row in database.execute(query)]
    finally:
        database.close()


def _embed(folder: Path) -> list[Any]:
    from pvp_fast.tagging.embeddings import EmbeddingStore

    store = EmbeddingStore(folder)
    manifest = json.loads((folder / "embeddings.json").read_text())
    found: list[Any] = [{"image": "", "error": "", "complete": store.complete}]
    for batch in store.batches():
        for key, row, content in zip(batch.keys, batch.z.numpy(), batch.contents, strict=True):
            found.append({"image": key, "content": content, "bits": row.tobytes().hex()})
    for key, reason, _, content in manifest["failures"]:
        found.append({"image": key, "content": content, "error": reason})
    return found[1:] if store.complete else found


def _ray(folder: Path) -> list[Any]:
    rows = _parquet(folder / "tags")
    for file in (folder / "failures").glob("*.jsonl"):
        rows += _jsonl(file)
    return rows


_READERS = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "sqlite": _sqlite,
    "embed": _embed,
    "ray": _ray,
}
MODES = tuple(_READERS)


def line_of(mode: str, artifact: Path, photos: Path, out: Path) -> list[str]:
    """The command that goes on with ``out``. One image at a time: a model's bits depend on how many
    it encodes at once."""
    one = ["--batch-size", "1"]
    if mode == "embed":
        return ["embed", str(photos), "--out", str(out), *one, "--shard-rows", "64", "--redo"]
    line = ["tag", str(artifact), str(photos), "-o", str(out), "--format", mode, *one]
    if mode == "ray":
        line[line.index("ray")] = "parquet"
        return [*line, "--engine", "ray", "--partition-size", "64", "--actors", "2"]
    return line if mode == "sqlite" else [*line, "--append"]


def trial(
    mode: str,
    artifact: Path,
    work: Path,
    collection: Collection,
    *,
    kills: int,
    seed: int = 0,
    backend: str | None = None,
) -> dict[str, Any]:
    """Tag or embed a mixed collection in runs that are killed, while it changes, and once more in
    one run, and compare.

    Args:
        mode: one of ``MODES``. artifact: of :func:`tiny_artifact`. work: an empty folder.
        collection: it is changed. kills: runs that must be killed.

    Returns:
        Counts for people; ``faults`` lists what is wrong.
    """
    began = time.monotonic()
    photos, outputs, printed = collection.root, work / "out", work / "printed"
    printed.mkdir()
    files = collection.seen
    runs = Runs(printed, [photos, outputs])
    if mode == "ray":
        runs.cluster = _cluster()
    chance = random.Random(f"{mode}/{backend}/{seed}")
    out, clean = outputs / "resumed", outputs / "clean"

    def run(where: Path, die_at: int | None = None) -> Ended:
        return runs(line_of(mode, artifact, photos, where), die_at=die_at, backend=backend)

    killed = started = 0
    # A first run opens every image at least; later ones what is left.
    left = files * 2 if mode != "ray" else files // 8
    while killed < kills:
        ended = run(out, chance.randint(1, max(2, left)))
        started += 1
        if ended.code == -signal.SIGKILL:
            killed += 1
            left = max(left - ended.steps // 2, files // 20)
        elif ended.code in (0, 3):
            left = ended.steps
        else:
            return {"mode": mode, "faults": [f"exit code {ended.code}: {ended.said[-2000:]}"]}
        collection.change()
    last, once = run(out), run(clean)
    resumed, whole = state(mode, out), state(mode, clean)
    expected = collection.expected
    faults = [*_differences(resumed, whole), *_leftovers(outputs)]
    for ended in (last, once):
        faults += _unaccounted(ended, collection)
    for found, right in zip(keys(mode, out), (expected.good, expected.bad), strict=True):
        names = [os.path.relpath(key, photos) for key in found]
        faults += [f"twice: {len(names) - len(set(names))}"] * (len(names) != len(set(names)))
        # Some formats hold names that are not UTF-8, others their escapes.
        wrong = {plain(name) for name in names} ^ {plain(name) for name in right}
        faults += [f"not as it should be: {name}" for name in sorted(wrong)[:5]]
    return {
        "mode": mode,
        "loader": backend or "torch",
        "kills": killed,
        "runs": started + 2,
        "files_seen": collection.seen,
        "read": len(expected.good),
        "failed": len(expected.bad),
        "passed_over": expected.passed,
        "equal_to_one_clean_run": resumed == whole,
        "seconds": round(time.monotonic() - began, 1),
        "faults": faults,
    }


def _cluster() -> str:
    """The address of a Ray cluster of this process's own; it ends with it."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "600")  # on a busy machine
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    return str(ray.get_runtime_context().gcs_address)


def _differences(resumed: list[Any], whole: list[Any]) -> list[str]:
    if resumed == whole:
        return []
    one, other = set(map(ascii, resumed)), set(map(ascii, whole))
    return [
        f"rows: {len(resumed)} and {len(whole)}",
        *(f"only in the resumed: {row[:300]}" for row in sorted(one - other)[:4]),
        *(f"only in the clean: {row[:300]}" for row in sorted(other - one)[:4]),
    ]


def _leftovers(outputs: Path) -> list[str]:
    """Files that a killed run began and nobody took away."""
    names = (path.name for path in outputs.rglob("*"))
    return [f"left behind: {name}" for name in names if name.endswith((".tmp", "-wal", "-journal"))]


def _unaccounted(ended: Ended, collection: Collection) -> list[str]:
    if ended.code not in (0, 3):
        return [f"exit code {ended.code}: {ended.said[-2000:]}"]
    counts = ended.counts
    read, failed = counts["done"] + counts["before"], counts["failed"] + counts["failed_before"]
    said = (read, failed, counts["passed"], read + failed + counts["passed"])
    expected = collection.expected
    right = (len(expected.good), len(expected.bad), expected.passed, collection.seen)
    return [] if said == right else [f"(read, failed, passed over, seen) {said}, right {right}"]
