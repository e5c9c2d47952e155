"""Stricter mentions, for text that describes instead of showing: a language model's prose.

A caption's words name what is there; in prose "aircraft" may be part of "anti-aircraft" or describe
"aircraft engines". A mention is plain where the word is the head of its noun phrase, which is
told by what follows: English puts the head last, and behind it a mark, the end, or one of a closed
class of words.
"""

from __future__ import annotations

from collections.abc import Sequence

_AFTER_HEAD = frozenset({
    "is", "are", "was", "were", "be", "being", "been", "has", "have", "had", "can", "could", "may",
    "might", "must", "will", "would", "shall", "should", "do", "does", "did", "and", "or", "but",
    "nor", "that", "which", "who", "whose", "whom", "where", "when", "while", "as", "if", "than",
    "to", "of", "in", "on", "at", "by", "for", "from", "with", "without", "within", "into", "onto",
    "over", "under", "above", "below", "between", "among", "around", "near", "behind", "beside",
    "along", "across", "through", "against", "toward", "towards", "during", "before", "after",
    "since", "until", "upon", "about", "like", "such", "per", "via", "including", "next", "up",
    "down", "out", "off", "often", "always", "sometimes", "never", "not", "also", "each", "all",
    "both", "there", "then", "so", "too", "a", "an", "the", "its", "their", "his", "her", "this",
    "these", "those", "it", "they", "he", "she", "we", "you",
})  # fmt: skip


def is_plain(tokens: Sequence[str], glued: Sequence[bool], start: int, end: int) -> bool:
    """Whether ``tokens[start:end]`` is the head of its phrase and no part of a hyphenated word.

    Args:
        glued: whether a token hangs on the one before it by a hyphen.
    """
    if glued[start] or (end < len(tokens) and glued[end]):
        return False
    if end == len(tokens):
        return True
    after = tokens[end]
    return (
        not after[0].isalnum()
        or not after.isascii()
        or after in _AFTER_HEAD
        or after.endswith(("ly", "ed"))
    )


def is_part(phrase: Sequence[str], name: Sequence[str]) -> bool:
    """Whether ``phrase`` is a proper part of ``name``: "table" of "dining table".

    Who named the category so found the bare word too wide.
    """
    size = len(phrase)
    return size < len(name) and any(
        list(name[i : i + size]) == list(phrase) for i in range(len(name) - size + 1)
    )
