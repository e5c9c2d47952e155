// One register tile of the CPU top-k: rows x kLanes values, of which only survivors are stored.
//
// Included by one source file per instruction set, each built with its own compiler flags. So
// everything here has internal linkage and nothing from the standard library is used: an inline
// function shared between those files could otherwise be linked in its AVX-512 form for all.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

#if defined(__clang__)
#define PVP_FAST_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define PVP_FAST_UNROLL _Pragma("GCC unroll 16")
#else
#define PVP_FAST_UNROLL
#endif

namespace pvp_fast {

constexpr int kTileRows = 12;   // most rows in one tile
constexpr int kRowPanels = 4;   // most panels that one row takes at a time
constexpr int kTileLanes = 32;  // kLanes of topk/topk.h

// One step of a tile is 4 bytes of a query against 4 bytes of every lane: one float32, two bfloat16
// or four int8 (queries: biased, unsigned, see tile_kind).
struct tile_args {
  const uint32_t* x;        // [steps][rows], packed for this tile
  const uint32_t* panel;    // [steps][kTileLanes]
  int64_t steps;
  int rows;                 // 1 ... kTileRows
  float scale;
  const float* bias;        // [kTileLanes]
  const float* thresholds;  // [kTileLanes]
  const float* cut;         // [rows]: values below cannot enter the row's top k
  float* values;            // out: [rows][kTileLanes], defined where the mask bit is set
  uint32_t* masks;          // out: [rows], bit c set unless lane c is below cut or thresholds
  // int8 alone: cut and thresholds are not used, but reach; values are without offset and error.
  const float* row_scale;   // [rows], from topk/int8.h as those below
  const float* row_shift;
  const float* reach;
  const uint32_t* ahead = nullptr;     // [steps][kTileLanes] words to be fetched into a cache, or null
  // Parts of a tile alone: `steps` are a stretch of the chain, and the sums lie here in between.
  float* sums = nullptr;               // [rows][kTileLanes]
  bool begins = false, ends = false;   // the first stretch, the last one: only that leaves masks
  int quarters = 0;                    // of `steps`, to be fetched from `ahead` on
};

// Returns the OR of all masks. A NaN is never "below", so it always gets its bit.
using tile_function = uint32_t (*)(const tile_args&);

// One row against `panels` <= kRowPanels panels, one after another in memory, as are their bias and
// thresholds; values and masks are [panels] instead of [rows]. So more chains are in flight.
using row_function = uint32_t (*)(const tile_args&, int panels);

// Words (steps, lanes) of bfloat16 as float32 in the order of the chain: odd members, even members.
using widen_function = void (*)(const uint32_t* words, int64_t steps, uint32_t* wide);

// int8 alone: a grid of rows against panels, in tiles of kGridRows x kTileLanes.
constexpr int kGridRows = 32;
constexpr int kGridUnit = 16;  // rows and words of a register

struct grid_args {
  const uint32_t* x;        // queries, [rows / 16][steps / 16][16][16] words, both rounded up, zeros there
  int rows;
  int64_t steps;
  const uint32_t* panel;    // `panels` of them, one after another
  int panels;
  int64_t panel_words;
  const float* bias;        // [kTileLanes] of the first panel
  int64_t bias_step;        // to that of the next one
  const float* last_bias;   // of the last panel here
  const float* row_scale;   // [rows], as in tile_args
  const float* row_shift;
  const float* reach;
  bool fetch;               // the panels that come next into a cache
  bool more;                // there is one behind the last
};

// What a row has in a panel: the lanes not below its reach, and the values of all.
struct grid_hit {
  int row, panel;
  uint32_t mask;
  float values[kTileLanes];
};

// Returns how many hits there are; `hits` has a place more than rows times panels.
using grid_function = int (*)(const grid_args&, grid_hit* hits);

// What an instruction set has for one type.
struct tile_kind {
  tile_function tile = nullptr;
  row_function row = nullptr;      // faster for a single row, or null
  // For many rows, or null: parts of chains in float32, to which `widen` turns other types, so that the
  // lanes of a part stay in the first-level cache under all rows.
  tile_function part = nullptr;
  widen_function widen = nullptr;
  int query_top = 127;             // int8: the largest byte of a query; each is biased by one more
  grid_function grid = nullptr;    // for many rows, or null

