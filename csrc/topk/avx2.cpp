// The tiles for AVX2 + FMA.
#include "topk/round.h"
#include "topk/tile_avx2.h"

namespace pvp_fast {
namespace {

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

// vpmaddubsw adds two products in 16 bits, where 2 * 127 * 127 fits: queries here have 7 bits, and the
// bounds are of what they lose (tile_kind::query_top). So their bias is half of the panels' 128.
struct int8 : avx2, bound_finish {
  using sum = __m256i;
  using columns = __m256i;
  using query = __m256i;
  static sum minus_words(const uint32_t* from) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_srai_epi32(words(from), 1));
  }
  static columns load_columns(const uint32_t* from) { return words(from); }
  static query load_query(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  static sum step(query x, columns w, sum s) {
    return _mm256_add_epi32(
        s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
  }
  static __m256 to_float(sum s) { return _mm256_cvtepi32_ps(s); }
};

// M rows from `row` against 16 lanes from `lane`, over one part of the chain. Ahead: fetches a quarter
// of the words that come next, two lines every four steps.
template <int M, bool Ahead>
inline uint32_t part_block(const tile_args& t, int row, int lane, int quarter) {
  __m256 sums[M][2];
  float* kept = t.sums + row * kTileLanes + lane;
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    PVP_FAST_UNROLL
    for (int n = 0; n < 2; ++n) {
      sums[m][n] = t.begins ? _mm256_setzero_ps() : _mm256_loadu_ps(kept + m * kTileLanes + 8 * n);
    }
  }
  const uint32_t* x = t.x + row;
  const uint32_t* w = t.panel + lane;
  const char* ahead = reinterpret_cast<const char*>(t.ahead) + quarter * t.steps * kTileLanes;
  const auto step = [&](int64_t at) {
    const __m256 first = avx2::load_words(w + at * kTileLanes);
    const __m256 second = avx2::load_words(w + at * kTileLanes + 8);
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      const __m256 value = avx2::broadcast(as_float(x[m]));
      sums[m][0] = _mm256_fmadd_ps(value, first, sums[m][0]);
      sums[m][1] = _mm256_fmadd_ps(value, second, sums[m][1]);
    }
    x += t.rows;
  };
  int64_t d = 0;
  for (; d + 4 <= t.steps; d += 4, w += 4 * kTileLanes) {
    if (Ahead) {
      _mm_prefetch(ahead, _MM_HINT_T1);
      _mm_prefetch(ahead + 64, _MM_HINT_T1);
      ahead += 2 * 64;
    }
    step(0);
    step(1);
    step(2);
    step(3);
  }
  for (; d < t.steps; ++d, w += kTileLanes) step(0);
  uint32_t any = 0;
  PVP_FAST_UNROLL
  for (int m = 0; m < M; ++m) {
    PVP_FAST_UNROLL
    for (int n = 0; n < 2; ++n) {
      if (!t.ends) {
        _mm256_storeu_ps(kept + m * kTileLanes + 8 * n, sums[m][n]);
        continue;
      }
      const int at = lane + 8 * n;
      const uint32_t mask = float32::finish<float32>(t, sums[m][n], row + m, at);
      t.masks[row + m] |= mask << at;
      any |= mask << at;
    }
  }
  return any;
}

template <int M>
uint32_t part_rows(const tile_args& t, int row) {
  uint32_t any = 0;
  for (int half = 0; half < 2; ++half) {
    const int quarter = half + (row == 0 ? 0 : 2);
    any |= quarter < t.quarters ? part_block<M, true>(t, row, 16 * half, quarter)
                                : part_block<M, false>(t, row, 16 * half, 0);
  }
  return any;
}

}  // namespace

uint32_t tile_avx2(const tile_args& tile) { return by_rows<float32>(tile); }
uint32_t tile_avx2_bf16(const tile_args& tile) { return by_rows<bfloat16>(tile); }
uint32_t tile_avx2_int8(const tile_args& tile) { return by_rows<int8>(tile); }
uint32_t row_avx2(const tile_args& tile, int panels) { return row_panels<float32, 2>(tile, panels); }

uint32_t part_avx2(const tile_args& tile) {
  static constexpr uint32_t (*kByRows[])(const tile_args&, int) = {
      part_rows<1>, part_rows<2>, part_rows<3>, part_rows<4>, part_rows<5>, part_rows<6>};
  const int first = tile.rows > 6 ? (tile.rows + 1) / 2 : tile.rows;
  const uint32_t any = kByRows[first - 1](tile, 0);
  return first == tile.rows ? any : any | kByRows[tile.rows - first - 1](tile, first);
}

