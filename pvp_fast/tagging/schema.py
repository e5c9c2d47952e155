"""The result of tagging an image, as every output and the service give it: one JSON Schema."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 1  # another one only where a field goes, or means something else

TAG: dict[str, Any] = {
    "type": "object",
    "required": ["name", "score"],
    "properties": {"name": {"type": "string"}, "score": {"type": "number"}},
}
RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["image", "tags", "error"],
    "properties": {
        "image": {
            "type": "string",
            "description": "Its path, its name in a shard or request, or a number.",
        },
        "tags": {"type": "array", "items": TAG, "description": "Best first."},
        "error": {"type": ["string", "null"], "description": "Why there are no tags."},
    },
}
