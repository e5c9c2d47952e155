// The int8 tile for AVX-VNNI: vpdpbusd of AVX512-VNNI in registers of 256 bits.
#include "topk/tile_avx2.h"

namespace pvp_fast {
namespace {

struct int8 : avx2, bound_finish {
  using sum = __m256i;
  using columns = __m256i;
  using query = __m256i;
  static sum minus_words(const uint32_t* from) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), words(from));
  }
  static columns load_columns(const uint32_t* from) { return words(from); }
  static query load_query(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  // As asm: see topk/vnni.cpp. Without {vex} it would be the instruction of AVX-512.
  static sum step(query x, columns w, sum s) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s) : "x"(x), "x"(w));
    return s;
  }
  static __m256 to_float(sum s) { return _mm256_cvtepi32_ps(s); }
};

}  // namespace

uint32_t tile_avxvnni(const tile_args& tile) { return by_rows<int8>(tile); }

}  // namespace pvp_fast
