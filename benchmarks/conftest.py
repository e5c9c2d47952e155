"""``pytest benchmarks/ --quick``: every benchmark at tiny sizes, to see that all of them run."""

from __future__ import annotations

import pytest

QUICK = {"categories": 1_000, "batch": 16}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="tiny sizes and few rounds")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        config.option.benchmark_min_rounds = 2
        config.option.benchmark_max_time = 0.02


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the sizes of parametrised benchmarks that pass QUICK."""
    if not config.getoption("quick"):
        return
    small, large = [], []
    for item in items:
        sizes = getattr(getattr(item, "callspec", None), "params", {})
        fits = all(sizes.get(name, 0) <= most for name, most in QUICK.items())
        (small if fits else large).append(item)
    items[:] = small
    config.hook.pytest_deselected(items=large)