  constexpr explicit operator bool() const { return tile != nullptr; }
};

// The float32 dot products (topk/topk.h) of one query with `count` <= kRescored class vectors.
constexpr int kRescored = 32;
using rescore_function = void (*)(const float* x, const float* const* w, int count, int64_t width,
                                  float* dots);

uint32_t tile_portable(const tile_args& tile);
uint32_t tile_portable_bf16(const tile_args& tile);
uint32_t tile_portable_int8(const tile_args& tile);
void rescore_portable(const float* x, const float* const* w, int count, int64_t width, float* dots);
#if defined(PVP_FAST_X86)
uint32_t tile_avx2(const tile_args& tile);
uint32_t tile_avx2_bf16(const tile_args& tile);
uint32_t tile_avx2_int8(const tile_args& tile);
uint32_t row_avx2(const tile_args& tile, int panels);
uint32_t part_avx2(const tile_args& tile);
void widen_avx2(const uint32_t* words, int64_t steps, uint32_t* wide);
uint32_t tile_avxvnni(const tile_args& tile);
void rescore_avx2(const float* x, const float* const* w, int count, int64_t width, float* dots);
uint32_t tile_avx512(const tile_args& tile);
uint32_t row_avx512(const tile_args& tile, int panels);
uint32_t tile_avx512_bf16(const tile_args& tile);  // AVX-512F alone
uint32_t tile_avx512bf16(const tile_args& tile);
uint32_t tile_avx512vnni(const tile_args& tile);
int grid_amxint8(const grid_args& args, grid_hit* hits);
#elif defined(PVP_FAST_ARM)
uint32_t tile_neon(const tile_args& tile);
uint32_t tile_neon_bf16(const tile_args& tile);
uint32_t tile_neon_int8(const tile_args& tile);
void rescore_neon(const float* x, const float* const* w, int count, int64_t width, float* dots);
uint32_t tile_neondot(const tile_args& tile);
uint32_t tile_neoni8mm(const tile_args& tile);
uint32_t tile_neonbf16(const tile_args& tile);
#endif

namespace {

// The value to compare and to store: exact for float32 and bfloat16.
struct exact_finish {
  template <class V>
  static typename V::sum start(const tile_args&, int) {
    return V::zero();
  }
  // Stores the values where one is not below, and returns which ones are not.
  template <class V>
  static uint32_t finish(const tile_args& t, const typename V::sum& sum, int row, int at) {
    const typename V::type value = V::fma(V::broadcast(t.scale), sum, V::load(t.bias + at));
    const uint32_t mask = V::not_below(value, V::broadcast(t.cut[row])) &
                          V::not_below(value, V::load(t.thresholds + at));
    if (mask != 0) V::store(t.values + row * kTileLanes + at, value);
    return mask;
  }
};

// The part of scale * <x, w> + bias that depends on both, from the quantised dot product
// (topk/int8.h). So many reach the cut that a branch for each would cost more than the store.
struct bound_finish {
  template <class V>
  static typename V::sum start(const tile_args& t, int at) {
    return V::minus_words(t.panel + t.steps * kTileLanes + at);
  }
  template <class V>
  static uint32_t finish(const tile_args& t, const typename V::sum& sum, int row, int at) {
    const uint32_t* stats = t.panel + t.steps * kTileLanes + at;  // written by pvp_fast/topk/panels.py
    const typename V::type dot = V::mul(V::to_float(sum), V::load_words(stats + kTileLanes));
    const typename V::type offset = V::load_words(stats + 4 * kTileLanes);
    const typename V::type part =
        V::fma(V::broadcast(t.row_scale[row]), dot,
               V::fma(V::broadcast(t.row_shift[row]), offset, V::load(t.bias + at)));
    V::store(t.values + row * kTileLanes + at, part);
    return V::not_below(part, V::broadcast(t.reach[row]));
  }
};

inline void fetch(const uint32_t* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line);
#else
  (void)line;
#endif
}

constexpr int64_t kLineWords = 16;  // of 64 bytes

// M rows from `row` against N vectors of lanes from `lane`; Ahead: the words at t.ahead are fetched. V: see
// the ISA files.
template <class V, int M, int N, bool Ahead>
inline uint32_t tile_block(const tile_args& t, int row, int lane) {
  typename V::sum sums[M][N];
  PVP_FAST_UNROLL
  for (int n = 0; n < N; ++n) {
    const typename V::sum first = V::template start<V>(t, lane + n * V::lanes);
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) sums[m][n] = first;
  }
  const uint32_t* x = t.x + row;
  const uint32_t* w = t.panel + lane;
  for (int64_t d = 0; d < t.steps; ++d, x += t.rows, w += kTileLanes) {
    if (Ahead) {
      fetch(t.ahead + d * kTileLanes);
      fetch(t.ahead + d * kTileLanes + kLineWords);
    }
    typename V::columns columns[N];
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) columns[n] = V::load_columns(w + n * V::lanes);
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      const typename V::query value = V::load_query(x[m]);
      PVP_FAST_UNROLL
      for (int n = 0; n < N; ++n) sums[m][n] = V::step(value, columns[n], sums[m][n]);
    }
  }
  uint32_t any = 0;
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) {
      const int at = lane + n * V::lanes;
      const uint32_t mask = V::template finish<V>(t, sums[m][n], row + m, at);
      t.masks[row + m] |= mask << at;
      any |= mask << at;
    }
  }
  return any;
}

