"""Fixtures shared by all tests."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # cores are shared among workers, not among their threads
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for what a test starts

import torch

if TYPE_CHECKING:
    from pvp_fast import Backbone, Corpus, Tagger

# ``python -m pytest`` puts the checkout first, where kernels/ and pvp_fast/ would hide what is
# installed, from the libraries around us as well.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).parents[1]]
# And so for every Python that a test starts in the checkout: ``-c`` would put it first again.
os.environ["PYTHONSAFEPATH"] = "1"

# What commands keep from run to run is this session's alone.
os.environ["PVP_FAST_CACHE"] = tempfile.mkdtemp(prefix="pvp_fast_cache.")
atexit.register(shutil.rmtree, os.environ["PVP_FAST_CACHE"], ignore_errors=True)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The optional folder of real captions, photos and embeddings.

    ``PVP_FAST_TEST_DATA`` names it; the default is ``shared/data`` beside the checkout.
    """
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("PVP_FAST_TEST_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the test data folder {folder} (set PVP_FAST_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A small random CLIP with region features."""
    from support.training import tiny_clip

    return tiny_clip()


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Eighty sentences about four categories."""
    from pvp_fast import Vocabulary, build_corpus
    from pvp_fast.sentences import grammar_sentences

    vocabulary = Vocabulary(["dog", "cat", "car", "pizza"])
    return build_corpus(grammar_sentences(vocabulary, 80, seed=0), vocabulary)


def trained(folder: Path, *options: str) -> Iterator[Path]:
    """The folder of a run of ``pvp-fast train`` on the pocket model; no test may change it."""
    from support.artifacts import NAMES

    from pvp_fast.artifact import Artifact
    from pvp_fast.cli import run

    (folder / "words.txt").write_text("\n".join(NAMES), encoding="utf-8")
    line = ["train", "--vocabulary", str(folder / "words.txt"), "--grammar", "150", "--quiet"]
    assert run([*line, *options, "--out", str(folder / "run")]) == 0
    version = Artifact.load(folder / "run" / "artifact").version
    yield folder / "run"
    assert Artifact.load(folder / "run" / "artifact").version == version


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An artifact of ``support.artifacts.NAMES``, trained for two steps a stage."""
    for folder in trained(tmp_path_factory.mktemp("trained"), "--steps", "2"):
        yield folder / "artifact"


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training with the local branch; its artifact lies in ``artifact/``."""
    steps = "visual=1,text=1,adapter=1,local=2"
    yield from trained(tmp_path_factory.mktemp("local"), "--local", "--steps", steps)


@pytest.fixture(scope="session")
def pocket() -> Backbone:
    """The model that ships with the package."""
    from pvp_fast import Backbone

    return Backbone.load("pocket")


@pytest.fixture(scope="session")
def tagger(artifact: Path, pocket: Backbone) -> Tagger:
    """A tagger of the shared artifact."""
    from pvp_fast import Tagger

    return Tagger.load(artifact, backbone=pocket)


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray of two CPUs on this machine, which a test joins and leaves as a job of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # for all that joins it, too
    utilities = pytest.importorskip("ray.cluster_utils")
    # A folder of its own, where no other Ray of this machine looks for one to join; its name is
    # short, for sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray.", dir="/tmp", ignore_cleanup_errors=True) as own:
        options = {"num_cpus": 2, "include_dashboard": False, "temp_dir": own}
        running = utilities.Cluster(initialize_head=True, head_node_args=options)
        yield running.address
        running.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium by playwright; skips without either.

    Not for the session: while it is open an event loop runs here, and ``asyncio.run`` refuses.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(BROWSERS)}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=binary, args=flags)
        yield running
        running.close()
