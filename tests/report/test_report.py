"""The page escapes whatever text it is given."""

from __future__ import annotations

import json

from pvp_fast.report.page import Page, Picture, build_page, script_json
from pvp_fast.report.svg import curves

EVIL = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>{{ data }}"


def test_no_text_becomes_markup():
    page = Page(
        names=(EVIL,),
        sentences=1,
        examples=(EVIL,),
        timings=((EVIL, 1.0),),
        rows=({"name": EVIL, "map": 1.0, "cf1": 2.0, "of1": 3.0},),
        pictures=(Picture(EVIL, b"\xff\xd8\xff", (0.5,), (1,)),),
        prompts=("data:image/png;base64,AA",),
        curves=((EVIL, ((1.0, 2.0, 3.0), (2.0, 1.0, float("nan")))),),
        threshold=0.5,
    )
    text = build_page(page)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == 2


def test_script_json_round_trips():
    assert json.loads(script_json({"a": EVIL})) == {"a": EVIL}


def test_a_curve_without_points_is_still_a_chart():
    assert "<svg" in curves([("empty", [(1.0, float("nan"))])])
