// The int8 tile for AVX512-VNNI: vpdpbusd takes four products a lane, unsigned by signed, in int32.
#include "topk/tile_avx512.h"

namespace pvp_fast {
namespace {

struct int8 : avx512, bound_finish {
  using sum = __m512i;
  using columns = __m512i;
  using query = __m512i;
  static sum minus_words(const uint32_t* from) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(from));
  }
  static columns load_columns(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static query load_query(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  // As asm: GCC 12 keeps accumulators of the intrinsic in two places and spills most of them.
  static sum step(query x, columns w, sum s) {
    asm("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(x), "v"(w));
    return s;
  }
  static __m512 to_float(sum s) { return _mm512_cvtepi32_ps(s); }
};

}  // namespace

uint32_t tile_avx512vnni(const tile_args& tile) { return by_rows<int8>(tile); }

}  // namespace pvp_fast
