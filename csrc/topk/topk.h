// The contract of batched top-k tagging: no torch, no Python, only pointers, sizes and strides.
//
// For every query row x[b] (b < rows) and category c (c < categories)
//
//     dot[b][c]   = fma(x[b][D-1], w[c][D-1], ... fma(x[b][1], w[c][1], fma(x[b][0], w[c][0], 0)))
//     value[b][c] = fma(scale, dot[b][c], bias[c])
//
// in float32: one chain of fused multiply-adds in ascending d, each rounded once, to nearest even,
// with denormals kept. Every path (portable, AVX2, AVX-512, NEON, CUDA) computes exactly this, so all
// give the same bits whatever the instruction set, the number of threads or the split of C.
//
// bfloat16: x and w are rounded to bfloat16 (to nearest even) and the chain takes pairs, the odd
// member first, as vdpbf16ps does:
//
//     sum = fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], sum)),  j ascending, an odd D padded with zero
//
// with denormals counted as zero, inputs and results, here and in value. Again the same bits on
// every path.
//
// int8: w and x are rounded to 8 bits row by row, both without their part along the centre of the
// class vectors. From the lengths of what the rounding left out follow an upper and a lower bound of
// every value (topk/int8.h). A category whose upper bound is below k lower bounds, or below the
// thresholds, is out; the others are scored in float32, those with the largest bounds first, until
// no bound reaches the k-th best. So no kept category can be missed, and the result is that of
// float32, bit for bit.
//
// Kept: the k largest values with value >= threshold and value >= thresholds[c], ordered by
// descending value, equal values by ascending category. No (rows, categories) array is written.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace pvp_fast {

// Categories in one packed panel. Panel p holds categories p*kLanes ... p*kLanes + kLanes - 1 as
// [width][kLanes] float32, lanes past the last category zero. One layout serves every path.
constexpr int64_t kLanes = 32;

constexpr int64_t panel_count(int64_t categories) { return (categories + kLanes - 1) / kLanes; }

// A strided (rows, columns) float32 matrix; strides in elements, any sign.
struct matrix {
  const float* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

enum class scalar { float32, bfloat16, int8 };

// 4-byte steps of one packed lane: one float32, two bfloat16 or four int8, the last padded with zero.
constexpr int64_t step_count(scalar type, int64_t width) {
  return type == scalar::float32 ? width : type == scalar::bfloat16 ? (width + 1) / 2 : (width + 3) / 4;
}

// Rows of kLanes words that follow the steps of an int8 panel: 128 * sum(q) as int32, then as float32
// s, |r|, |w - m| and <m, w - m> (topk/int8.h). Lengths are rounded upwards and at least 1e-37;
// infinity makes the category always be rescored.
constexpr int64_t kInt8Stats = 5;

// Most width for int8: 255 * 127 * width must fit an int32.
constexpr int64_t kInt8Width = 65536;

struct topk_query {
  matrix x;                 // (rows, width)
  const float* packed;      // panel_count(categories) panels of `type`
  int64_t categories;
  int64_t k;                // >= 1; may exceed categories
  float threshold;          // -inf: none
  const float* thresholds;  // (categories) or nullptr
  const float* bias;        // (categories) or nullptr
  float scale;
  int threads;              // upper bound; small work takes fewer
  scalar type = scalar::float32;
  const float* vectors = nullptr;  // int8: (categories, width) contiguous, to rescore with
  const float* centre = nullptr;   // int8: m (width), or nullptr for zero
};

struct topk_result {
  float* scores;     // (rows, k) contiguous; -inf past counts[row]
  int64_t* indices;  // (rows, k) contiguous; -1 past counts[row]
  int64_t* counts;   // (rows)
};

// Writes panel_count(w.rows) * w.columns * kLanes floats to packed.
void pack_cpu(const matrix& w, float* packed);

// The int8 words of w: w.rows * (step_count(int8) + kInt8Stats) of them, category by category, from which
// panels are made. centre: (w.columns). Throws std::bad_alloc.
void encode_int8_cpu(const matrix& w, const float* centre, uint32_t* words);

// Returns -1, or the first row that has a NaN value; the result is then incomplete.
// `most` bounds the choice: the best path of the query's type that is not better. Throws std::bad_alloc.
int64_t topk_cpu(const topk_query& query, const topk_result& result, isa most);

// The instruction set of that path.
isa topk_isa(scalar type, isa most);

}  // namespace pvp_fast
