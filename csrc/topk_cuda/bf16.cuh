// The bfloat16 scan on tensor cores: a block of four warps multiplies kTileQueries queries with
// kTileCategories class vectors at a time, along the width in steps of kDepth that are copied while
// the step before is multiplied. What is not below the row's k-th best so far stays, in the place of
// the operands, with one mask bit each; then a warp takes the survivors of its rows into their sorted
// lists. Few survive once the lists are full. The lists are the part's result in global memory.
//
// Memory moved: the class vectors once per kTileQueries queries, the queries once per tile through
// the second-level cache, lists of 8 k bytes per row and part where something survived.
#pragma once

#include "topk/topk.h"
#include "topk_cuda/ops.cuh"
#include "topk_cuda/warp.cuh"

namespace pvp_fast {
namespace {

constexpr int kTileQueries = 64;
constexpr int kTileCategories = 128;
constexpr int kDepth = 64;              // elements of a step
constexpr int kChunks = kDepth / 8;     // of 16 bytes
constexpr int kScanThreads = 128;
constexpr int kMaskWords = kTileCategories / 32;

struct chunk {
  alignas(16) uint16_t elements[8];
};

// Rows of a step. Chunk c of row r lies at c ^ (r % 8), so that eight rows of one chunk, which are
// read at once, lie in different banks.
struct scan_operands {
  chunk x[kTileQueries][kChunks];
  chunk w[kTileCategories][kChunks];
};

struct scan_shared {
  union {
    scan_operands operands[2];
    float values[kTileQueries][kTileCategories];
  };
  unsigned masks[kTileQueries][kMaskWords];
  float cuts[kTileQueries];
  float bias[kTileCategories];
  float thresholds[kTileCategories];
};

template <int kRows>
__device__ void copy_rows(chunk (&to)[kRows][kChunks], const uint16_t* from, int64_t first, int64_t rows,
                          int64_t width, int64_t start) {
  constexpr int kAtOnce = kScanThreads / kChunks;  // rows, a multiple of 8
  const int column = threadIdx.x % kChunks, row = threadIdx.x / kChunks;
  const bool in_width = start + 8 * column < width;
  const int64_t offset = (first + row) * width + start + 8 * column;
#pragma unroll
  for (int i = 0; i < kRows / kAtOnce; ++i) {
    const bool inside = in_width && first + row + kAtOnce * i < rows;
    copy_async(&to[row + kAtOnce * i][column ^ (row % 8)],
               from + (inside ? offset + i * kAtOnce * width : 0), inside);
  }
}

// x and w of the query: rows of q.x.columns bfloat16, a multiple of 8, aligned to 16 bytes.
template <int S>
__global__ void __launch_bounds__(kScanThreads)
    scan_bf16_kernel(topk_query q, int parts, float* part_values, int* part_categories) {
  scan_shared& shared = *static_cast<scan_shared*>(dynamic_shared());
  const uint16_t* x = reinterpret_cast<const uint16_t*>(q.x.data);
  const uint16_t* w = reinterpret_cast<const uint16_t*>(q.packed);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int group = lane / 4, pair = 2 * (lane % 4);
  const int warp_row = 32 * (warp / 2), warp_column = 64 * (warp % 2);  // of its part of a tile
  const int k = static_cast<int>(q.k), part = static_cast<int>(blockIdx.y);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileQueries;
  const int rows = static_cast<int>(min(int64_t{kTileQueries}, q.x.rows - first_row));
  const int64_t width = q.x.columns, steps = (width + kDepth - 1) / kDepth;
  const int64_t tiles = (q.categories + kTileCategories - 1) / kTileCategories;
  const int64_t last_tile = tiles * (part + 1) / parts;

  for (int row = warp; row < rows; row += kScanThreads / 32) {
    warp_list<S> empty;
    empty.clear(k, lane);
    const int64_t at = ((first_row + row) * parts + part) * k;
    empty.write(part_values + at, part_categories + at, k, lane);
  }
  if (thread < kTileQueries) shared.cuts[thread] = q.threshold;

  for (int64_t tile = tiles * part / parts; tile < last_tile; ++tile) {
    const int64_t first = tile * kTileCategories;
    const int columns = static_cast<int>(min(int64_t{kTileCategories}, q.categories - first));
    const bool there = thread < columns;  // one thread a category
    shared.bias[thread] = there && q.bias ? q.bias[first + thread] : 0.0f;
    shared.thresholds[thread] = there && q.thresholds ? q.thresholds[first + thread] : -INFINITY;
    for (int i = thread; i < kTileQueries * kMaskWords; i += kScanThreads) {
      shared.masks[i / kMaskWords][i % kMaskWords] = 0;
    }

    float sums[2][8][4] = {};
    copy_rows(shared.operands[0].x, x, first_row, q.x.rows, width, 0);
    copy_rows(shared.operands[0].w, w, first, q.categories, width, 0);
    for (int64_t step = 0; step < steps; ++step) {
      copy_wait();
      __syncthreads();  // this step is there, and all have read the one before
      if (step + 1 < steps) {
        scan_operands& next = shared.operands[(step + 1) % 2];
        copy_rows(next.x, x, first_row, q.x.rows, width, (step + 1) * kDepth);
        copy_rows(next.w, w, first, q.categories, width, (step + 1) * kDepth);
      }
      const scan_operands& now = shared.operands[step % 2];
#pragma unroll
      for (int column = 0; column < kChunks; column += 2) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_matrices(a[i], &now.x[warp_row + 16 * i + lane % 16][(column + lane / 16) ^ (lane % 8)]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = warp_column + 16 * j + lane % 8 + 8 * (lane / 16);
          uint32_t b[4];
          load_matrices(b, &now.w[row][(column + lane / 8 % 2) ^ (lane % 8)]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            multiply_add(sums[i][2 * j], a[i], b[0], b[1]);
            multiply_add(sums[i][2 * j + 1], a[i], b[2], b[3]);
          }
        }
      }
    }
    __syncthreads();  // all have read the operands: their place is free

    bool any = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + 16 * i + 8 * half + group;
        const float cut = shared.cuts[row];
        unsigned kept[2] = {};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = warp_column + 8 * j + pair + e;
            const float value = fmaf(q.scale, sums[i][j][2 * half + e], shared.bias[column]);
            // A NaN is never below.
            if (row < rows && column < columns && !(value < cut) && !(value < shared.thresholds[column])) {
              shared.values[row][column] = value;
              kept[j / 4] |= 1u << (8 * (j % 4) + pair + e);
            }
          }
        }
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          if (kept[word] != 0) atomicOr(&shared.masks[row][warp_column / 32 + word], kept[word]);
        }
        any = any || kept[0] != 0 || kept[1] != 0;
      }
    }
    if (__syncthreads_or(any) == 0) continue;

    for (int row = warp; row < rows; row += kScanThreads / 32) {
      unsigned all = 0;
#pragma unroll
      for (int word = 0; word < kMaskWords; ++word) all |= shared.masks[row][word];
      if (all == 0) continue;  // the whole warp
      const int64_t at = ((first_row + row) * parts + part) * k;
      warp_list<S> best;
      best.read(part_values + at, part_categories + at, k, lane);
      bool nan = false;
#pragma unroll 1
      for (int word = 0; word < kMaskWords; ++word) {
        const bool kept = (shared.masks[row][word] >> lane & 1) != 0;
        const float value = kept ? shared.values[row][32 * word + lane] : -INFINITY;
        nan = nan || isnan(value);
        best.take(value, static_cast<int>(first) + 32 * word + lane, kept, lane);
      }
      const float worst = best.cut_value();
      const bool full = best.cut_category() != kAbsent;
      best.write(part_values + at, part_categories + at, k, lane);
      const bool spoilt = __any_sync(kAll, nan) != 0;
      if (lane == 0) {
        // Categories ascend: a later one that equals the k-th best is the worse one.
        if (spoilt || isnan(shared.cuts[row])) {
          shared.cuts[row] = NAN;
        } else if (full) {
          shared.cuts[row] = nextafterf(worst, INFINITY);
        }
      }
    }
    __syncthreads();
  }

  // A row whose cut is NaN has met one. (The loop ran, and ended with all threads together.)
  for (int row = thread; row < rows; row += kScanThreads) {
    if (isnan(shared.cuts[row])) part_categories[((first_row + row) * parts + part) * k] = kNanRow;
  }
}

}  // namespace
}  // namespace pvp_fast
