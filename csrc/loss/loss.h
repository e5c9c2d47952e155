// Losses on a CPU: a tile of products becomes its gradient in one pass. The contract.
#pragma once

#include <cstdint>
#include <string>

namespace pvp_fast {

// As pvp_fast/losses/entries.py defines them; bce serves SigLIP too, whose pairs are the same.
//
// Ranking is sum_p sum_n weight_n max(0, margin - s_p + s_n) over a row's present p and absent n.
enum class loss_kind { asl, bce, focal, ranking };

struct loss_settings {
  loss_kind kind;
  float gamma_pos, gamma_neg, clip, eps;  // asl
  bool detach;                            // asl: no gradient through the focal factors
  float alpha, gamma;                     // focal; alpha < 0: no balance
  float margin;                           // ranking
};

// Labels are either dense bytes or lists; exactly one of `dense` and `offsets` is set.
//
// A product p of row b and column c stands for the cosine p * row_factor[b] * column_factor[c], and
// scale * cosine + bias is the score. p is overwritten by dloss/dp, so that products of the tile
// with the rows and columns as they came give their gradients up to project_cpu below.
struct loss_tile {
  float* products;  // [rows][columns]
  int64_t rows, columns;
  const float* row_factor;     // [rows], or null: 1
  const float* column_factor;  // [columns], or null: 1
  float scale, bias;
  const int8_t* dense;     // [rows][label_stride]: not 0 is present; partial: 1 present, 0 unknown
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

// sums[b] for each row b, in an order that does not depend on the number of threads.
// Throws std::invalid_argument when isa is unknown.
//
// Ranking needs tiles of all categories and, in `scratch`, 3 * columns words a thread.
void loss_cpu(const loss_tile& tile, const loss_settings& settings, int threads,
              const std::string& isa, loss_sums* sums, uint32_t* scratch);

// Rows of gradients (rows, width), in place: factor * (g - <g, t> inverse^2 t), which takes out what
// is along t; inverse[b] is 1 / |t_b|. Without inverse: factor * g.
struct projection {
  void* gradients;       // float, or bfloat16 bits
  bool gradients_half;
  const void* rows_of;   // t, (rows, width), as above
  bool rows_half;
  const float* inverse;  // [rows], or null
  int64_t rows, width;
  float factor;
};
void project_cpu(const projection& task, int threads, const std::string& isa);

// One row by one instruction set.
struct row_functions {
  loss_sums (*loss)(const loss_tile&, const loss_settings&, int64_t row, uint32_t* scratch);
  void (*project)(const projection&, int64_t row);
};
extern const row_functions kRowsPortable;
#if defined(PVP_FAST_X86)
extern const row_functions kRowsAvx2, kRowsAvx512;
#endif

}  // namespace pvp_fast
