"""A frozen open_clip model: text, image and region features as unit rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pvp_fast.clip.frozen import for_inputs
from pvp_fast.clip.int8 import Int8Tower
from pvp_fast.clip.logit_record import LogitRecord, logit_record
from pvp_fast.clip.patches import only, patch_count
from pvp_fast.clip.precision import DTYPES, cast, resolve
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.clip.regions import region_features, region_support
from pvp_fast.clip.settings import WeightSettings
from pvp_fast.clip.text_tower import Tower, real_until
from pvp_fast.clip.text_view import text_view
from pvp_fast.clip.usual import usual_precision
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.threads.streams import in_streams, team

__all__ = ["Backbone", "Preprocess"]

Tokenizer = Callable[..., torch.Tensor]
_JOINERS = re.compile("[-/\u2010-\u2015\\\\]")  # "T-shirt", "washer/dryer"


class Backbone(nn.Module):
    """The two frozen encoders f_I and f_T (METHOD section 1).

    No weight ever asks for a gradient and no layer ever enters training mode; gradients flow to
    pixels and token embeddings only. All features are float32 (float64 when the weights are).

    Attributes:
        name, pretrained: what ``load`` was given.
        embed_dim: D. image_size: (H, W). context_length: tokens of a text.
        logit_scale: CLIP's learned scale (not its logarithm). logit_record: with its bias and
            loss; a sigmoid model's own probabilities.
        preprocess: PIL image -> (3, H, W) pixels.
        settings: what the weights expect and where that was read; kept in artifacts.
        has_regions: whether ``encode_regions`` works.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        name: str = "custom",
        pretrained: str | None = None,
        precision: str = "float32",
        settings: WeightSettings | None = None,
    ) -> None:
        """Wrap an open_clip model; ``load`` is the usual way in.

        Args:
            model: an open_clip CLIP, CustomTextCLIP or CoCa. It is frozen, and cast, in place.
            tokenizer: open_clip's: list of texts -> (N, context) token numbers.
            preprocess: what turns a photo into this model's input.
            precision: "float32" (the weights as they are), "bfloat16", "float16" (GPUs), "auto" for
                the fastest of them here (see :mod:`pvp_fast.clip.precision`), or "int8" for images
                on a CPU (see :mod:`pvp_fast.clip.int8`), which is never chosen by itself.
            settings: where ``preprocess`` and the activation come from; by default they are
                whatever the two objects have.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        for_inputs(model)
        clip = self._clip
        self.name = name
        self.pretrained = pretrained
        self.precision = resolve(precision, model)
        self.preprocess = preprocess
        self.settings = settings or WeightSettings(
            preprocess.mean,
            preprocess.std,
            preprocess.interpolation,
            preprocess.resize_mode,
            source="the given preprocess",
            fill=preprocess.fill,
        )
        self._tokenizer = tokenizer
        clean = getattr(tokenizer, "clean_fn", None)
        self._joins_words = clean is not None and clean("a-b") == "ab"
        self.image_size: tuple[int, int] = _pair(getattr(clip.visual, "image_size", None))
        if self.image_size != preprocess.sides:
            raise BackboneError(
                f"the image tower reads {self.image_size} pixels (height, width), preprocess makes "
                f"{preprocess.sides}: they must be the same"
            )
        self.context_length = _context_length(clip, tokenizer)
        self.logit_record: LogitRecord = logit_record(model)
        self.logit_scale = self.logit_record.scale
        self.has_regions = region_support(clip.visual) is None
        try:
            self._text: Tower | None = text_view(model, tokenizer)
            self._no_text_tower = ""
        except BackboneError as error:  # only prompts need it: say so when they ask
            self._text, self._no_text_tower = None, str(error)
        self._integers: Int8Tower | None = None
        if self.precision == "int8":
            self._integers = Int8Tower(clip.visual, self.image_size, self.fingerprint)
        elif self.precision != "float32":
            _ = self.fingerprint  # of the weights as they were read
        cast(model, self.precision)

    @classmethod
    def load(
        cls,
        name: str = "pocket",
        pretrained: str | None = None,
        *,
        device: str | torch.device = "cpu",
        precision: str | None = None,
        like: str | Mapping[str, Any] | None = None,
    ) -> Backbone:
        """Load a model by name.

        Args:
            name: "pocket" (ships with the package, for drawings), "auto" (a small strong CLIP for
                photos, see :mod:`pvp_fast.clip.auto`), an open_clip architecture ("ViT-B-32"), or
                open_clip's "local-dir:FOLDER" and "hf-hub:ORG/REPO", or "transformers:FOLDER",
                a CLIP or SigLIP that transformers wrote (safetensors).
            precision: what the encoders compute in: "float32", "bfloat16", "float16", "int8" or
                "auto"; by default float32, or what ``PVP_FAST_PRECISION`` says.
            pretrained: an open_clip tag ("openai"), the path of a checkpoint (safetensors, or a
                torch file of plain tensors), or "random" for untrained weights (tests, timing).
            like: for weights from a file, the tag whose picture and activation they share. Left
                out, an ``open_clip_config.json`` or ``preprocessor_config.json`` beside the file
                decides, else what all published weights of the architecture have in common. An
                artifact's record (``settings.to_dict()``) is taken as well.

        Raises:
            BackboneError: the name, tag or file is unknown or cannot be read, or the architecture's
                published weights read different pictures and ``like`` does not say which.
        """
        from pvp_fast.clip.loading import load_folder, load_open_clip, load_pocket

        if name == "auto":
            from pvp_fast.clip.auto import resolve

            if pretrained is not None or like is not None:
                raise BackboneError("name='auto' brings its own weights; leave pretrained out")
            chosen = resolve()
            name, pretrained = chosen.name, chosen.pretrained
        if name == "pocket":
            if isinstance(like, str):
                raise BackboneError(f"like={like!r}: the pocket model has one set of weights")
            parts = load_pocket(pretrained)
        elif name.startswith("transformers:"):
            parts = load_folder(name, pretrained, like)
        else:
            parts = load_open_clip(name, pretrained, like)
        try:
            target = torch.device(device)
            parts.model.to(target)
        except (RuntimeError, AssertionError) as error:
            raise BackboneError(f"device={str(device)!r} cannot be used here: {error}") from error
        return cls(
            parts.model,
            parts.tokenizer,
            parts.preprocess,
            name=name,
            pretrained=pretrained,
            precision=precision or usual_precision(),
            settings=parts.settings,
        )

    def train(self, mode: bool = True) -> Backbone:
        """Frozen: stays in evaluation mode whatever ``mode`` says (a parent may call this)."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights; what pixels are cast to."""
        return next(self._clip.visual.parameters()).dtype

    @cached_property
    def embed_dim(self) -> int:
        known = getattr(self._clip.visual, "output_dim", None)
        if known is not None:
            return int(known)
        with torch.no_grad():  # timm towers do not say
            return int(self._image(torch.zeros(1, 3, *self.image_size)).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the architecture and every weight's name, dtype, shape and bytes.

        The same for the same weights wherever and however they are stored; device and precision
        do not enter. Computed on first use (about a second per gigabyte) and kept.
        """
        digest = hashlib.sha256()
        p = self.preprocess
        parts = [f"{self.image_size}|{self.context_length}|{p.mean}|{p.std}|{p.interpolation}"]
        if p.fill:
            parts.append(f"fill {p.fill}")
        parts.append(f"{p.resize_mode}|{self._text.pool if self._text else ''}")
        for name, module in self.model.named_modules():
            heads = getattr(module, "num_heads", "")
            causal = getattr(module, "attn_mask", None) is not None
            parts.append(f"{name}:{type(module).__name__}:{heads}:{causal}")
        digest.update("\n".join(parts).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"\n{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What an artifact keeps to find this model again and to refuse another."""
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "fingerprint": self.fingerprint,
            "embed_dim": self.embed_dim,
            "precision": self.precision,
            "settings": self.settings.to_dict(),
        }

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Recompute transformer activations in backward: less memory for larger prompt batches."""
        self._clip.set_grad_checkpointing(enable)

    # --- text ---------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """N texts -> (N, context_length) int64 on the CPU; longer texts are cut."""
        if isinstance(texts, str):
            raise InputError("texts is one string; give a list of strings")
        wrong = next((t for t in texts if not isinstance(t, str)), None)
        if wrong is not None:
            raise InputError(f"texts holds a {type(wrong).__name__}; every text must be a string")
        if not len(texts):
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        if self._joins_words:  # this cleaning deletes marks: "T-shirt" would be read "tshirt"
            texts = [_JOINERS.sub(" ", text) for text in texts]
        return self._tokenizer(list(texts), context_length=self.context_length).to(torch.int64)

    def same_texts(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Groups of texts that this model reads as one, and so can never tell apart.

        Cleaning that deletes marks ("C", "C#", "C++"), letters that the tokenizer does not know,
        or a difference behind the last token of the context.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for text, ids in zip(texts, self.tokenize(texts).tolist(), strict=True):
            groups.setdefault(tuple(ids), []).append(text)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def require_prompts(self) -> None:
        """Do nothing where prompts can be learned on this text tower.

        Raises:
            BackboneError: they cannot; it says why.
        """
        self._tower()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> torch.Tensor:
        """N texts -> (N, D) unit rows. Never builds a graph."""
        every = self.tokenize(texts)
        if not len(every):
            return torch.zeros(0, self.embed_dim, device=self.device)
        # Texts of like length share a batch: a causal tower then computes no padding.
        causal = self._text is not None and len(every) > batch_size
        length = self._text.end(every) if causal and self._text else torch.zeros(len(every))
        order = length.argsort(stable=True)
        encode = self._clip.encode_text if self._text is None else self._text.encode_ids
        sorted_ids = self._id_batches(every[order], batch_size)
        done = in_streams(lambda ids: _unit(encode(ids)), sorted_ids, team(self.device))
        features = torch.cat(list(done))
        return torch.empty_like(features).index_copy_(0, order.to(features.device), features)

    @torch.no_grad()
    def encode_text_tokens(
        self, texts: Sequence[str], *, batch_size: int = 256
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every token of N texts in the joint space, for the local branch (METHOD section 7).

        Returns:
            features (N, L, D), unit rows, and mask (N, L) bool, True on real tokens (start and
            end markers included, padding not); L is the context length.

        Raises:
            BackboneError: the text tower takes no token embeddings.
        """
        tower = self._tower()
        shape = (0, self.context_length)
        features = [torch.zeros(*shape, self.embed_dim, device=self.device)]
        masks = [torch.zeros(shape, dtype=torch.bool, device=self.device)]
        for ids in self._id_batches(self.tokenize(texts), batch_size):
            features.append(_unit(tower.encode_tokens(tower.embed(ids), ids)))
            masks.append(real_until(tower.end(ids), self.context_length))
        if len(features) == 2:
            return features[1], masks[1]
        return torch.cat(features), torch.cat(masks)

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, context) token numbers -> (N, context, W), before positions are added."""
        return _at_least_float(self._tower().embed(ids.to(self.device)))

    def text_end(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, context) token numbers -> (N,) int64, where each text ends."""
        return self._tower().end(ids)

    def encode_embedded(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token embeddings -> unit rows, differentiable in the embeddings.

        Args:
            embedded: (N, context, W), as ``embed_tokens`` gives.
            end: (N,) int64, position of the end-of-text token.
            ids: (N, context) the tokens that the embeddings stand for; a tower that masks
                padding reads it there. Left out, padding is what lies behind ``end``.

        Returns:
            (N, D), equal to ``encode_text`` of the same tokens.

        Raises:
            BackboneError: the text tower takes no token embeddings.
            InputError: shapes that do not fit.
        """
        tower = self._tower()
        length, width = self.context_length, tower.width
        if embedded.ndim != 3 or tuple(embedded.shape[1:]) != (length, width):
            raise InputError(
                f"embedded has shape {tuple(embedded.shape)}; give (N, {length}, {width})"
            )
        if tuple(end.shape) != (embedded.shape[0],):
            raise InputError(f"end has shape {tuple(end.shape)}; give ({embedded.shape[0]},)")
        if ids is not None and ids.shape != embedded.shape[:2]:
            raise InputError(f"ids has shape {tuple(ids.shape)}; give {tuple(embedded.shape[:2])}")
        embedded = embedded.to(DTYPES.get(self.precision, embedded.dtype))
        features = tower.encode(
            embedded, end.to(embedded.device), None if ids is None else ids.to(embedded.device)
        )
        return _unit(features)

    # --- images -------------------------------------------------------------------------------

    @property
    def patches(self) -> int:
        """Patches of an image, of which :meth:`encode_image` may be given some; 0: all or none."""
        return patch_count(self._clip.visual)

    def encode_image(
        self, pixels: torch.Tensor, *, patches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, 3, H, W) normalised pixels -> (B, D) unit rows, differentiable in the pixels.

        Args:
            patches: (k,) int64, the only ones of the ``self.patches`` that are looked at.

        Raises:
            BackboneError: patches were given to a tower that cannot leave any out.
        """
        self._check_pixels(pixels)
        if patches is None:
            return _unit(self._image(pixels))
        with only(self._clip.visual, patches):
            return _unit(self._clip.encode_image(pixels.to(self.device, self.dtype)))

    def encode_regions(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised pixels -> (B, L, D) unit rows, one a patch (see ``regions``).

        Raises:
            BackboneError: the image tower has none; it says why.
        """
        self._check_pixels(pixels)
        pixels = pixels.to(self.device, self.dtype)
        return _unit(region_features(self._clip.visual, pixels))

    # --- inside -------------------------------------------------------------------------------

    @property
    def _clip(self) -> Any:  # open_clip's classes share attributes but no base class
        return self.model

    def _image(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self.device, self.dtype)
        if self._integers is not None and not (torch.is_grad_enabled() and pixels.requires_grad):
            return self._integers(pixels)
        features: torch.Tensor = self._clip.encode_image(pixels)
        return features

    def _check_pixels(self, pixels: torch.Tensor) -> None:
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.image_size):
            height, width = self.image_size
            raise InputError(
                f"pixels has shape {tuple(pixels.shape)}; give (B, 3, {height}, {width}), "
                "as backbone.preprocess makes them"
            )

    def _tower(self) -> Tower:
        if self._text is None:
            raise BackboneError(self._no_text_tower)
        return self._text

    def _id_batches(self, ids: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be at least 1")
        return [chunk.to(self.device) for chunk in ids.split(batch_size)] if len(ids) else []


def _at_least_float(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in DTYPES.values() else values


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(_at_least_float(features), dim=-1)


def _context_length(clip: Any, tokenizer: Tokenizer) -> int:
    """Tokens of a text: the model's own number, or for Hugging Face towers the tokenizer's.

    Such a tower gives its whole position table (514, 1024), or 0 where it has none; open_clip pads
    to the tokenizer's 77.
    """
    if not hasattr(getattr(clip, "text", None), "config"):
        return int(clip.context_length or 0)
    own = int(clip.text.context_length or 0)  # a CoCa's own number is its caption decoder's
    given = int(getattr(tokenizer, "context_length", None) or 77)
    config = clip.text.config
    if "roberta" in config.model_type or config.model_type in ("camembert", "xmod"):
        own -= config.pad_token_id + 1  # its positions begin behind the padding's number
    return min(given, own) if own > 0 else given


def _pair(size: Any) -> tuple[int, int]:
    if size is None:
        raise BackboneError("the image tower does not say its image_size")
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
