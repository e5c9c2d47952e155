"""Reading a folder that transformers wrote, without a network and without a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.clip.settings import WeightSettings, settings_beside
from pvp_fast.clip.transformers_model import ENCODERS, KINDS, TransformersCLIP
from pvp_fast.errors import BackboneError

CONTEXT = 77  # encoders with a long position table: as open_clip, and as AltCLIP was trained


class FolderTokenizer:
    """A transformers tokenizer called as open_clip calls its own."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        ids: torch.Tensor = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context_length or self.context_length,
            return_tensors="pt",
        ).input_ids
        return ids


def load_transformers(
    folder: Path, like: Mapping[str, Any] | None = None
) -> tuple[TransformersCLIP, FolderTokenizer, Preprocess, WeightSettings]:
    """A CLIP, SigLIP, SigLIP 2, MetaCLIP 2, AltCLIP or Chinese-CLIP that ``save_pretrained`` wrote.

    Args:
        folder: config.json, weights as safetensors, the tokenizer's files, and the image
            processor's (preprocessor_config.json, or processor_config.json).
        like: an artifact's settings, in place of the image processor's.

    Raises:
        BackboneError: a file is missing or damaged, the weights are a pickle, do not fill the
            model, or it is of another kind.
    """
    name = f"transformers:{folder}"
    kind = _kind(folder)
    _only_safetensors(folder)
    try:
        import transformers
    except ImportError as error:
        raise BackboneError(
            f"name={name!r} needs the transformers package: pip install transformers"
        ) from error
    if int(transformers.__version__.split(".")[0]) < 5:  # its layers are called otherwise
        raise BackboneError(
            f"name={name!r} needs transformers 5 or newer, and {transformers.__version__} is "
            "installed: pip install -U transformers"
        )
    beside = settings_beside(folder)
    if like is not None:
        settings = WeightSettings.from_dict(like, str(like.get("source") or "like="))
    elif beside is not None:
        settings = beside
    else:
        raise BackboneError(
            f"name={name!r} has no preprocessor_config.json, which says what picture the weights "
            "expect; copy it beside them (processor.save_pretrained)"
        )
    try:
        inner, loading = transformers.AutoModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file can fail anywhere in its reader, in any way
        raise BackboneError(f"name={name!r} cannot be loaded: {error}") from error
    # The library only warns, and leaves at random what the files do not hold.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise BackboneError(
            f"name={name!r}: the weights lack {len(missing)} of the model's tensors "
            f"({', '.join(missing[:3])}): it is no checkpoint of a whole {kind} model"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise BackboneError(
            f"name={name!r}: its tokenizer cannot be read ({error}); its files lie in the same "
            "folder (tokenizer.save_pretrained)"
        ) from error
    inner.float()  # transformers 5 keeps a file's half precision, 4 does not
    context = _context(inner, tokenizer)
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        raise BackboneError(f"name={name!r}: its tokenizer has no padding token")
    model = TransformersCLIP(inner, int(pad), -1 if end is None else int(end), context)
    preprocess = settings.preprocess(model.visual.image_size)
    return model, FolderTokenizer(tokenizer, context), preprocess, settings


def _kind(folder: Path) -> str:
    if not folder.is_dir():
        raise BackboneError(f"name='transformers:{folder}': there is no such folder")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackboneError(
            f"name='transformers:{folder}': no readable config.json ({error!r})"
        ) from error
    if kind not in KINDS:
        raise BackboneError(
            f"name='transformers:{folder}' is a model of type {kind!r}; read are {', '.join(KINDS)}"
        )
    return str(kind)


def _only_safetensors(folder: Path) -> None:
    """Weights are there, as safetensors, and no index leads out of the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(f"{index} is no readable index ({error!r})") from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise BackboneError(f"{index} names {file!r}, which is not in its folder")
        return
    if (folder / "model.safetensors").is_file():
        return
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt*")))
    found = f"only {', '.join(pickles)}, which can run code when read" if pickles else "none"
    raise BackboneError(
        f"name='transformers:{folder}': weights are read from model.safetensors, and there is "
        f"{found}; convert them where you trust them: "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    )


def _context(inner: Any, tokenizer: Any) -> int:
    config = inner.config.text_config
    own = int(config.max_position_embeddings)
    kind = inner.config.model_type
    if kind == "altclip":
        own -= int(config.pad_token_id) + 1  # XLM-R's positions begin behind the padding's number
    if kind in ENCODERS:
        own = min(own, CONTEXT)
    return min(own, int(tokenizer.model_max_length))
