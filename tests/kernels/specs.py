"""Every kernel in the configurations that are launched, for :mod:`aot`."""

from __future__ import annotations

from typing import Any

from aot import AotSpec

from pvp_fast.kernels import entrywise, entrywise_small, infonce, pool, ranking
from pvp_fast.kernels.entrywise import DENSE, KINDS, LISTS, PARTIAL

_LABEL_TYPES = {"bool": (DENSE, "*u8"), "soft": (DENSE, "*fp32"), "partial": (PARTIAL, "*i8")}


def entrywise_specs() -> list[AotSpec]:
    """Every loss with dense labels, and every label kind with ASL."""
    cases = [(kind, "bool") for kind in KINDS]
    cases += [("asl", labels) for labels in ("soft", "partial", "lists")]
    specs = [
        AotSpec(
            name=f"elementwise[{kind},{labels}]",
            kernel=entrywise._elementwise_kernel,
            signature={
                "scores_ptr": "*fp32",
                "y_ptr": "*i64" if labels == "lists" else _LABEL_TYPES[labels][1],
                "offsets_ptr": "*i64" if labels == "lists" else _LABEL_TYPES[labels][1],
                "weight_ptr": "*fp32",
                "sums_ptr": "*fp32",
                **dict.fromkeys(
                    ("n_rows", "n_cols", "n_blocks", "score_row", "y_row", "y_col"), "i32"
                ),
                **dict.fromkeys(("gamma_pos", "gamma_neg", "clip", "eps"), "fp32"),
            },
            constexprs={
                "KIND": KINDS[kind],
                "LABELS": LISTS if labels == "lists" else _LABEL_TYPES[labels][0],
                "WHOLE_POS": 1 if kind == "asl" else 2,
                "WHOLE_NEG": -1 if labels == "soft" else 4,
                "DETACH": labels != "soft",
                "HAS_WEIGHT": True,
                "BLOCK_R": 1 if labels != "partial" else 8,
                "BLOCK_C": 1024 if labels != "partial" else 128,
            },
            num_warps=4,
            num_stages=3,
        )
        for kind, labels in cases
    ]
    specs += [
        AotSpec(
            name=f"category[{kind},{labels}]",
            kernel=entrywise._category_kernel,
            signature={
                "scores_ptr": "*fp32",
                "y_ptr": "*i64" if labels == "lists" else _LABEL_TYPES[labels][1],
                "offsets_ptr": "*i64" if labels == "lists" else _LABEL_TYPES[labels][1],
                "out_ptr": "*fp32",
                **dict.fromkeys(
                    ("n_rows", "n_cols", "n_blocks", "part_rows", "score_row", "y_row", "y_col"),
                    "i32",
                ),
                **dict.fromkeys(("gamma_pos", "gamma_neg", "clip", "eps"), "fp32"),
            },
            constexprs={
                "KIND": KINDS[kind],
                "LABELS": LISTS if labels == "lists" else _LABEL_TYPES[labels][0],
                "WHOLE_POS": 1 if kind == "asl" else 2,
                "WHOLE_NEG": 4,
                "BLOCK_R": 8,
                "BLOCK_C": 128,
            },
            num_warps=4,
            num_stages=3,
        )
        for kind, labels in (
            *((kind, "bool") for kind in KINDS),
            *(("asl", labels) for labels in ("soft", "partial", "lists")),
        )
    ]
    return specs


def entrywise_small_specs() -> list[AotSpec]:
    """Each tile size with ASL; the other losses and label kinds at one."""
    cases = [
        ("asl", d, "bool", c)
        for d in ("fp32", "bf16")
        for c in (
            32,
            64,
        )
    ]
    cases += [("asl", "bf16", "bool", 128)]
    cases += [(kind, "bf16", "bool", 64) for kind in ("bce", "focal", "siglip")]
    cases += [("asl", "bf16", "lists", 64)]
    specs = [
        AotSpec(
            name=f"small_c[{kind},{dtype},{labels},C={block_c}]",
            kernel=entrywise_small._small_c_kernel,
            signature={
                "x_ptr": f"*{dtype}",
                "w_ptr": f"*{dtype}",
                "y_ptr": "*i64" if labels == "lists" else "*u8",
                "offsets_ptr": "*i64" if labels == "lists" else "*u8",
                **dict.fromkeys(
                    (
                        *("weight_ptr", "scale_ptr", "bias_ptr"),
                        *("dx_ptr", "part_ptr", "along_ptr", "norm_ptr", "sums_ptr"),
                        "category_ptr",
                    ),
                    "*fp32",
                ),
                **dict.fromkeys(("n_rows", "n_cols", "width", "y_row", "y_col"), "i32"),
                **dict.fromkeys(("gamma_pos", "gamma_neg", "clip", "eps", "grad_scale"), "fp32"),
            },
            constexprs={
                "KIND": KINDS[kind],
                "LABELS": LISTS if labels == "lists" else 0,
                "WHOLE_POS": 1 if kind == "asl" else 2,
                "WHOLE_NEG": 4,
                "DETACH": True,
                "NORMALIZE": True,
                "HAS_WEIGHT": True,
                "GRADS": True,
                "UPCAST": False,
                "PRECISION": "tf32x3" if dtype == "fp32" else "tf32",
                "BLOCK_R": entrywise_small.BLOCK_B,
                "BLOCK_C": block_c,
                "BLOCK_D": entrywise_small.TILES[block_c][0],
            },
            num_warps=entrywise_small.TILES[block_c][1],
            num_stages=entrywise_small.TILES[block_c][2],
        )
        for kind, dtype, labels, block_c in cases
    ]
    specs.append(
        AotSpec(
            name="sum_parts[bf16]",
            kernel=entrywise_small._sum_parts_kernel,
            signature={
                **dict.fromkeys(("part_ptr", "along_ptr", "norm_ptr"), "*fp32"),
                "w_ptr": "*bf16",
                "dw_ptr": "*fp32",
                **dict.fromkeys(("n_parts", "n_cols", "width", "n_blocks"), "i32"),
            },
            constexprs={"NORMALIZE": True, "BLOCK_D": 256},
            num_warps=4,
            num_stages=3,
        )
    )
    return specs


