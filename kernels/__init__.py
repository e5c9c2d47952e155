"""Triton kernels, installed as ``pvp_fast.kernels``: the only place that imports triton."""

# In a checkout and in an editable install this folder is also found as "kernels", the name of a
# library that transformers looks for and imports to ask its version: nothing here may raise.
