"""Small inline charts in plain SVG; colours come from the page's CSS variables."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 210, 44, 8, 10, 26


def bars(values: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars of named values between 0 and 100."""
    row = 40
    top = max(1.0, max(v for _, v in values)) * 1.12
    parts = []
    for i, (name, value) in enumerate(values):
        width = max(1.0, value / top * (WIDTH - 60))
        y = i * row
        last = " class='last'" if i == len(values) - 1 else ""
        parts.append(
            f"<text x='0' y='{y + 13}'>{html.escape(name)}</text>"
            f"<rect{last} x='0' y='{y + 18}' width='{width:.1f}' height='14' rx='3'/>"
            f"<text x='{width + 6:.1f}' y='{y + 30}'>{value:.1f}</text>"
        )
    return (
        f"<svg class='bars' viewBox='0 0 {WIDTH} {row * len(values)}' role='img' "
        f"aria-label='mAP of each rung of the ladder'>{''.join(parts)}</svg>"
    )


def curves(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], relative: bool = False
) -> str:
    """Line chart; the x axis is each line's own progress, ``relative`` divides by the first y."""
    cleaned = []
    for name, points in lines:
        good = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        first = good[0][1] if good else 1.0
        scale = first if relative and first else 1.0
        end = good[-1][0] if good else 1.0
        cleaned.append((name, [(x / (end or 1.0), y / scale) for x, y in good]))
    ys = [y for _, points in cleaned for _, y in points] or [0.0, 1.0]
    low, high = (0.0 if relative else min(ys)), max(ys)
    span = (high - low) or 1.0
    parts = []
    for k in range(5):
        value = low + span * k / 4
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - k / 4)
        parts.append(
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>"
            f"{value:.2f}</text>"
            if relative
            else f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:.0f}</text>"
        )
    for k, (name, points) in enumerate(cleaned):
        path = " ".join(
            f"{LEFT + (WIDTH - LEFT - RIGHT) * x:.1f},"
            f"{TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / span):.1f}"
            for x, y in points
        )
        parts.append(
            f"<polyline class='c{k}' points='{path}'><title>{html.escape(name)}</title></polyline>"
        )
    parts.append(
        f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 6}' text-anchor='end'>end of stage</text>"
    )
    legend = "".join(
        f"<span class='c{k}'>{html.escape(name)}</span>" for k, (name, _) in enumerate(cleaned)
    )
    return (
        f"<svg class='curves' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(parts)}</svg>"
        f"<p class='legend'>{legend}</p>"
    )


def diagonal(points: Sequence[tuple[float, float, int]]) -> str:
    """Reliability diagram of (probability, share that is right, entries); areas show entries."""
    side = HEIGHT - TOP - BOTTOM
    most = max((n for _, _, n in points), default=1)

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + side * x, TOP + side * (1 - y)

    parts = []
    for k in range(5):
        (left, y), (right, _) = at(0, k / 4), at(1, k / 4)
        parts.append(
            f"<line x1='{left}' x2='{right:.1f}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{k / 4:.2f}</text>"
        )
    (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
    parts.append(
        f"<line class='ideal' x1='{x1}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2}'/>"
        f"<text x='{x2:.1f}' y='{HEIGHT - 6}' text-anchor='end'>probability</text>"
    )
    for chance, share, entries in points:
        x, y = at(chance, share)
        radius = 3 + 6 * math.sqrt(entries / most)
        parts.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}'>"
            f"<title>{entries} tags at {chance:.2f}: {share:.2f} right</title></circle>"
        )
    return (
        f"<svg class='diagonal' viewBox='0 0 {LEFT + side + RIGHT} {HEIGHT}' role='img' "
        f"aria-label='how often tags of a probability are right'>{''.join(parts)}</svg>"
    )
