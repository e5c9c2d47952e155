"""Categories by name, and the labels that a sentence earns by mentioning them."""

from pvp_fast.vocabulary.categories import BUILTIN, Category, Vocabulary

__all__ = ["BUILTIN", "Category", "Vocabulary"]
