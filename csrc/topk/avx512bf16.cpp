// The bfloat16 tile for AVX512-BF16: vdpbf16ps takes a pair of products a lane and flushes denormals.
#include "topk/tile_avx512.h"

namespace pvp_fast {
namespace {

struct bfloat16 : avx512, exact_finish {
  using sum = __m512;
  using columns = __m512i;
  using query = __m512i;
  static sum zero() { return _mm512_setzero_ps(); }
  static columns load_columns(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static query load_query(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static sum step(query x, columns w, sum s) {
    return _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)w);
  }
};

}  // namespace

uint32_t tile_avx512bf16(const tile_args& tile) { return by_rows<bfloat16>(tile); }

}  // namespace pvp_fast