def ranking_specs() -> list[AotSpec]:
    """The ranking kernel for each label kind, and the kernel that makes lists."""
    sizes = ("n_cols", "score_row", "y_row", "y_col")
    specs = [
        AotSpec(
            name=f"ranking[{labels}]",
            kernel=ranking._ranking_kernel,
            signature={
                "scores_ptr": "*fp32",
                "y_ptr": y,
                "indices_ptr": "*i64" if mode == LISTS else "*i32",
                "first_ptr": "*i64",
                "last_ptr": "*i64",
                **dict.fromkeys(("pos_grad_ptr", "weight_ptr", "loss_ptr"), "*fp32"),
                **dict.fromkeys(sizes, "i32"),
                "margin": "fp32",
            },
            constexprs={
                "LABELS": mode,
                "HAS_WEIGHT": True,
                "BLOCK_P": ranking._BLOCK_P[mode],
                "BLOCK_C": 128,
            },
            num_warps=4,
            num_stages=3,
            least_c=ranking._LEAST_C,
        )
        for mode, labels, y in ((0, "bool", "*u8"), (1, "partial", "*i8"), (LISTS, "lists", "*i64"))
    ]
    specs += [
        AotSpec(
            name=f"ranking_category[{labels}]",
            kernel=ranking._ranking_category_kernel,
            signature={
                "scores_ptr": "*fp32",
                "y_ptr": y,
                "indices_ptr": "*i64" if mode == LISTS else "*i32",
                "first_ptr": "*i64",
                "last_ptr": "*i64",
                "out_ptr": "*fp32",
                **dict.fromkeys((*sizes, "n_rows", "n_blocks", "part_rows"), "i32"),
                "margin": "fp32",
            },
            constexprs={"LABELS": mode, "BLOCK_P": 16, "BLOCK_C": 128},
            num_warps=4,
            num_stages=3,
            least_c=ranking._LEAST_C,
        )
        for mode, labels, y in ((0, "bool", "*u8"), (1, "partial", "*i8"), (LISTS, "lists", "*i64"))
    ]
    specs.append(
        AotSpec(
            name="positives[bool]",
            kernel=ranking._positives_kernel,
            signature={
                "y_ptr": "*u8",
                "indices_ptr": "*i32",
                "counts_ptr": "*i64",
                "n_cols": "i32",
                "y_row": "i32",
                "y_col": "i32",
            },
            constexprs={"BLOCK_C": 1024},
            num_warps=4,
            num_stages=3,
        )
    )
    return specs


def pool_specs() -> list[AotSpec]:
    """Each kernel in float32, half and both, for few and for many regions."""
    kernels = {
        "pool": pool._pool_fwd_kernel,
        "pool_dz": pool._pool_bwd_dz_kernel,
        "pool_dw": pool._pool_bwd_dw_kernel,
    }
    sizes = ("n_regions", "n_cols", "width", "n_tiles", "z_batch", "z_row")
    floats = (
        "z_inverse_ptr",
        "w_inverse_ptr",
        "temperature_ptr",
        "pooled_ptr",
        "top_ptr",
        "inverse_total_ptr",
    )
    specs = []
    for name, kernel in kernels.items():
        for dtype, other in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
            wide = other == "fp32"
            size = pool.tiles(wide, backward=name != "pool")
            for regions in pool._REGIONS[name]:
                signature = {"z_ptr": f"*{dtype}", "w_ptr": f"*{other}", "mask_ptr": "*u8"}
                signature |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(sizes, "i32")
                constexprs = {
                    "HAS_MASK": True,
                    "UPCAST": dtype != other,
                    "PRECISION": "tf32x3" if wide else "tf32",
                    "BLOCK_L": regions,
                    "BLOCK_C": size.cols,
                    "BLOCK_D": size.depth,
                }
                if name != "pool":
                    signature |= {"g_ptr": "*fp32", "n_slices": "i32"}
                    constexprs["BLOCK_S"] = size.slice
                if name == "pool_dz":
                    signature["dz_ptr"] = f"*{dtype}"
                    constexprs["NORMALIZE"] = True
                if name == "pool_dw":
                    signature |= dict.fromkeys(
                        ("part_ptr", "along_ptr", "dtemperature_ptr"), "*fp32"
                    )
                    signature |= {"n_images": "i32", "part_images": "i32"}
                specs.append(
                    AotSpec(
                        name=f"{name}[{dtype},{other},L={regions}]",
                        kernel=kernel,
                        signature=signature,
                        constexprs=constexprs,
                        num_warps=size.warps,
                        num_stages=size.stages,
                    )
                )
    return specs


