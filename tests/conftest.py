"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


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