constexpr int64_t kRowAhead = 32;  // steps: 4 KiB

// One row against P panels of exact values.
template <class V, int P>
inline uint32_t row_block(const tile_args& t, int panel) {
  constexpr int kVectors = kTileLanes / V::lanes;
  const int64_t words = t.steps * kTileLanes;
  typename V::sum sums[P][kVectors];
  PVP_FAST_UNROLL
  for (int p = 0; p < P; ++p) {
    PVP_FAST_UNROLL
    for (int n = 0; n < kVectors; ++n) sums[p][n] = V::zero();
  }
  const uint32_t* w = t.panel + panel * words;
  for (int64_t d = 0; d < t.steps; ++d, w += kTileLanes) {
    const typename V::query value = V::load_query(t.x[d]);
    PVP_FAST_UNROLL
    for (int p = 0; p < P; ++p) {
      if (d + kRowAhead < t.steps) {
        fetch(w + p * words + kRowAhead * kTileLanes);
        fetch(w + p * words + kRowAhead * kTileLanes + kLineWords);
      }
      PVP_FAST_UNROLL
      for (int n = 0; n < kVectors; ++n) {
        sums[p][n] = V::step(value, V::load_columns(w + p * words + n * V::lanes), sums[p][n]);
      }
    }
  }
  uint32_t any = 0;
  PVP_FAST_UNROLL
  for (int p = 0; p < P; ++p) {
    tile_args at = t;
    at.bias += (panel + p) * kTileLanes;
    at.thresholds += (panel + p) * kTileLanes;
    at.values += (panel + p) * kTileLanes;
    uint32_t mask = 0;
    PVP_FAST_UNROLL
    for (int n = 0; n < kVectors; ++n) {
      mask |= V::template finish<V>(at, sums[p][n], 0, n * V::lanes) << (n * V::lanes);
    }
    t.masks[panel + p] = mask;
    any |= mask;
  }
  return any;
}

// By so many panels at a time.
template <class V, int P>
inline uint32_t row_panels(const tile_args& t, int panels) {
  uint32_t any = 0;
  int at = 0;
  for (; at + P <= panels; at += P) any |= row_block<V, P>(t, at);
  for (; at < panels; ++at) any |= row_block<V, 1>(t, at);
  return any;
}

template <class V, int M, int N>
inline uint32_t tile_rows(const tile_args& t, int row) {
  uint32_t any = 0;
  for (int lane = 0; lane < kTileLanes; lane += N * V::lanes) {
    any |= row == 0 && lane == 0 && t.ahead != nullptr ? tile_block<V, M, N, true>(t, row, lane)
                                                       : tile_block<V, M, N, false>(t, row, lane);
  }
  return any;
}

}  // namespace
}  // namespace pvp_fast
