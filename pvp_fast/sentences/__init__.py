"""Corpora of sentences: captions files, language-model and template sentences, cached features."""

from __future__ import annotations

from pvp_fast.sentences.grammar import Grammar, grammar_sentences, sentence_for

__all__ = ["Grammar", "grammar_sentences", "sentence_for"]
