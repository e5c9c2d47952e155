"""Fill the page's template. Every text is escaped; data for the script is JSON without ``<``."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pvp_fast.report.svg import bars, curves

SHOWN = 40  # pictures in the gallery: enough to judge, and the page stays a few hundred kB
MIMES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif"}

Row = dict[str, Any]  # "name", "map", "cf1", "of1", and "map_sd" ... over several seeds
Curve = tuple[tuple[float, float, float], ...]  # (step, loss, mAP)


@dataclass(frozen=True)
class Picture:
    """A tagged picture: file name, encoded bytes, scores (C,) and truth (C,) in -1/0/1."""

    name: str
    data: bytes
    scores: tuple[float, ...]
    truth: tuple[int, ...]


@dataclass(frozen=True)
class Page:
    """All that the page shows."""

    names: tuple[str, ...]
    sentences: int
    examples: tuple[str, ...]
    timings: tuple[tuple[str, float], ...]
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...]
    prompts: tuple[str, ...]
    curves: tuple[tuple[str, Curve], ...]
    threshold: float


def build_page(page: Page) -> str:
    """The page as one HTML text that asks nothing of any server."""
    text = html.escape
    shown = page.pictures[:SHOWN]
    gain = page.rows[-1]["map"] - page.rows[0]["map"]
    data = {
        "names": page.names,
        "threshold": round(page.threshold, 3),
        "pictures": [
            {
                "name": p.name,
                "src": data_uri(p.data),
                "scores": [round(s, 4) for s in p.scores],
                "truth": [i for i, t in enumerate(p.truth) if t > 0],
            }
            for p in shown
        ],
    }
    values = {
        "first": f"{page.rows[0]['map']:.1f}",
        "last": f"{page.rows[-1]['map']:.1f}",
        "gain": f"{gain:+.1f}",
        "categories": str(len(page.names)),
        "sentences": f"{page.sentences:,}",
        "total": f"{sum(s for _, s in page.timings):.0f}",
        "steps": "".join(f"<li>{text(w)} <b>{s:.1f} s</b></li>" for w, s in page.timings),
        "examples": "".join(f"<li>{text(e)}</li>" for e in page.examples),
        "table": _table(page.rows),
        "bars": bars([(str(r["name"]), float(r["map"])) for r in page.rows]),
        "prompts": "".join(
            f'<figure><img src="{text(uri)}" alt="learned picture of {text(name)}" loading="lazy">'
            f"<figcaption>{text(name)}</figcaption></figure>"
            for name, uri in zip(page.names, page.prompts, strict=True)
        ),
        "loss": curves([(n, [(s, a) for s, a, _ in c]) for n, c in page.curves], relative=True),
        "map": curves([(n, [(s, b) for s, _, b in c]) for n, c in page.curves]),
        "data": script_json(data),
    }
    return fill("template.html", values)


def fill(template: str, values: Mapping[str, str], package: str = "pvp_fast.report") -> str:
    """A package's template with its ``{{ names }}`` filled in; values are HTML already.

    ``{{ style }}`` is the style sheet that all pages share.
    """
    style = files("pvp_fast.report").joinpath("style.css").read_text(encoding="utf-8")
    head, *parts = files(package).joinpath(template).read_text(encoding="utf-8").split("{{")
    pieces = [head]
    # One pass, so that a value which contains {{…}} is never filled in itself.
    for part in parts:
        name, rest = part.split("}}", 1)
        name = name.strip()
        pieces += [style if name == "style" else values[name], rest]
    return "".join(pieces)


def script_json(data: Any) -> str:
    """JSON that can stand inside ``<script>``: no ``<``, ``>``, ``&`` or line separators."""
    found = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_uri(data: bytes) -> str:
    """A data URI; the type is read from the first bytes."""
    mime = next((m for magic, m in MIMES.items() if data.startswith(magic)), "image/webp")
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def png_uri(image: Any) -> str:
    """A data URI of a uint8 image (H, W, 3)."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.numpy()).save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue())


def read_curve(path: Path) -> Curve:
    """Step, loss and held-out mAP of a stage's ``log.csv``."""
    with open(path, newline="", encoding="utf-8") as stream:
        return tuple(
            (float(row["step"]), float(row["loss"]), float(row["map"]))
            for row in csv.DictReader(stream)
        )


def _table(rows: Sequence[Row]) -> str:
    def cell(row: Row, key: str) -> str:
        sd = row.get(f"{key}_sd")
        spread = f" <small>± {sd:.1f}</small>" if sd is not None and math.isfinite(sd) else ""
        return f"<td>{row[key]:.1f}{spread}</td>"

    return "".join(
        f"<tr><th scope='row'>{html.escape(str(row['name']))}</th>"
        + "".join(cell(row, key) for key in ("map", "cf1", "of1"))
        + "</tr>"
        for row in rows
    )
