// What the NEON source files share: float vectors of 4 lanes, and a tile whose queries come four to a
// register, for multiply-adds by one of its lanes: 12 rows x 8 lanes in 24 of the 32 registers.
#pragma once

#include <arm_neon.h>

#include <utility>

#include "topk/tile.h"

namespace pvp_fast {
namespace {

struct neon {
  static constexpr int lanes = 4;
  static constexpr int column_registers = 1;  // that a vector of lanes takes
  using type = float32x4_t;
  static type load(const float* from) { return vld1q_f32(from); }
  static type load_words(const uint32_t* from) { return vreinterpretq_f32_u32(vld1q_u32(from)); }
  static type broadcast(float value) { return vdupq_n_f32(value); }
  static type fma(type a, type b, type c) { return vfmaq_f32(c, a, b); }
  static type mul(type a, type b) { return vmulq_f32(a, b); }
  static void store(float* to, type value) { vst1q_f32(to, value); }
  static uint32_t not_below(type a, type b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(bits, vcltq_f32(a, b)));
  }
};

// The sums of int8 start at zero: queries are read as signed, without the 128 that the stored word takes out.
struct neon_int8 : neon, bound_finish {
  using sum = int32x4_t;
  static sum minus_words(const uint32_t*) { return vdupq_n_s32(0); }
  static int8x16_t load_columns(const uint32_t* from) { return vreinterpretq_s8_u32(vld1q_u32(from)); }
  static int8x16_t load_queries(uint32x4_t words) {
    return vreinterpretq_s8_u32(veorq_u32(words, vdupq_n_u32(0x80808080u)));
  }
  static type to_float(sum s) { return vcvtq_f32_s32(s); }
};

// A word of each of `count` <= 4 rows; nothing past them is read.
template <int count>
inline uint32x4_t load_rows(const uint32_t* from) {
  if constexpr (count >= 4) return vld1q_u32(from);
  uint32x4_t words = vld1q_dup_u32(from);
  if constexpr (count >= 2) words = vld1q_lane_u32(from + 1, words, 1);
  if constexpr (count >= 3) words = vld1q_lane_u32(from + 2, words, 2);
  return words;
}

template <class V, int M, int N>
inline void start_sums(const tile_args& t, int lane, typename V::sum (&sums)[M][N]) {
  PVP_FAST_UNROLL
  for (int n = 0; n < N; ++n) {
    const typename V::sum first = V::template start<V>(t, lane + n * V::lanes);
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) sums[m][n] = first;
  }
}

template <class V, int M, int N>
inline uint32_t finish_sums(const tile_args& t, int row, int lane, const typename V::sum (&sums)[M][N]) {
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

template <class V, int lane, int N>
inline void step_row(typename V::queries x, const typename V::columns (&w)[N], typename V::sum (&sums)[N]) {
  PVP_FAST_UNROLL
  for (int n = 0; n < N; ++n) sums[n] = V::template step<lane>(x, w[n], sums[n]);
}

// Rows of one register of queries.
template <class V, int M, int N, int... lanes>
inline void step_rows(const uint32_t* from, const typename V::columns (&w)[N], typename V::sum (&sums)[M][N],
                      int first, std::integer_sequence<int, lanes...>) {
  const typename V::queries x = V::load_queries(load_rows<sizeof...(lanes)>(from + first));
  (step_row<V, lanes, N>(x, w, sums[first + lanes]), ...);
}

// M rows against N vectors of lanes from `lane`.
template <class V, int M, int N>
inline uint32_t neon_block(const tile_args& t, int lane) {
  typename V::sum sums[M][N];
  start_sums<V>(t, lane, sums);
  const uint32_t* x = t.x;
  const uint32_t* w = t.panel + lane;
  for (int64_t d = 0; d < t.steps; ++d, x += M, w += kTileLanes) {
    typename V::columns columns[N];
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) columns[n] = V::load_columns(w + n * V::lanes);
    PVP_FAST_UNROLL
    for (int first = 0; first + 4 <= M; first += 4) {
      step_rows<V>(x, columns, sums, first, std::make_integer_sequence<int, 4>());
    }
    if constexpr (M % 4 != 0) {
      step_rows<V>(x, columns, sums, M - M % 4, std::make_integer_sequence<int, M % 4>());
    }
  }
  return finish_sums<V>(t, 0, lane, sums);
}

// As many vectors of lanes as leave the sums, the columns and a register of queries in 32.
constexpr int neon_vectors(int rows, int column_registers) {
  for (int n = 8; n > 2; n /= 2) {
    if (n * (rows + column_registers) + 2 * column_registers <= 30) return n;
  }
  return 2;
}

struct by_lane {
  template <class V, int M>
  static uint32_t rows(const tile_args& tile) {
    constexpr int N = neon_vectors(M, V::column_registers);
    uint32_t any = 0;
    for (int lane = 0; lane < kTileLanes; lane += N * V::lanes) any |= neon_block<V, M, N>(tile, lane);
    return any;
  }
};

// Way: how the rows of a tile are multiplied.
template <class V, class Way>
uint32_t by_rows(const tile_args& tile) {
  static constexpr tile_function kByRows[kTileRows] = {
      Way::template rows<V, 1>,  Way::template rows<V, 2>,  Way::template rows<V, 3>,
      Way::template rows<V, 4>,  Way::template rows<V, 5>,  Way::template rows<V, 6>,
      Way::template rows<V, 7>,  Way::template rows<V, 8>,  Way::template rows<V, 9>,
      Way::template rows<V, 10>, Way::template rows<V, 11>, Way::template rows<V, 12>};
  return kByRows[tile.rows - 1](tile);
}

// bfloat16 flushes denormals. NEON does so by a bit of its control register, but it calls a result
// denormal before rounding, the contract (topk/topk.h) after it: they differ where rounding gives the
// smallest normal number. Whatever is flushed raises the underflow flag, so a tile that raised it,
// which one of embeddings never does, is made anew by the portable path.
inline uint32_t flushing(uint32_t (*tile_of)(const tile_args&), const tile_args& tile) {
  constexpr uint64_t kFlush = uint64_t{1} << 24, kUnderflow = uint64_t{1} << 3;
  uint64_t control, status;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0\n\tmsr fpsr, xzr" : : "r"(control | kFlush) : "memory");
  uint32_t any = tile_of(tile);
  asm volatile("mrs %0, fpsr\n\tmsr fpcr, %1" : "=&r"(status) : "r"(control) : "memory");
  if ((status & kUnderflow) == 0) return any;
  for (int r = 0; r < tile.rows; ++r) tile.masks[r] = 0;
  return tile_portable_bf16(tile);
}

}  // namespace
}  // namespace pvp_fast
