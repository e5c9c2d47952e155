// One register tile of the CPU top-k: rows x kLanes values, of which only survivors are stored.
//
// Included by one source file per instruction set, each built with its own compiler flags. So
// everything here has internal linkage and nothing from the standard library is used: an inline
// function shared between those files could otherwise be linked in its AVX-512 form for all.
#pragma once

#include <cstdint>
#include <cstring>

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

// One step of a tile is 4 bytes of a query against 4 bytes of every lane: one float32, two bfloat16
// or four int8 (queries: biased by 128, unsigned).
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
  // int8 alone: values are then upper bounds of the float32 ones (topk.h), lows lower bounds.
  float* lows;              // out: as values
  const float* row_scale;   // [rows], all of them from topk_int8.h
  const float* row_offset;
  const float* row_shift;
  const float* row_length;
  const float* row_error;
  const float* row_slack;
};

// Returns the OR of all masks. A NaN is never "below", so it always gets its bit.
using tile_function = uint32_t (*)(const tile_args&);

// The float32 dot products (topk.h) of one query with `count` <= kRescored class vectors.
constexpr int kRescored = 8;
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
void rescore_avx2(const float* x, const float* const* w, int count, int64_t width, float* dots);
uint32_t tile_avx512(const tile_args& tile);
uint32_t tile_avx512_bf16(const tile_args& tile);  // AVX-512F alone
uint32_t tile_avx512bf16(const tile_args& tile);
uint32_t tile_avx512vnni(const tile_args& tile);
#endif

namespace {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The value to compare and to store: exact for float32 and bfloat16.
struct exact_finish {
  template <class V, class S>
  static typename V::type finish(const tile_args& t, const S& sum, int, int at) {
    return V::fma(V::broadcast(t.scale), sum, V::load(t.bias + at));
  }
  template <class V>
  static void store_low(const tile_args&, const typename V::type&, int, int) {}
};

// An upper bound of scale * <x, w> + bias from the quantised dot product (topk_int8.h).
struct bound_finish {
  template <class V, class S>
  static typename V::type finish(const tile_args& t, const S& sum, int row, int at) {
    const uint32_t* stats = t.panel + t.steps * kTileLanes + at;  // written by pvp_fast/topk_pack.py
    const typename V::type dot = V::to_float(sum, stats);
    const typename V::type step = V::load_words(stats + kTileLanes);
    const typename V::type offset = V::load_words(stats + 4 * kTileLanes);
    const typename V::type centred =
        V::fma(V::broadcast(t.row_shift[row]), offset, V::broadcast(t.row_offset[row]));
    const typename V::type value =
        V::add(V::fma(V::broadcast(t.row_scale[row]), V::mul(dot, step), centred), V::load(t.bias + at));
    const typename V::type top = V::add(value, error<V>(t, row, at));
    // -inf, from the bias of a category switched off, stays itself.
    return V::larger(V::fma(V::abs(top), V::broadcast(0x1p-20f), top), top);
  }
  // As much below the quantised value as the bound is above it, and what rounding may hide.
  template <class V>
  static void store_low(const tile_args& t, const typename V::type& top, int row, int at) {
    const typename V::type down =
        V::fma(V::broadcast(-2.0f - 0x1p-15f), error<V>(t, row, at), top);
    V::store(t.lows + row * kTileLanes + at, V::fma(V::abs(top), V::broadcast(-0x1p-17f), down));
  }
  template <class V>
  static typename V::type error(const tile_args& t, int row, int at) {
    const uint32_t* stats = t.panel + t.steps * kTileLanes + at;
    const typename V::type residual = V::load_words(stats + 2 * kTileLanes);
    const typename V::type length = V::load_words(stats + 3 * kTileLanes);
    return V::fma(V::broadcast(t.row_length[row]), residual,
                  V::fma(V::broadcast(t.row_error[row]), length, V::broadcast(t.row_slack[row])));
  }
};

// M rows from `row` against N vectors of lanes from `lane`. V: see the ISA files.
template <class V, int M, int N>
inline uint32_t tile_block(const tile_args& t, int row, int lane) {
  typename V::sum sums[M][N];
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) sums[m][n] = V::zero();
  }
  const uint32_t* x = t.x + row;
  const uint32_t* w = t.panel + lane;
  for (int64_t d = 0; d < t.steps; ++d, x += t.rows, w += kTileLanes) {
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
    const typename V::type cut = V::broadcast(t.cut[row + m]);
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) {
      const int at = lane + n * V::lanes;
      const typename V::type value = V::template finish<V>(t, sums[m][n], row + m, at);
      const uint32_t mask = V::not_below(value, cut) & V::not_below(value, V::load(t.thresholds + at));
      if (mask != 0) {
        V::store(t.values + (row + m) * kTileLanes + at, value);
        V::template store_low<V>(t, value, row + m, at);
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
