"""The public losses with backend="triton", run by test_kernels.py with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from support.followed import files_of_asl_loss
from support.fused_cases import KINDS, LABELS, check, leaves, make_labels

from pvp_fast import losses
from pvp_fast.errors import InputError
from pvp_fast.losses import fused


@pytest.mark.parametrize("regime", ["small", "chunked", "recompute"])
@pytest.mark.parametrize("kind", KINDS)
def test_regimes(kind: str, regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (kind, regime) == ("ranking", "small"):
        with pytest.raises(InputError, match="ranking"):
            check(
                kind, leaves(2, 20, 9), make_labels("bool", 2, 20), backend="triton", regime=regime
            )
        return
    monkeypatch.setattr(fused, "_TILE", {"cpu": 160})
    monkeypatch.setattr(fused, "_ROWS", {"cpu": 4})
    check(kind, leaves(6, 33, 13), make_labels("bool", 6, 33), backend="triton", regime=regime)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", ["asl", "ranking"])
def test_label_kinds(kind: str, labels: str) -> None:
    check(kind, leaves(3, 20, 9), make_labels(labels, 3, 20), backend="triton")
    check(kind, leaves(3, 20, 9), make_labels(labels, 3, 20), backend="triton", regime="chunked")


def test_one_by_one_extremes_and_no_gradient() -> None:
    check("asl", leaves(1, 1, 5), make_labels("bool", 1, 1), backend="triton")
    for regime in ("small", "chunked"):
        wild = leaves(2, 20, 5, scale=80.0)
        check("asl", wild, make_labels("bool", 2, 20), backend="triton", regime=regime)
        x, w = (t.detach() for t in wild[:2])
        y = make_labels("bool", 2, 20)
        found = losses.asl_loss(x, w, y, backend="triton", regime=regime)
        torch.testing.assert_close(found, losses.asl_loss_ref(x, w, y))


def test_vocabularies_beyond_the_small_kernel_say_so() -> None:
    with pytest.raises(InputError, match="C <= 64"):
        losses.asl_loss(
            torch.ones(1, 2), torch.ones(65, 2), torch.ones(1, 65), backend="triton", regime="small"
        )


@pytest.mark.parametrize(
    ("regime", "categories", "through"),
    [
        ("chunked", 300, {"losses/tiles", "kernels/entrywise"}),
        ("small", 30, {"kernels/entrywise", "kernels/entrywise_small"}),
    ],
)
def test_asl_loss_is_followed_through_six_files(
    regime: str, categories: int, through: set[str]
) -> None:
    shared = {"losses/asl", "losses/fused", "losses/problem", "dispatch"}
    assert files_of_asl_loss("triton", regime, categories) == shared | through