def infonce_specs() -> list[AotSpec]:
    """The kernels of blocks with and without soft targets; those of tiles in each dtype."""
    shared = ("row_inverse_ptr", "col_inverse_ptr", "scale_ptr", "y_rows_ptr", "y_cols_ptr")
    sizes = ("n_rows", "n_cols", "n_tiles", "s_row", "y_row", "y_col", "shift")
    sums = ("row_top_ptr", "row_total_ptr", "col_top_ptr", "col_total_ptr")
    specs = []
    for kernel, out in (
        (infonce._block_fwd_kernel, "fp32"),
        (infonce._block_bwd_kernel, "fp32"),
        (infonce._block_bwd_kernel, "fp16"),
    ):
        for y in ("pairs", "fp32", "u8"):
            signature = dict.fromkeys(("s_ptr", *shared), "*fp32") | dict.fromkeys(sizes, "i32")
            signature["y_ptr"] = "*fp32" if y == "pairs" else f"*{y}"
            if kernel is infonce._block_fwd_kernel:
                names = ("row_part_ptr", "col_part_ptr", "target_part_ptr")
                signature |= dict.fromkeys(names, "*fp32")
                signature |= {"row_plane": "i32", "col_plane": "i32"}
            else:
                signature |= dict.fromkeys(sums, "*fp32")
                signature |= {"out_ptr": f"*{out}", "along_ptr": "*fp32"}
                signature |= {"out_row": "i32", "unit": "fp32"}
            name = "sums" if kernel is infonce._block_fwd_kernel else f"gradient,{out}"
            block: dict[str, Any] = {"HAS_NORMS": True, "HAS_Y": y != "pairs"}
            block |= {"BLOCK_R": infonce.BLOCK_R, "BLOCK_C": infonce.BLOCK_C}
            specs.append(AotSpec(f"infonce[{name},{y}]", kernel, signature, block, 4, 3))
    shared = ("x_inverse_ptr", "w_inverse_ptr", "scale_ptr", "y_rows_ptr", "y_cols_ptr")
    for kernel in (infonce._tile_fwd_kernel, infonce._tile_bwd_kernel):
        backward = kernel is infonce._tile_bwd_kernel
        for dtype, other in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
            for y in ("pairs", "fp32"):
                wide = other == "fp32"
                size = infonce.tiles(wide, backward)
                signature = dict.fromkeys((*shared, "y_ptr"), "*fp32")
                signature |= {"x_ptr": f"*{dtype}", "w_ptr": f"*{other}"}
                signature |= dict.fromkeys(("n", "width", "y_row", "y_col"), "i32")
                constexprs: dict[str, Any] = {
                    "HAS_Y": y != "pairs",
                    "UPCAST": dtype != other,
                    "PRECISION": "tf32x3" if wide else "tf32",
                    "BLOCK_R": size.rows,
                    "BLOCK_C": size.cols,
                    "BLOCK_D": size.depth,
                }
                if backward:
                    signature |= dict.fromkeys(("g_ptr", "along_ptr", *sums), "*fp32")
                    signature |= {"dx_ptr": f"*{dtype}", "n_slices": "i32"}
                    constexprs |= {"NORMALIZE": True, "BLOCK_S": size.slice}
                else:
                    signature |= {"sum_ptr": "*fp32", "target_ptr": "*fp32"}
                    signature |= {"n_parts": "i32", "part_cols": "i32", "plane": "i32"}
                    constexprs["WITH_TARGET"] = True
                specs.append(
                    AotSpec(
                        f"infonce_tile[{'gradient' if backward else 'sums'},{dtype},{other},{y}]",
                        kernel,
                        signature,
                        constexprs,
                        size.warps,
                        size.stages,
                    )
                )
    return specs


SPECS = (entrywise_specs, entrywise_small_specs, ranking_specs, pool_specs, infonce_specs)