void widen_avx2(const uint32_t* words, int64_t steps, uint32_t* wide) {
  for (int64_t d = 0; d < steps; ++d, words += kTileLanes, wide += 2 * kTileLanes) {
    PVP_FAST_UNROLL
    for (int lane = 0; lane < kTileLanes; lane += avx2::lanes) {
      const bfloat16::pair both = bfloat16::load_columns(words + lane);
      _mm256_storeu_ps(reinterpret_cast<float*>(wide) + lane, both.odd);
      _mm256_storeu_ps(reinterpret_cast<float*>(wide) + kTileLanes + lane, both.even);
    }
  }
}

namespace {

// Eight rows of eight floats from d on as eight columns.
inline void load_transposed(const float* const* rows, int64_t d, __m256 (&columns)[8]) {
  __m256 halves[8];
  PVP_FAST_UNROLL
  for (int i = 0; i < 4; ++i) {
    PVP_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m128 low = _mm_loadu_ps(rows[i] + d + 4 * half);
      const __m128 high = _mm_loadu_ps(rows[i + 4] + d + 4 * half);
      halves[4 * half + i] = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    }
  }
  PVP_FAST_UNROLL
  for (int half = 0; half < 8; half += 4) {
    const __m256 a = _mm256_unpacklo_ps(halves[half], halves[half + 1]);
    const __m256 b = _mm256_unpackhi_ps(halves[half], halves[half + 1]);
    const __m256 c = _mm256_unpacklo_ps(halves[half + 2], halves[half + 3]);
    const __m256 e = _mm256_unpackhi_ps(halves[half + 2], halves[half + 3]);
    columns[half] = _mm256_shuffle_ps(a, c, _MM_SHUFFLE(1, 0, 1, 0));
    columns[half + 1] = _mm256_shuffle_ps(a, c, _MM_SHUFFLE(3, 2, 3, 2));
    columns[half + 2] = _mm256_shuffle_ps(b, e, _MM_SHUFFLE(1, 0, 1, 0));
    columns[half + 3] = _mm256_shuffle_ps(b, e, _MM_SHUFFLE(3, 2, 3, 2));
  }
}

// A chain a lane, G vectors of them, so that their latencies overlap.
template <int G>
inline void rescore_groups(const float* x, const float* const* rows, int64_t width, float* dots) {
  __m256 sums[G];
  PVP_FAST_UNROLL
  for (int g = 0; g < G; ++g) sums[g] = _mm256_setzero_ps();
  int64_t d = 0;
  for (; d + 8 <= width; d += 8) {
    PVP_FAST_UNROLL
    for (int g = 0; g < G; ++g) {
      __m256 columns[8];
      load_transposed(rows + 8 * g, d, columns);
      PVP_FAST_UNROLL
      for (int i = 0; i < 8; ++i) sums[g] = _mm256_fmadd_ps(_mm256_set1_ps(x[d + i]), columns[i], sums[g]);
    }
  }
  for (; d < width; ++d) {
    PVP_FAST_UNROLL
    for (int g = 0; g < G; ++g) {
      float column[8];
      for (int i = 0; i < 8; ++i) column[i] = rows[8 * g + i][d];
      sums[g] = _mm256_fmadd_ps(_mm256_set1_ps(x[d]), _mm256_loadu_ps(column), sums[g]);
    }
  }
  PVP_FAST_UNROLL
  for (int g = 0; g < G; ++g) _mm256_storeu_ps(dots + 8 * g, sums[g]);
}

}  // namespace

void rescore_avx2(const float* x, const float* const* w, int count, int64_t width, float* dots) {
  const float* rows[kRescored];
  float padded[kRescored];
  for (int i = 0; i < kRescored; ++i) rows[i] = w[i < count ? i : 0];
  static_assert(kRescored == 32, "four vectors");
  if (count > 16) {
    rescore_groups<4>(x, rows, width, padded);
  } else if (count > 8) {
    rescore_groups<2>(x, rows, width, padded);
  } else {
    rescore_groups<1>(x, rows, width, padded);
  }
  std::memcpy(dots, padded, static_cast<size_t>(count) * sizeof(float));
}

rounded_row round_avx2(const round_args& args) { return round_row(args); }

}  // namespace pvp_fast
