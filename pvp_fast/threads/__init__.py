"""One budget of threads for the loader, the encoder and top-k, and streams that keep to it.

``budget`` says how many (without torch, so that a program can ask first), ``streams`` uses them.
"""
