// Losses on a CPU: products become sums and their gradient in one pass. The contract.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace pvp_fast {

// What the losses are is defined in pvp_fast/losses. SigLIP's present and absent pairs are those of
// bce.
//
// Ranking is sum_p sum_n weight_n max(0, margin - s_p + s_n) over a row's present p and absent n.
enum class loss_kind { asl, bce, focal, ranking };

struct asl_settings {
  float gamma_pos, gamma_neg, clip, eps;
  bool detach_focal_weight;  // no gradient through the focal factors
};
struct focal_settings {
  float alpha;  // negative: no balance
  float gamma;
};
struct ranking_settings {
  float margin;
};

// A loss and what it takes; the others' settings are not read.
struct loss_settings {
  loss_kind kind;
  asl_settings asl;
  focal_settings focal;
  ranking_settings ranking;
};

// Labels are either dense bytes or lists; exactly one of `labels` and `offsets` is set.
//
// A product p of row b and column c stands for the cosine p * x_inverse_norm[b] * w_inverse_norm[c],
// and scale * cosine + bias is the score. p is overwritten by dloss/dp, so that products of the tile
// with the rows and columns as they came give their gradients up to projection below.
struct loss_tile {
  float* products;  // [rows][columns]
  int64_t rows, columns;
  const float* x_inverse_norm;  // [rows], or null: 1
  const float* w_inverse_norm;  // [columns], or null: 1
  float scale, bias;
  const int8_t* labels;    // [rows][label_stride]: not 0 is present; partial: 1 present, 0 unknown
  int64_t label_stride;
  bool partial;
  const int64_t* offsets;  // [rows + 1] into indices, which ascend strictly within a row
  const int64_t* indices;  // categories; those outside [first, first + columns) are passed over
  int64_t first;
  const float* weight;     // [columns], or null
};

// Of one row: its loss, dloss/dbias and dloss/dscale.
struct loss_sums {
  double loss, dbias, dscale;
};

// Gradients of products with rows t become gradients of the rows before they were normalised, in
// place: factor * (g - <g, t> inverse_norm^2 t), which takes out what is along t; inverse_norm[b] is
// 1 / |t_b|. Without inverse_norm: factor * g.
struct projection {
  void* gradients;       // (rows, width): float, or bfloat16 bits
  bool gradients_half;
  const void* t;         // (rows, width), as above
  bool t_half;
  const float* inverse_norm;  // [rows], or null
  int64_t rows, width;
  float factor;
};

// Norms of rows and their inverses, 1 / max(norm, least).
struct norm_task {
  const void* t;  // (rows, width): float, or bfloat16 bits
  bool half;
  int64_t rows, width;
  float least;
  bool known;  // norms are there already
  float *norms, *inverse;  // [rows]
};

// By one instruction set; `threads` share the rows, and any number of them gives the same bits.
struct loss_functions {
  // sums[b] for each row b. Ranking needs tiles of all categories, fewer than 2^31.
  // Throws std::bad_alloc, of ranking's 3 * columns words a thread.
  void (*loss)(const loss_tile& tile, const loss_settings& settings, int threads, loss_sums* sums);
  void (*project)(const projection& task, int threads);
  void (*norms)(const norm_task& task, int threads);
};
namespace portable { extern const loss_functions kLoss; }
#if defined(PVP_FAST_X86)
namespace avx2 { extern const loss_functions kLoss; }
namespace avx512 { extern const loss_functions kLoss; }
#endif

constexpr const loss_functions* kLosses[kIsas] = {
    &portable::kLoss,
#if defined(PVP_FAST_X86)
    &avx2::kLoss, nullptr, &avx512::kLoss, nullptr, nullptr, nullptr,
#elif defined(PVP_FAST_ARM)
    // Every 64-bit Arm processor has NEON, so the compiler made the portable rows for it; nothing in
    // them is a dot product.
    nullptr, nullptr, nullptr, nullptr,
#endif
};

}  // namespace pvp_fast
