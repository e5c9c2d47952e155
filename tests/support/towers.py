"""Tiny models of every kind of text and image tower, with tokenizers of the real classes."""

from __future__ import annotations

import contextlib
import string
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from tokenizers.processors import TemplateProcessing

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess

VIT = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
COCA = {
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "multimodal_cfg": {
        "context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
    },
}  # fmt: skip
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}


def seeded(make: Any) -> Any:
    """What ``make`` builds from a fixed seed, the global one left as it was."""
    state = torch.get_rng_state()
    torch.manual_seed(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    finally:
        torch.set_rng_state(state)


def open_clip_text(cls: type = open_clip.CustomTextCLIP, **text: Any) -> Backbone:
    """An open_clip text transformer behind a plain ViT."""
    given = {**TEXT, **text}
    model = seeded(lambda: cls(embed_dim=16, vision_cfg=VIT, text_cfg=given))
    tokenizer = open_clip.SimpleTokenizer(context_length=given["context_length"])
    return Backbone(model, tokenizer, Preprocess(32))


def coca(*, correct_cls_mask: bool = False) -> Backbone:
    model = seeded(lambda: open_clip.CoCa(embed_dim=16, **COCA))
    model.text.correct_cls_mask = correct_cls_mask  # no configuration sets it in open_clip 3.3
    return Backbone(model, open_clip.SimpleTokenizer(context_length=24), Preprocess(32))


def hf(kind: str, folder: Path, pooler: str | None = None, **projection: Any) -> Backbone:
    """A Hugging Face text tower of ``kind`` with its tokenizer, through files in ``folder``."""
    import transformers

    save_tokenizer(kind, folder)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    hf_config(kind, size).save_pretrained(folder)

    def make() -> Any:
        model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
        model.text = HFTextEncoder(
            str(folder), 16, pooler_type=pooler, pretrained=False, **projection
        )
        with torch.no_grad():  # the library starts biases and norms at 0 and 1: nothing would show
            for value in model.text.parameters():
                if value.ndim < 2:
                    value.add_(torch.randn_like(value) * 0.1)
        model.context_length = model.text.context_length
        return model

    return Backbone(seeded(make), open_clip.tokenizer.HFTokenizer(str(folder)), Preprocess(32))


def hf_config(kind: str, vocab_size: int) -> Any:
    import transformers as t

    bert = {
        "vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 90,
        "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "bert":
        return t.BertConfig(**bert)
    if kind == "roberta":
        return t.RobertaConfig(**bert, type_vocab_size=1)
    if kind == "xlm-roberta":
        return t.XLMRobertaConfig(**bert, type_vocab_size=1)
    if kind == "mt5":
        return t.MT5Config(
            vocab_size=vocab_size, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2
        )
    return t.M2M100Config(
        vocab_size=vocab_size, d_model=32, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=90, init_std=0.2,
    )  # fmt: skip


def save_tokenizer(kind: str, folder: Path) -> None:
    """A tokenizer of the class and with the markers that ``kind`` has, of single letters."""
    import transformers as t

    letters = [*string.ascii_letters, *string.digits, *".,'-!", "▁", "▁a", "▁dog"]
    scores = [(letter, -2.0) for letter in letters]
    if kind == "xlm-roberta":
        first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        made = t.XLMRobertaTokenizer(vocab=[*first, *scores, ("<mask>", 0.0)])
    elif kind == "mt5":
        made = t.T5Tokenizer(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores], extra_ids=0
        )
    elif kind == "nllb":
        words = ["<s>", "<pad>", "</s>", "<unk>", *letters[:-2]]
        made = t.NllbTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    elif kind == "roberta":
        words = ["<s>", "<pad>", "</s>", "<unk>", *letters[:-3], "Ġ", "<mask>"]
        made = t.RobertaTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    elif kind == "bert":
        inner = [f"##{letter}" for letter in letters[:-3]]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters[:-3], *inner]
        made = t.BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    elif kind == "siglip":  # T5's, and the end marker fills the row
        made = t.T5Tokenizer(
            vocab=[("<unk>", 0.0), ("</s>", 0.0), ("<2>", 0.0), *scores],
            pad_token="</s>",
            extra_ids=0,
        )
    elif kind == "clip":
        marks = [f"{letter}</w>" for letter in letters[:-3]]
        words = [*letters[:-3], *marks, "<|startoftext|>", "<|endoftext|>"]
        made = t.CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    elif kind == "siglip2":
        words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters[:-2]]
        made = t.Siglip2Tokenizer(
            vocab={word: n for n, word in enumerate(words)}, merges=[], padding_side="right"
        )
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        )
    else:
        raise ValueError(kind)
    made.save_pretrained(folder)


