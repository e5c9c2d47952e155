"""Learned words enter every kind of text tower where the model's own embeddings do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from support.towers import SIGLIP, VIT, coca, hf, open_clip_text, save_tokenizer, seeded
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.modules.prompts import TextPrompts

TEXTS = ["a dog", "a cat sits on the mat with another cat", "", "teddy bear", "what!?? a"]
LINEAR = {"proj_type": "linear"}


def siglip(kind: str, folder: Path) -> Backbone:
    """SigLIP's transformer: no mask at all, the last place pooled, the row full of padding."""
    save_tokenizer(kind, folder)
    backbone = open_clip_text(**SIGLIP)
    tokenizer = open_clip.tokenizer.HFTokenizer(
        str(folder), context_length=24, clean="canonicalize"
    )
    return Backbone(backbone.model, tokenizer, Preprocess(32))


KINDS: dict[str, Callable[[Path], Backbone]] = {
    "clip": lambda _: open_clip_text(open_clip.CLIP),
    "padding masked": lambda _: masked_padding(),
    "coca": lambda _: coca(),
    "coca, correct mask": lambda _: coca(correct_cls_mask=True),
    "siglip": lambda folder: siglip("siglip", folder),
    "siglip 2": lambda folder: siglip("siglip2", folder),
    "xlm-r, mean, mlp": lambda folder: hf("xlm-roberta", folder, "mean_pooler", proj_type="mlp"),
    "roberta, mean": lambda folder: hf("roberta", folder, **LINEAR),
    "roberta, class": lambda folder: hf(
        "roberta", folder, "cls_last_hidden_state_pooler", **LINEAR
    ),
    "bert, class": lambda folder: hf("bert", folder, **LINEAR),
    "mt5": lambda folder: hf("mt5", folder, "mean_pooler", **LINEAR),
    "nllb": lambda folder: hf("nllb", folder, "cls_pooler", **LINEAR),
}


def masked_padding() -> Backbone:
    backbone = open_clip_text(no_causal_mask=True)
    backbone.model.text.use_pad_mask = True  # no configuration sets it in open_clip 3.3
    return Backbone(backbone.model, open_clip.SimpleTokenizer(context_length=24), Preprocess(32))


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def test_embeddings_of_tokens_give_the_models_own_features(backbone: Backbone) -> None:
    ids = backbone.tokenize(TEXTS)
    expected = backbone.model.encode_text(ids, normalize=True)
    embedded, end = backbone.embed_tokens(ids), backbone.text_end(ids)
    got = backbone.encode_embedded(embedded, end, ids)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        backbone.encode_text(TEXTS, batch_size=1), expected, atol=1e-6, rtol=0
    )
    assert float(expected.std(dim=0).mean()) > 0.01  # the texts differ
    # Without the tokens, padding is what lies behind the end; all but the last text have no other.
    got = backbone.encode_embedded(embedded, end)
    torch.testing.assert_close(got[:-1], expected[:-1], atol=1e-6, rtol=0)


def test_prompts_are_the_text_with_the_words_in_it(backbone: Backbone) -> None:
    names = ["dog", "teddy_bear", "x"]
    prompts = TextPrompts(backbone, names, init="a big")
    expected = backbone.model.encode_text(prompts.ids, normalize=True)
    with torch.no_grad():
        torch.testing.assert_close(prompts(backbone), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(prompts(backbone, [2, 0]), expected[[2, 0]], atol=1e-6, rtol=0)
    prompts(backbone)[:, 0].sum().backward()
    assert prompts.ctx.grad is not None
    assert bool((prompts.ctx.grad.abs().sum(dim=-1) > 0).all())
    assert all(p.grad is None for p in backbone.parameters())
    # The words that a context starts from are read as in a text.
    start = prompts._start
    words = backbone.tokenize(["a big"])[0]
    assert torch.equal(
        prompts.ids[0, start : start + prompts.n_ctx], words[start:][: prompts.n_ctx]
    )


def test_names_up_to_the_whole_context(backbone: Backbone) -> None:
    room = backbone.context_length
    lengths = range(room - 12, room + 3)
    ends = backbone.text_end(backbone.tokenize([f"{'q ' * n}." for n in lengths])).tolist()
    fits = [n for n, end in zip(lengths, ends, strict=True) if end < room - 1]
    if not fits:  # two tokens a letter
        lengths = range(1, room)
        ends = backbone.text_end(backbone.tokenize([f"{'q ' * n}." for n in lengths])).tolist()
        fits = [n for n, end in zip(lengths, ends, strict=True) if end < room - 1]
    name = ("q " * fits[-1]).strip()
    prompts = TextPrompts(backbone, ["dog", name], n_ctx=8)  # the long row has no padding left
    assert prompts.n_ctx < 8
    expected = backbone.model.encode_text(prompts.ids, normalize=True)
    ids = prompts.ids
    with torch.no_grad():
        got = backbone.encode_embedded(backbone.embed_tokens(ids), prompts.end, ids)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="leaves no room for a prompt"):
        TextPrompts(backbone, ["dog", "q " * room])


