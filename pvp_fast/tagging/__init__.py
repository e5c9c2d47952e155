"""Images to tags: the tagger, stored embeddings, the search for missing categories, export."""

from pvp_fast.tagging.embeddings import EmbeddingStore, embed_images
from pvp_fast.tagging.schema import SCHEMA_VERSION
from pvp_fast.tagging.tagger import Tag, Tagger, TagResult

__all__ = ["SCHEMA_VERSION", "EmbeddingStore", "Tag", "TagResult", "Tagger", "embed_images"]