def timm_tower(
    kind: str, pool: str, proj: str | None = None, *, size: Any = 32, **options: Any
) -> Backbone:
    """A tiny timm tower through open_clip's own ``TimmModel``, 16 wide."""
    from open_clip.timm_model import TimmModel

    def make() -> Any:
        model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
        with timm_entry(kind, options) as name:
            model.visual = TimmModel(name, 16, size, pool, proj)
        with torch.no_grad():  # timm starts projections small: every token would be alike
            for value in model.visual.parameters():
                value.add_(torch.randn_like(value) * 0.2)
        return model

    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return Backbone(seeded(make), tokenizer, Preprocess(size))


@contextlib.contextmanager
def timm_entry(kind: str, options: dict[str, Any]) -> Iterator[str]:
    """A name under which ``timm.create_model`` makes a tiny model of ``kind``."""
    from timm.models import (
        _registry,
        convnext,
        eva,
        fastvit,
        naflexvit,
        swin_transformer,
        vision_transformer,
        vision_transformer_relpos,
    )  # fmt: skip

    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    makers = {
        "vit": lambda **given: vision_transformer.VisionTransformer(**{**vit, **given}),
        "relpos": lambda **given: vision_transformer_relpos.VisionTransformerRelPos(
            **{**vit, "class_token": True, **given}
        ),
        "naflex": lambda **given: naflexvit.NaFlexVit(
            **{**vit, "class_token": False, "pos_embed_grid_size": (4, 4), **given}
        ),
        "eva": lambda **given: eva.Eva(**{**vit, **given}),
        "convnext": lambda **given: convnext.ConvNeXt(
            **{"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), **given}
        ),
        "swin": lambda **given: swin_transformer.SwinTransformer(
            **{"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1),
               "num_heads": (1, 1, 1, 1), "window_size": 2, **given}
        ),
        "fastvit": lambda **given: fastvit.FastVit(
            **{"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128),
               "token_mixers": ("repmixer",) * 3 + ("attention",), **given}
        ),
    }  # fmt: skip

    maps = ("convnext", "swin", "fastvit")

    def entry(**given: Any) -> Any:
        for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            given.pop(key, None)
        model = makers[kind](**{**options, **given})
        model.default_cfg = {"pool_size": (1, 1)} if kind in maps else {}
        return model

    name = f"tiny_{kind}"
    _registry._model_entrypoints[name] = entry
    try:
        yield name
    finally:
        del _registry._model_entrypoints[name]


def save_transformers(kind: str, folder: Path) -> Any:
    """A tiny checkpoint as transformers writes it: weights, tokenizer, processor."""
    import transformers as t

    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    image = {**tower, "image_size": 32, "patch_size": 8}
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor: Any = t.CLIPImageProcessor(**crop)
    names = {"clip": "clip", "metaclip_2": "xlm-roberta", "altclip": "xlm-roberta",
             "chinese_clip": "bert"}  # fmt: skip
    save_tokenizer(names.get(kind, kind), folder)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    if kind == "clip":
        end = tokenizer.eos_token_id
        text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
        config: Any = t.CLIPConfig(text_config=text, vision_config=image, projection_dim=16)
    elif kind == "metaclip_2":
        config = t.MetaClip2Config(
            text_config={**text, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
            vision_config=image, projection_dim=16,
        )  # fmt: skip
    elif kind == "siglip":
        config = t.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=image)
        processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    elif kind == "siglip2":
        variable = {**tower, "patch_size": 8, "num_patches": 16}
        config = t.Siglip2Config(
            text_config={**text, "projection_size": 32}, vision_config=variable
        )
        processor = t.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    elif kind == "altclip":
        config = t.AltCLIPConfig(
            text_config={**text, "max_position_embeddings": 30, "project_dim": 32},
            vision_config=image, projection_dim=16,
        )  # fmt: skip
    else:
        config = t.ChineseCLIPConfig(text_config=text, vision_config=image, projection_dim=16)
        processor = t.ChineseCLIPImageProcessor(
            size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
        )

    def make() -> Any:
        model = t.AutoModel.from_config(config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim and not name.endswith(("logit_scale", "logit_bias")):
                    value.add_(torch.randn_like(value) * 0.1)
        return model

    model = seeded(make).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
