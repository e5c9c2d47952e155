"""Triton kernels, installed as ``pvp_fast.kernels``: the only place that imports triton."""

if __name__ != "pvp_fast.kernels":
    raise ImportError(f"import pvp_fast.kernels, not {__name__}: it is part of the package")
