// Softmaxes of products on a CPU: InfoNCE's over rows and columns, pooling's over the regions of an
// image. The contract; products stand for cosines as in loss/loss.h.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace pvp_fast {

// InfoNCE: some rows of the products (N, N) of pairs, every column of them. Row i is row
// first + i of all.
struct pairs_panel {
  const float* products;  // [rows][columns]
  int64_t rows, columns, first;
  const float* x_inverse_norm;  // [rows], or null: 1
  const float* w_inverse_norm;  // [columns], or null: 1
  float scale;
  const float* targets;       // [rows][columns], or null: 1 at row i's own column first + i alone
  const float* row_share;     // [rows]: y stands for y * (row_share + column_share)
  const float* column_share;  // [columns]
};

// Softmaxes as their maximum and their sum of exponentials less the maximum.
struct pairs_sums {
  float *row_top, *row_total;        // [rows]
  float *column_top, *column_total;  // [columns], added to: those of no rows are -inf and 0
  float* aimed;                      // [rows]: the sum of target * score
};

// The softmaxes of all rows and columns, sums inverted.
struct pairs_softmax {
  const float *row_top, *row_inverse, *column_top, *column_inverse;
};

// Spatial softmax pooling: image i has the regions (rows) offsets[i] to offsets[i + 1], each with a
// product for every category; weights are the softmax over them of temperature * cosine.
struct pool_task {
  const float* products;  // [regions][columns]
  int64_t columns, images;
  const int64_t* offsets;  // [images + 1]
  const float* z_inverse_norm;  // [regions], or null: 1
  const float* w_inverse_norm;  // [columns], or null: 1
  float temperature;
  float *pooled, *top, *inverse_total;  // [images][stride]; 0 of an image without regions
  int64_t stride;
};

// By one instruction set; `threads` share the rows, and any number of them gives the same bits.
struct softmax_functions {
  // Throws std::bad_alloc, of an eighth of the products.
  void (*pairs)(const pairs_panel& panel, int threads, const pairs_sums& to);
  // gradients [rows][columns], which may be the products: of 2N times the loss by the products. Returns
  // that by the scale.
  double (*pairs_gradient)(const pairs_panel& panel, const pairs_softmax& by, int threads,
                           float* gradients);
  void (*pool)(const pool_task& task, int threads);
  // gradients [regions][columns], which may be the products, where pooled has the gradient g, and all
  // of the task is there; g is [images][stride]. Returns that of the temperature.
  double (*pool_gradient)(const pool_task& task, const float* g, int threads, float* gradients);
};
namespace portable { extern const softmax_functions kSoftmax; }
#if defined(PVP_FAST_X86)
namespace avx2 { extern const softmax_functions kSoftmax; }
namespace avx512 { extern const softmax_functions kSoftmax; }
#endif

constexpr const softmax_functions* kSoftmaxes[kIsas] = {
    &portable::kSoftmax,
#if defined(PVP_FAST_X86)
    &avx2::kSoftmax, nullptr, &avx512::kSoftmax, nullptr, nullptr, nullptr,
#elif defined(PVP_FAST_ARM)
    // Every 64-bit Arm processor has NEON, so the compiler made the portable rows for it; nothing in
    // them is a dot product.
    nullptr, nullptr, nullptr, nullptr,
#endif
};

}  // namespace pvp_fast
