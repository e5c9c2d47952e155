"""What a test reads off a page in a browser."""

from __future__ import annotations

from typing import Any


def text(page: Any, selector: str) -> str:
    return str(page.locator(selector).inner_text())
