"""The demo, end to end, with as few steps as there can be."""

from __future__ import annotations

from pvp_fast.demo.run import run_demo


def test_demo_writes_one_page_that_asks_no_server(tmp_path):
    page = run_demo(tmp_path / "demo", sentences=50, steps=1, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "dual adapter" in text
    assert text.count("<figure>") == 70
    assert 'src="http' not in text
    assert "url(" not in text
    assert "{{" not in text
