// What the source files for AVX2 share: float vectors of 8 lanes and tiles of 6 rows x 16 lanes, which
// are 12 of the 16 registers.
#pragma once

#include <immintrin.h>

#include "topk/tile.h"

namespace pvp_fast {
namespace {

struct avx2 {
  static constexpr int lanes = 8;
  using type = __m256;
  static type load(const float* from) { return _mm256_loadu_ps(from); }
  static type load_words(const uint32_t* from) { return _mm256_castsi256_ps(words(from)); }
  static __m256i words(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static type broadcast(float value) { return _mm256_set1_ps(value); }
  static type fma(type a, type b, type c) { return _mm256_fmadd_ps(a, b, c); }
  static type mul(type a, type b) { return _mm256_mul_ps(a, b); }
  static void store(float* to, type value) { _mm256_storeu_ps(to, value); }
  static uint32_t not_below(type a, type b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)));
  }
};

template <class V>
uint32_t by_rows(const tile_args& tile) {
  uint32_t any = 0;
  int row = 0;
  for (; row + 6 <= tile.rows; row += 6) any |= tile_rows<V, 6, 2>(tile, row);
  switch (tile.rows - row) {
    case 5: return any | tile_rows<V, 5, 2>(tile, row);
    case 4: return any | tile_rows<V, 4, 2>(tile, row);
    case 3: return any | tile_rows<V, 3, 2>(tile, row);
    case 2: return any | tile_rows<V, 2, 4>(tile, row);
    case 1: return any | tile_rows<V, 1, 4>(tile, row);
    default: return any;
  }
}

}  // namespace
}  // namespace pvp_fast
