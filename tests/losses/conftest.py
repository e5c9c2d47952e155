"""What the tests of the compiled losses share."""

from __future__ import annotations

import pytest

from pvp_fast import native


@pytest.fixture(
    params=[isa for isa in ("portable", "avx2", "avx512") if isa in native.call("isas")]
)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PVP_FAST_ISA", request.param)
    return request.param
