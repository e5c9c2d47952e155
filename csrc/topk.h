// The contract of batched top-k tagging: no torch, no Python, only pointers, sizes and strides.
//
// For every query row x[b] (b < rows) and category c (c < categories)
//
//     dot[b][c]   = fma(x[b][D-1], w[c][D-1], ... fma(x[b][1], w[c][1], fma(x[b][0], w[c][0], 0)))
//     value[b][c] = fma(scale, dot[b][c], bias[c])
//
// in float32: one chain of fused multiply-adds in ascending d, each rounded once, to nearest even,
// with denormals kept. Every path (portable, AVX2, AVX-512, CUDA) computes exactly this, so all
// give the same bits whatever the instruction set, the number of threads or the split of C.
//
// Kept: the k largest values with value >= threshold and value >= thresholds[c], ordered by
// descending value, equal values by ascending category. No (rows, categories) array is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

struct topk_query {
  matrix x;                 // (rows, width)
  const float* packed;      // panel_count(categories) panels
  int64_t categories;
  int64_t k;                // >= 1; may exceed categories
  float threshold;          // -inf: none
  const float* thresholds;  // (categories) or nullptr
  const float* bias;        // (categories) or nullptr
  float scale;
  int threads;              // upper bound; small work takes fewer
};

struct topk_result {
  float* scores;     // (rows, k) contiguous; -inf past counts[row]
  int64_t* indices;  // (rows, k) contiguous; -1 past counts[row]
  int64_t* counts;   // (rows)
};

// Writes panel_count(w.rows) * w.columns * kLanes floats to packed.
void pack_cpu(const matrix& w, float* packed);

// Returns -1, or the first row that has a NaN value; the result is then incomplete.
// Throws std::bad_alloc, and std::invalid_argument when isa is unknown or cannot run here.
int64_t topk_cpu(const topk_query& query, const topk_result& result, const std::string& isa);

// Instruction sets that this build has and this processor runs, best first.
std::vector<std::string> available_isas();

}  // namespace pvp_fast
