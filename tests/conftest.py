"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pvp_fast import Backbone, Corpus

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
    import open_clip
    from support.training import TEXT, VIT

    from pvp_fast.clip.backbone import Backbone, Preprocess

    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
    torch.set_rng_state(state)
    return Backbone(model, open_clip.SimpleTokenizer(context_length=40), Preprocess(32))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Eighty sentences about four categories."""
    from pvp_fast import Vocabulary, build_corpus
    from pvp_fast.sentences import grammar_sentences

    vocabulary = Vocabulary(["dog", "cat", "car", "pizza"])
    return build_corpus(grammar_sentences(vocabulary, 80, seed=0), vocabulary)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium by playwright; skips without either."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(BROWSERS)}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=binary, args=flags)
        yield running
        running.close()
