// Losses and pooling on a CPU: products become sums or their gradient in one pass. The contract.
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
// with the rows and columns as they came give their gradients up to project_cpu below.
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

// sums[b] for each row b, in an order that does not depend on the number of threads. `most` bounds the
// choice of the instruction set. Ranking needs tiles of all categories, fewer than 2^31.
// Throws std::bad_alloc, of ranking's 3 * columns words a thread.
void loss_cpu(const loss_tile& tile, const loss_settings& settings, int threads, isa most,
              loss_sums* sums);

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
void project_cpu(const projection& task, int threads, isa most);

// InfoNCE: some rows of the products (N, N) of pairs, every column of them. Products stand for cosines
// as above, and row i is row first + i of all.
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

// The same bits with any number of threads. Throws std::bad_alloc, of an eighth of the products.
void pairs_sums_cpu(const pairs_panel& panel, int threads, isa most, const pairs_sums& to);

// The softmaxes of all rows and columns, sums inverted.
struct pairs_softmax {
  const float *row_top, *row_inverse, *column_top, *column_inverse;
};

// gradients [rows][columns], which may be the products: of 2N times the loss by the products. Returns
// that by the scale.
double pairs_gradient_cpu(const pairs_panel& panel, const pairs_softmax& by, int threads, isa most,
                          float* gradients);

// Spatial softmax pooling: image i has the regions (rows) offsets[i] to offsets[i + 1], each with a
// cosine for every category as above; weights are the softmax over them of temperature * cosine.
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
void pool_cpu(const pool_task& task, int threads, isa most);

// gradients [regions][columns], which may be the products, where pooled has the gradient g, and all of
// the task is there; g is [images][stride]. Returns that of the temperature.
double pool_gradient_cpu(const pool_task& task, const float* g, int threads, isa most, float* gradients);

constexpr int kBlock = 256;  // entries at a time: the scratch of a block stays in the first cache
constexpr int kStrip = 16;   // rows that share one part of the columns' sums

// One row, strip or block by one instruction set.
struct row_functions {
  loss_sums (*loss)(const loss_tile&, const loss_settings&, int64_t row, uint32_t* scratch);
  void (*project)(const projection&, int64_t row);
  void (*strip_sums)(const pairs_panel&, int64_t strip, const pairs_sums&, float* top, float* total);
  void (*column_sums)(const pairs_panel&, int64_t column, const pairs_sums&, const float* parts);
  double (*pairs_gradient)(const pairs_panel&, int64_t row, const pairs_softmax&, float* gradients);
  void (*pool)(const pool_task&, int64_t image, int64_t block);
  double (*pool_gradient)(const pool_task&, int64_t image, int64_t block, const float* g, float* gradients);
};
extern const row_functions kRowsPortable;
#if defined(PVP_FAST_X86)
extern const row_functions kRowsAvx2, kRowsAvx512;
#endif

}  // namespace pvp_fast
