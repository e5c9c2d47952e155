// The tile for AVX-512F: 12 rows x 32 lanes in 24 of the 32 registers.
#include <immintrin.h>

#include "topk_tile.h"

namespace pvp_fast {
namespace {

struct avx512 {
  static constexpr int lanes = 16;
  using type = __m512;
  static type zero() { return _mm512_setzero_ps(); }
  static type load(const float* from) { return _mm512_loadu_ps(from); }
  static type broadcast(float value) { return _mm512_set1_ps(value); }
  static type fma(type a, type b, type c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* to, type value) { _mm512_storeu_ps(to, value); }
  static uint32_t not_below(type a, type b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
};

template <int M>
uint32_t rows_512(const tile_args& tile) {
  return tile_rows<avx512, M, 2>(tile, 0);
}

}  // namespace

uint32_t tile_avx512(const tile_args& tile) {
  static constexpr tile_function kByRows[kTileRows] = {
      rows_512<1>, rows_512<2>, rows_512<3>, rows_512<4>,  rows_512<5>,  rows_512<6>,
      rows_512<7>, rows_512<8>, rows_512<9>, rows_512<10>, rows_512<11>, rows_512<12>};
  return kByRows[tile.rows - 1](tile);
}

}  // namespace pvp_fast
