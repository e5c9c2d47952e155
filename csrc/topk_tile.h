// One register tile of the CPU top-k: rows x kLanes values, of which only survivors are stored.
//
// Included by one source file per instruction set, each built with its own compiler flags. So
// everything here has internal linkage and nothing from the standard library is used: an inline
// function shared between those files could otherwise be linked in its AVX-512 form for all.
#pragma once

#include <cstdint>

#if defined(__clang__)
#define PVP_FAST_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define PVP_FAST_UNROLL _Pragma("GCC unroll 16")
#else
#define PVP_FAST_UNROLL
#endif

namespace pvp_fast {

constexpr int kTileRows = 12;   // most rows in one tile
constexpr int kTileLanes = 32;  // kLanes of topk.h

struct tile_args {
  const float* x;           // [width][rows], packed for this tile
  const float* panel;       // [width][kTileLanes]
  int64_t width;
  int rows;                 // 1 ... kTileRows
  float scale;
  const float* bias;        // [kTileLanes]
  const float* thresholds;  // [kTileLanes]
  const float* cut;         // [rows]: values below cannot enter the row's top k
  float* values;            // out: [rows][kTileLanes], defined where the mask bit is set
  uint32_t* masks;          // out: [rows], bit c set unless lane c is below cut or thresholds
};

// Returns the OR of all masks. A NaN is never "below", so it always gets its bit.
using tile_function = uint32_t (*)(const tile_args&);

uint32_t tile_portable(const tile_args& tile);
#if defined(PVP_FAST_X86)
uint32_t tile_avx2(const tile_args& tile);
uint32_t tile_avx512(const tile_args& tile);
#endif

namespace {

// M rows from `row` against N vectors of lanes from `lane`. V: see the ISA files.
template <class V, int M, int N>
inline uint32_t tile_block(const tile_args& t, int row, int lane) {
  typename V::type sums[M][N];
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) sums[m][n] = V::zero();
  }
  const float* x = t.x + row;
  const float* w = t.panel + lane;
  for (int64_t d = 0; d < t.width; ++d, x += t.rows, w += kTileLanes) {
    typename V::type columns[N];
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) columns[n] = V::load(w + n * V::lanes);
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      const typename V::type value = V::broadcast(x[m]);
      PVP_FAST_UNROLL
      for (int n = 0; n < N; ++n) sums[m][n] = V::fma(value, columns[n], sums[m][n]);
    }
  }
  uint32_t any = 0;
  const typename V::type scale = V::broadcast(t.scale);
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    const typename V::type cut = V::broadcast(t.cut[row + m]);
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) {
      const int at = lane + n * V::lanes;
      const typename V::type value = V::fma(scale, sums[m][n], V::load(t.bias + at));
      const uint32_t mask = V::not_below(value, cut) & V::not_below(value, V::load(t.thresholds + at));
      if (mask != 0) {
        V::store(t.values + (row + m) * kTileLanes + at, value);
        t.masks[row + m] |= mask << at;
        any |= mask << at;
      }
    }
  }
  return any;
}

template <class V, int M, int N>
inline uint32_t tile_rows(const tile_args& t, int row) {
  uint32_t any = 0;
  for (int lane = 0; lane < kTileLanes; lane += N * V::lanes) any |= tile_block<V, M, N>(t, row, lane);
  return any;
}

}  // namespace
}  // namespace pvp_fast
