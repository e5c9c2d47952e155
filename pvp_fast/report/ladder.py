"""The ladder of METHOD section 9 as rows: one rung a method, one number a metric."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def rows_of(ladder: Any) -> list[Row]:
    """Rows ``{"name", "map", "cf1", "of1"}`` of an evaluation ladder."""
    found = ladder.to_dict()
    return list(found["rows"] if isinstance(found, dict) else found)


def spread(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean of each number over runs (seeds), and its sample standard deviation as ``*_sd``."""
    rows: list[Row] = []
    for same in zip(*runs, strict=True):
        row: Row = {"name": same[0]["name"]}
        for key, value in same[0].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values = [float(item[key]) for item in same]
                row[key] = statistics.fmean(values)
                if len(values) > 1:
                    row[f"{key}_sd"] = statistics.stdev(values)
        rows.append(row)
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """The rows as an aligned plain-text table."""
    keys = [k for k in ("map", "cf1", "of1") if k in rows[0]]
    titles = {"map": "mAP", "cf1": "CF1", "of1": "OF1"}
    width = max(len(str(row["name"])) for row in rows)
    lines = [" " * width + "".join(f"{titles[k]:>15}" for k in keys)]
    for row in rows:
        cells = ""
        for key in keys:
            sd = row.get(f"{key}_sd")
            cells += (
                f"{row[key]:.1f} ± {sd:.1f}".rjust(15) if sd is not None else f"{row[key]:15.1f}"
            )
        lines.append(f"{row['name']:<{width}}{cells}")
    return "\n".join(lines)
