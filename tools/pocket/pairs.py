"""Training pairs: a category set, a sentence that mentions exactly it; the scene is drawn later."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

from pvp_fast.sentences import sentence_for
from pvp_fast.vocabulary.categories import Vocabulary

HUMAN_SHARE = 0.4
# How many categories a scene shows, 1 to 5: easy ones early in training, then the full mix.
EASY_COUNTS = (0.55, 0.30, 0.10, 0.03, 0.02)
FULL_COUNTS = (0.30, 0.25, 0.20, 0.15, 0.10)
MOST_CATEGORIES = 5


class PairSource:
    """Sentences with their category sets: human captions where given, else the grammar.

    Captions are drawn with weight 1 / sqrt(frequency) of their rarest category, so that people do
    not drown everything else.

    Args:
        vocabulary: the categories.
        captions: human sentences; those that mention none or more than five categories are left.
        rng: the source of all randomness.
    """

    def __init__(self, vocabulary: Vocabulary, captions: Iterable[str], rng: random.Random) -> None:
        self.vocabulary = vocabulary
        self.rng = rng
        labelled = [(s, vocabulary.label(s)) for s in captions]
        self.captions = [(s, y) for s, y in labelled if 1 <= len(y) <= MOST_CATEGORIES]
        frequency = Counter(c for _, y in self.captions for c in y)
        weights = (max(1 / math.sqrt(frequency[c] + 5) for c in y) for _, y in self.captions)
        self._cumulative: list[float] = []
        total = 0.0
        for weight in weights:
            total += weight
            self._cumulative.append(total)

    def draw(self, batch: int, easy: float) -> tuple[list[str], list[tuple[int, ...]]]:
        """``batch`` sentences and their category sets; ``easy`` 1 → few objects, 0 → full mix."""
        pairs = [self._one(easy) for _ in range(batch)]
        return [s for s, _ in pairs], [y for _, y in pairs]

    def _one(self, easy: float) -> tuple[str, tuple[int, ...]]:
        rng = self.rng
        if self.captions and rng.random() < HUMAN_SHARE:
            (pair,) = rng.choices(self.captions, cum_weights=self._cumulative)
            # Crowded captions wait until the easy scenes are learned.
            if len(pair[1]) <= 2 or rng.random() >= easy:
                return pair
        counts = EASY_COUNTS if rng.random() < easy else FULL_COUNTS
        (count,) = rng.choices(range(1, len(counts) + 1), counts)
        chosen = rng.sample(range(len(self.vocabulary)), min(count, len(self.vocabulary)))
        categories = tuple(sorted(chosen))
        return sentence_for(self.vocabulary, categories, rng), categories
