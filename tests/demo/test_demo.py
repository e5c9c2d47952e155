"""The demo, end to end, with as few steps as there can be."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.demo.run import run_demo
from pvp_fast.evaluation import read_folder
from pvp_fast.pictures import open_image
from pvp_fast.report.page import SHOWN


def test_demo_writes_one_page_that_asks_no_server(tmp_path):
    page = run_demo(tmp_path / "demo", sentences=50, steps=1, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "dual adapter" in text
    assert text.count("<figure>") == 70
    assert 'src="http' not in text
    assert "url(" not in text
    assert "{{" not in text


def test_the_page_shows_the_final_scores_with_the_local_branch(tmp_path: Path) -> None:
    page = run_demo(tmp_path, sentences=120, steps=2, local=True, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "+ local" in text
    assert "local branch" in text
    data, _ = json.JSONDecoder().raw_decode(text, text.index('{"names":'))
    shown = torch.tensor([picture["scores"] for picture in data["pictures"]])
    backbone, head = Backbone.load("pocket"), Artifact.load(tmp_path / "seed0" / "artifact").head
    paths = read_folder(demo_set()).paths[:SHOWN]
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(open_image(path)) for path in paths])
        z, regions = backbone.encode_image(pixels), head.regions(backbone, pixels)
    expected = head.probabilities(head.cosines(z, regions))
    # Another decoder, and a steep calibration.
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-2)
    assert head.local is not None
    assert float(head.local.weight[0]) > 0  # so that the branch has a say
    alone = head.probabilities(head.global_cosines(z))
    assert float((alone - expected).abs().max()) > 0.01
    assert [round(data["threshold"], 3)] == [round(float(head.thresholds.median()), 3)]
