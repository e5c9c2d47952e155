// What the AVX-512 source files share: float vectors of 16 lanes and the choice of a tile by its rows.
#pragma once

#include <immintrin.h>

#include "topk/tile.h"

namespace pvp_fast {
namespace {

struct avx512 {
  static constexpr int lanes = 16;
  using type = __m512;
  static type load(const float* from) { return _mm512_loadu_ps(from); }
  static type load_words(const uint32_t* from) { return _mm512_loadu_ps(from); }
  static type broadcast(float value) { return _mm512_set1_ps(value); }
  static type fma(type a, type b, type c) { return _mm512_fmadd_ps(a, b, c); }
  static type mul(type a, type b) { return _mm512_mul_ps(a, b); }
  static void store(float* to, type value) { _mm512_storeu_ps(to, value); }
  static uint32_t not_below(type a, type b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
};

template <class V, int M>
uint32_t rows_512(const tile_args& tile) {
  return tile_rows<V, M, 2>(tile, 0);
}

template <class V>
uint32_t by_rows(const tile_args& tile) {
  static constexpr tile_function kByRows[kTileRows] = {
      rows_512<V, 1>, rows_512<V, 2>, rows_512<V, 3>, rows_512<V, 4>,  rows_512<V, 5>,  rows_512<V, 6>,
      rows_512<V, 7>, rows_512<V, 8>, rows_512<V, 9>, rows_512<V, 10>, rows_512<V, 11>, rows_512<V, 12>};
  return kByRows[tile.rows - 1](tile);
}

}  // namespace
}  // namespace pvp_fast