def test_token_features_hold_the_pooled_one(backbone: Backbone) -> None:
    ids = backbone.tokenize(TEXTS)
    features, mask = backbone.encode_text_tokens(TEXTS)
    assert features.shape == (len(TEXTS), backbone.context_length, 16)
    assert torch.equal(mask.sum(dim=1) - 1, backbone.text_end(ids))
    tower = backbone._tower()
    if tower.pool in ("ClsPooler", "ClsLastHiddenStatePooler"):
        found = features[:, 0]
    elif tower.pool == "MeanPooler" and isinstance(backbone.model.text.proj, torch.nn.Linear):
        with torch.no_grad():
            tokens = tower.encode_tokens(tower.embed(ids), ids)
        found = F.normalize((tokens * mask[..., None]).sum(dim=1), dim=-1)
    elif tower.pool == "argmax" and backbone._tower()._class_token is None:
        found = features[torch.arange(len(TEXTS)), mask.sum(dim=1) - 1]
    elif tower.pool == "last":
        found = features[:, -1]
    else:  # CoCa's text token stands behind the words, and an MLP does not commute with the mean
        return
    torch.testing.assert_close(found, backbone.encode_text(TEXTS), atol=1e-6, rtol=0)


def test_cocas_padding_is_a_letter_too() -> None:
    """CLIP's number 0 is "!": open_clip masks it wherever it stands, and so do prompts."""
    backbone = coca()
    ids = backbone.tokenize(["what!?? a"])
    end = backbone.text_end(ids)
    assert int((ids[0, : int(end)] == 0).sum()) > 0, ids
    embedded = backbone.embed_tokens(ids)
    expected = backbone.model.encode_text(ids)
    got = backbone.encode_embedded(embedded, end, ids)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(backbone.encode_embedded(embedded, end), expected, atol=1e-4)


def test_cocas_class_token_reads_the_first_padding() -> None:
    """The published mask is one place off; prompts keep the padding that it lets through."""
    for backbone, reads in ((coca(), True), (coca(correct_cls_mask=True), False)):
        ids = backbone.tokenize(["a dog"])
        end = backbone.text_end(ids)
        embedded = backbone.embed_tokens(ids)
        changed = embedded.clone()
        changed[:, int(end) + 1, ::2] += 1
        before = backbone.encode_embedded(embedded, end, ids)
        moved = backbone.encode_embedded(changed, end, ids) - before
        assert bool(moved.abs().max() > 1e-3) is reads
        changed[:, int(end) + 2 :, ::2] += 1  # and nothing behind that
        again = backbone.encode_embedded(changed, end, ids) - before
        torch.testing.assert_close(again, moved, atol=1e-6, rtol=0)


def test_a_cocas_context_is_its_text_towers(tmp_path: Path) -> None:
    """Not its caption decoder's, and 77 tokens for a Hugging Face tower as in open_clip."""
    plain = hf("roberta", tmp_path, **LINEAR)
    model = seeded(lambda: coca().model)
    model.text = plain.model.text
    model.context_length = 76
    assert Backbone(model, plain._tokenizer, Preprocess(VIT["image_size"])).context_length == 77


def test_ids_are_checked() -> None:
    backbone = coca()
    ids = backbone.tokenize(["a dog"])
    with pytest.raises(InputError, match=r"ids has shape \(1, 3\); give \(1, 24\)"):
        backbone.encode_embedded(backbone.embed_tokens(ids), backbone.text_end(ids), ids[:, :3])


def test_a_tower_without_a_pooled_place_says_so() -> None:
    backbone = open_clip_text(pool_type="none", proj_type="none")
    with pytest.raises(BackboneError, match="pools by 'none'"):
        backbone.require_prompts()
