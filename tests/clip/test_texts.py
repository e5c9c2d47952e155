"""Text towers and tokenizers that are not CLIP's own: lengths, end markers, deleted marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from support.artifacts import every_tensor
from support.training import small

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import InputError
from pvp_fast.modules.prompts import TextPrompts
from pvp_fast.sentences import build_corpus
from pvp_fast.training import TrainConfig, train
from pvp_fast.vocabulary.categories import Vocabulary

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
WORDS = (
    "a", "photo", "of", "the", "dog", "cat", "c", "t", "shirt", "tshirt", "washer", "dryer",
    "washerdryer", "x", "teddy", "bear", ".",
)  # fmt: skip
LONG = " ".join(["dog", "cat"] * 300)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer with BERT's markers, as transformers saves one."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    ).save_pretrained(folder)
    return folder


def standard(tokenizer: Any, length: int = 16) -> Backbone:
    """CLIPA's and SigLIP's kind of tower: no causal mask, pooled at the last place."""
    text = {
        "context_length": length, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1,
        "no_causal_mask": True, "pool_type": "last",
    }  # fmt: skip
    torch.manual_seed(1)
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VIT, text_cfg=text)
    return Backbone(model, tokenizer, Preprocess(32), name="small")


def hugging_face(folder: Path, tokenizer: Path, kind: str, context: int = 77) -> Backbone:
    transformers = pytest.importorskip("transformers")
    if kind == "mt5":  # no position table at all
        config: Any = transformers.MT5Config(
            vocab_size=32, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2
        )
    else:
        config = transformers.XLMRobertaConfig(
            vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=514, pad_token_id=0,
        )  # fmt: skip
    config.save_pretrained(folder)
    torch.manual_seed(1)
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler"}  # fmt: skip
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VIT, text_cfg=text)
    return Backbone(model, HFTokenizer(str(tokenizer), context), Preprocess(32), name=kind)


@pytest.mark.parametrize("kind", ["xlm-roberta", "mt5"])
def test_hugging_face_texts_are_padded_as_open_clip_does(
    kind: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    backbone = hugging_face(tmp_path / kind, tokenizer_folder, kind)
    assert backbone.context_length == 77
    texts = ["a dog", LONG, ""]
    ids = backbone.tokenize(texts)
    assert ids.shape == (3, 77)
    assert torch.equal(ids, HFTokenizer(str(tokenizer_folder))(texts))
    expected = torch.nn.functional.normalize(backbone.model.encode_text(ids), dim=-1)
    assert torch.equal(backbone.encode_text(texts), expected)


def test_a_tower_with_few_positions_keeps_to_them(tmp_path: Path, tokenizer_folder: Path) -> None:
    backbone = hugging_face(tmp_path, tokenizer_folder, "xlm-roberta", context=2000)
    assert backbone.context_length == 513  # of 514 places one is the padding's
    assert backbone.encode_text([LONG]).isfinite().all()


def test_a_foreign_tower_learns_from_two_sentences(tmp_path: Path, tokenizer_folder: Path) -> None:
    backbone = hugging_face(tmp_path / "tower", tokenizer_folder, "xlm-roberta")
    corpus = build_corpus(["a dog", "a cat"], Vocabulary(["dog", "cat"]))
    learned = train(backbone, corpus, tmp_path / "run", small(), progress=False)
    assert all(t.isfinite().all() for t in every_tensor(learned).values())


def test_a_stripped_end_marker_costs_no_word(tokenizer_folder: Path) -> None:
    """CLIPA's tokenizer overwrites the end marker with padding."""
    backbone = standard(HFTokenizer(str(tokenizer_folder), 16, strip_sep_token=True))
    ids = backbone.tokenize(["a dog", "teddy bear .", LONG, ""])
    assert ids[0].tolist()[:5] == [1, 4, 8, 0, 0]
    assert backbone.text_end(ids).tolist() == [3, 4, 15, 1]
    embedded = backbone.encode_embedded(backbone.embed_tokens(ids), backbone.text_end(ids))
    expected = torch.nn.functional.normalize(backbone.model.encode_text(ids), dim=-1)
    torch.testing.assert_close(embedded, expected, atol=1e-6, rtol=0)
    prompts = TextPrompts(backbone, ["dog", "teddy bear"], init="a photo of the")
    assert prompts.n_ctx == 4
    # [CLS] a photo of the dog . and padding: what the tokenizer makes of the whole text.
    assert torch.equal(
        prompts.ids, backbone.tokenize(["a photo of the dog.", "a photo of the teddy bear."])
    )
    assert TextPrompts(backbone, ["dog"], n_ctx=3).n_ctx == 3  # noise, in the places of "X"
    kept = standard(HFTokenizer(str(tokenizer_folder), 16))
    assert kept.text_end(kept.tokenize(["a dog"])).tolist() == [3]  # its own end marker


def test_marks_are_spaces_before_a_tokenizer_that_deletes_them(tokenizer_folder: Path) -> None:
    siglip = standard(HFTokenizer(str(tokenizer_folder), 16, clean="canonicalize"))
    plain = siglip._tokenizer(["t shirt", "washer dryer", "t shirt", "a b"])
    mine = siglip.tokenize(["T-shirt", "washer/dryer", "t_shirt", "a\\b"])
    assert torch.equal(mine, plain)
    assert siglip.same_texts(["C", "dog", "C#", "C++", "T-shirt", "tshirt"]) == [("C", "C#", "C++")]
    # Others keep their marks, and their texts are open_clip's to the token.
    clip = Backbone(
        open_clip.CLIP(
            embed_dim=16,
            vision_cfg=VIT,
            text_cfg={
                "context_length": 16,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 1,
            },
        ),
        open_clip.SimpleTokenizer(context_length=16),
        Preprocess(32),
    )
    assert torch.equal(
        clip.tokenize(["a T-shirt"]),
        open_clip.SimpleTokenizer(context_length=16)(["a T-shirt"], 16),
    )
    assert clip.same_texts(["C", "C#", "C++"]) == []
    assert clip.same_texts(["dog", "Dog", "cat"]) == [("dog", "Dog")]
    assert clip.same_texts([f"{LONG} {end}" for end in ("dog", "cat")]) != []  # cut off alike


def test_names_that_a_model_reads_as_one_are_told_at_training(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siglip = standard(HFTokenizer(str(tokenizer_folder), 16, clean="canonicalize"))
    names = Vocabulary(["dog", "cat's x", "cats x"])
    corpus = build_corpus(["a dog", "the cat's x and cats x"], names)
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    # Before any work, of which there is none: the folder holds another run.
    with (
        pytest.warns(UserWarning, match="small reads \"cat's x\", 'cats x' as one text"),
        pytest.raises(InputError, match="another"),
    ):
        train(siglip, corpus, folder, TrainConfig.demo(), progress=False)


def test_texts_of_like_length_share_a_batch_and_come_back_in_order(pocket: Backbone) -> None:
    texts = ["a dog", "a dog beside two cats on a red sofa in a small room", "cup"] * 5
    seen: list[int] = []
    encode = pocket._text.encode_ids  # type: ignore[union-attr]

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tower, name)

        def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
            seen.append(int(tower.end(ids).max()))
            return encode(ids)

    tower, whole = pocket._text, pocket.encode_text(texts, batch_size=15)
    try:
        pocket._text = Watched()
        parts = pocket.encode_text(texts, batch_size=5)
    finally:
        pocket._text = tower
    assert len(set(seen)) == 3
    assert seen == sorted(seen)
    assert (parts - whole).abs().max() < 1e-6
    assert torch.equal(parts[0], parts[3])
