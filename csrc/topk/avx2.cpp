// The tiles for AVX2 + FMA: 6 rows x 16 lanes in 12 of the 16 registers.
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

struct float32 : avx2, exact_finish {
  using sum = __m256;
  using columns = __m256;
  using query = __m256;
  static sum zero() { return _mm256_setzero_ps(); }
  static columns load_columns(const uint32_t* from) { return load_words(from); }
  static query load_query(uint32_t bits) { return broadcast(as_float(bits)); }
  static sum step(query x, columns w, sum s) { return _mm256_fmadd_ps(x, w, s); }
};

// As vdpbf16ps: the odd member of the pair first (see topk/avx512.cpp).
struct bfloat16 : avx2, exact_finish {
  struct pair {
    __m256 odd, even;
  };
  using sum = __m256;
  using columns = pair;
  using query = pair;
  static sum zero() { return _mm256_setzero_ps(); }
  static pair split(__m256i bits) {
    return {_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(~0xffff))),
            _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
  }
  static columns load_columns(const uint32_t* from) { return split(words(from)); }
  static query load_query(uint32_t bits) { return split(_mm256_set1_epi32(static_cast<int>(bits))); }
  static sum step(const query& x, const columns& w, sum s) {
    return _mm256_fmadd_ps(x.even, w.even, _mm256_fmadd_ps(x.odd, w.odd, s));
  }
};

// vpmaddubsw saturates, so the bytes are widened: even and odd bytes as int16, vpmaddwd on each.
struct int8 : avx2, bound_finish {
  struct halves {
    __m256i even, odd;
  };
  using sum = __m256i;
  using columns = halves;
  using query = halves;
  static sum minus_words(const uint32_t* from) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), words(from));
  }
  static columns load_columns(const uint32_t* from) {
    const __m256i bytes = words(from);
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static query load_query(uint32_t bits) {
    const __m256i bytes = _mm256_set1_epi32(static_cast<int>(bits));
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
  }
  static sum step(const query& x, const columns& w, sum s) {
    return _mm256_add_epi32(s, _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even),
                                                _mm256_madd_epi16(x.odd, w.odd)));
  }
  static __m256 to_float(sum s) { return _mm256_cvtepi32_ps(s); }
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

uint32_t tile_avx2(const tile_args& tile) { return by_rows<float32>(tile); }
uint32_t tile_avx2_bf16(const tile_args& tile) { return by_rows<bfloat16>(tile); }
uint32_t tile_avx2_int8(const tile_args& tile) { return by_rows<int8>(tile); }

// One chain a category, so that eight are in flight.
void rescore_avx2(const float* x, const float* const* w, int count, int64_t width, float* dots) {
  __m128 sums[kRescored];
  const float* rows[kRescored];
  PVP_FAST_UNROLL
  for (int i = 0; i < kRescored; ++i) {
    sums[i] = _mm_setzero_ps();
    rows[i] = w[i < count ? i : 0];
  }
  for (int64_t d = 0; d < width; ++d) {
    const __m128 value = _mm_load_ss(x + d);
    PVP_FAST_UNROLL
    for (int i = 0; i < kRescored; ++i) {
      sums[i] = _mm_fmadd_ss(value, _mm_load_ss(rows[i] + d), sums[i]);
    }
  }
  for (int i = 0; i < count; ++i) dots[i] = _mm_cvtss_f32(sums[i]);
}

}  // namespace pvp_fast
