"""A category added later: only its own parameters are learned (METHOD section 8, last point)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import Artifact, TrainingState
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses import ranking_loss_from_scores
from pvp_fast.losses.pooling import spatial_softmax_pool
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts, prompt_ensemble
from pvp_fast.modules.scoring import Head, LocalBranch, local_scores
from pvp_fast.sentences import build_corpus, grammar_sentences
from pvp_fast.training.thresholds import best_f1_thresholds, fit_platt
from pvp_fast.vocabulary.categories import Category, Vocabulary

SENTENCES = 600
STEPS = 60
BATCH = 256
LR_IMAGES = 0.1
LR_CTX = 5e-3
SCALE = 4.0
TRANSFER = 1.0


def add_category(
    backbone: Backbone,
    artifact: Artifact,
    name: str,
    synonyms: Sequence[str] = (),
    sentences: Sequence[str] = (),
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Artifact:
    """A new artifact with one category more; everything already learned keeps every bit.

    The new pseudo visual prompt, the new category's own contexts (started from the mean of the
    learned ones; a second one with a local branch) and its mixture are fitted against the frozen
    rest.

    Args:
        backbone: the CLIP of the artifact.
        name, synonyms: what the category is called.
        sentences: sentences about it; template sentences over the whole vocabulary join them.
        steps: optimiser steps. seed: of every random choice.

    Raises:
        ArtifactError: another backbone, or an artifact without its training state.
        InputError: the name is there already.
    """
    artifact.check_backbone(backbone.fingerprint)
    vocabulary = artifact.vocabulary.extended(Category(name, tuple(synonyms)))
    new = len(vocabulary) - 1
    alone = Vocabulary([Category(name, tuple(synonyms))])
    texts = list(sentences)
    texts += grammar_sentences(alone, SENTENCES // 4, seed=seed)
    texts += grammar_sentences(vocabulary, SENTENCES, seed=seed)
    corpus = build_corpus(texts, vocabulary, source="add_category")
    labels = corpus.multi_hot()
    if not bool(labels[:, new].any()):
        raise InputError(f"sentences: none mentions {name!r} or its synonyms")
    x = backbone.encode_text(corpus.sentences)
    labels = labels.to(x.device)

    head, old = artifact.head, artifact.training
    banks = head.adapter
    images = PseudoVisualPrompts(
        1, backbone.image_size, per_category=banks.visual.shape[1], seed=seed + new
    ).to(x.device)
    prompts = _prompts(backbone, name, old.ctx)
    specific = prompts.class_specific

    visual_bank = F.normalize(banks.visual.mean(1), dim=-1).to(x.device)
    text_bank = banks.text.to(x.device)
    groups = [{"params": [images.learned], "lr": LR_IMAGES}]
    if specific:
        groups.append({"params": [prompts.ctx], "lr": LR_CTX})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (LR_IMAGES, LR_CTX), strict=False):
            group["lr"] = rate * (1 - step / steps)
        rows = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        with torch.enable_grad():
            v = F.normalize(images(backbone).mean(1), dim=-1)
            g = prompts(backbone)
            loss = _ranking(x[rows], torch.cat([visual_bank, v]), labels[rows])
            if specific:
                loss = loss + _ranking(x[rows], torch.cat([text_bank, g]), labels[rows])
                loss = loss + TRANSFER * (1 - (v.detach() * g).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        vector = prompts(backbone).cpu()
        adapter = banks.extended(
            prompt_ensemble(backbone, [name]).cpu(),
            vector,
            images(backbone).cpu(),
            alpha=float(banks.alpha.mean()),
            beta=float(banks.beta.mean()),
        )
    branch, near, local_ctx = head.local, None, old.local_ctx
    if branch is not None and local_ctx is not None:
        added = _local(backbone, branch, local_ctx, name, corpus.sentences, labels, steps, seed)
        branch, near = branch.extended(added.vector, branch.weight.mean()[None]), added.cosines
        local_ctx = _with(local_ctx, added.ctx)
    scores = Head.uncalibrated(adapter, branch).take([new]).cosines(x.cpu(), local=near)
    truth = labels[:, new:].cpu()
    platt = fit_platt(scores, truth)
    least = best_f1_thresholds(scores, truth, platt)
    grown = Head(
        adapter, torch.cat([head.platt, platt]), torch.cat([head.thresholds, least]), branch
    )
    state = TrainingState(
        text_only=torch.cat([old.text_only, vector]),
        pixels=torch.cat([old.pixels, images.pixels.detach().cpu()]),
        ctx=_with(old.ctx, prompts.ctx),
        local_ctx=local_ctx,
    )
    return dataclasses.replace(artifact, vocabulary=vocabulary, head=grown, state=state)


def _with(ctx: Tensor, added: Tensor) -> Tensor:
    """Each category's own contexts with one more; a common context stays."""
    return torch.cat([ctx, added.detach().cpu()]) if ctx.ndim == 3 else ctx


def _prompts(backbone: Backbone, name: str, ctx: Tensor) -> TextPrompts:
    """The new name behind the mean of learned contexts (C, M, W), or behind the shared (M, W)."""
    specific = ctx.ndim == 3
    prompts = TextPrompts(
        backbone, [name], n_ctx=ctx.shape[-2], class_specific=specific, init=None
    ).to(backbone.device)
    if prompts.n_ctx != ctx.shape[-2]:
        raise InputError(f"name {name!r} is too long for the {ctx.shape[-2]} learned words")
    with torch.no_grad():
        prompts.ctx.copy_(ctx.mean(0, keepdim=True) if specific else ctx)
    prompts.ctx.requires_grad_(specific)
    return prompts


class _Added(NamedTuple):
    """A new category's part of the local branch, on the CPU.

    ``vector`` (1, D), ``ctx`` its context and ``cosines`` (N, 1) of the sentences.
    """

    vector: Tensor
    ctx: Tensor
    cosines: Tensor


def _local(
    backbone: Backbone,
    branch: LocalBranch,
    ctx: Tensor,
    name: str,
    sentences: Sequence[str],
    labels: Tensor,
    steps: int,
    seed: int,
) -> _Added:
    temperature = float(branch.temperature)
    parts = [sentences[i : i + BATCH] for i in range(0, len(sentences), BATCH)]
    encoded = [backbone.encode_text_tokens(part) for part in parts]
    tokens = torch.cat([z.half() for z, _ in encoded])
    mask = torch.cat([real for _, real in encoded])
    prompts = _prompts(backbone, name, ctx)
    bank = branch.vectors.to(tokens.device)
    if prompts.class_specific:
        optimizer = torch.optim.AdamW([prompts.ctx], lr=LR_CTX, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LR_CTX * (1 - step / steps)
            rows = torch.randint(len(tokens), (BATCH,), generator=generator).to(tokens.device)
            with torch.enable_grad():
                w = torch.cat([bank, prompts(backbone)])
                scores = spatial_softmax_pool(
                    tokens[rows], w, mask[rows], temperature=temperature, scale=SCALE
                )
                loss = ranking_loss_from_scores(scores, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        vector = prompts(backbone)
        near = [
            local_scores(z.float(), vector, temperature, real)
            for z, real in zip(tokens.split(BATCH), mask.split(BATCH), strict=True)
        ]
    return _Added(vector.cpu(), prompts.ctx.detach(), torch.cat(near).cpu())


def _ranking(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return ranking_loss_from_scores(SCALE * x @ w.T, y)
