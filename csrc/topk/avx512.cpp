// The tiles for AVX-512F: 12 rows x 32 lanes in 24 of the 32 registers.
#include <immintrin.h>

#include "topk/tile.h"
#include "topk/tile_avx512.h"

namespace pvp_fast {
namespace {

struct float32 : avx512, exact_finish {
  using sum = __m512;
  using columns = __m512;
  using query = __m512;
  static sum zero() { return _mm512_setzero_ps(); }
  static columns load_columns(const uint32_t* from) { return _mm512_loadu_ps(from); }
  static query load_query(uint32_t bits) { return broadcast(as_float(bits)); }
  static sum step(query x, columns w, sum s) { return _mm512_fmadd_ps(x, w, s); }
};

// Bit for bit what vdpbf16ps computes, given that denormals are flushed: the odd member of the pair
// first, each multiply-add rounded once.
struct bfloat16 : avx512, exact_finish {
  struct pair {
    __m512 odd, even;
  };
  using sum = __m512;
  using columns = pair;
  using query = pair;
  static sum zero() { return _mm512_setzero_ps(); }
  static pair split(__m512i bits) {
    return {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~0xffff))),
            _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
  }
  static columns load_columns(const uint32_t* from) { return split(_mm512_loadu_si512(from)); }
  static query load_query(uint32_t bits) { return split(_mm512_set1_epi32(static_cast<int>(bits))); }
  static sum step(const query& x, const columns& w, sum s) {
    return _mm512_fmadd_ps(x.even, w.even, _mm512_fmadd_ps(x.odd, w.odd, s));
  }
};

}  // namespace

uint32_t tile_avx512(const tile_args& tile) { return by_rows<float32>(tile); }
uint32_t row_avx512(const tile_args& tile, int panels) { return row_panels<float32, 4>(tile, panels); }
uint32_t tile_avx512_bf16(const tile_args& tile) { return by_rows<bfloat16>(tile); }

}  // namespace pvp_fast
