"""Corpora of sentences: captions files, language-model and template sentences, cached features."""

from __future__ import annotations

from pvp_fast.sentences.cache import FeatureCache
from pvp_fast.sentences.captions import read_captions
from pvp_fast.sentences.corpus import Corpus, build_corpus
from pvp_fast.sentences.generate import LocalTransformers, OpenAIChat, generate_sentences
from pvp_fast.sentences.grammar import Grammar, grammar_sentences, sentence_for

__all__ = [
    "Corpus",
    "FeatureCache",
    "Grammar",
    "LocalTransformers",
    "OpenAIChat",
    "build_corpus",
    "generate_sentences",
    "grammar_sentences",
    "read_captions",
    "sentence_for",
]
