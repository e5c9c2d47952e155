"""Self-contained HTML pages, no external requests: the demo's and the gallery of a tagged set."""
