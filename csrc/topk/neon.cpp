// The tiles for NEON as every 64-bit Arm processor has it.
#include "topk/tile_neon.h"

namespace pvp_fast {
namespace {

struct float32 : neon, exact_finish {
  using sum = float32x4_t;
  using columns = float32x4_t;
  using queries = float32x4_t;
  static sum zero() { return vdupq_n_f32(0.0f); }
  static columns load_columns(const uint32_t* from) { return load_words(from); }
  static queries load_queries(uint32x4_t words) { return vreinterpretq_f32_u32(words); }
  template <int lane>
  static sum step(queries x, columns w, sum s) {
    return vfmaq_laneq_f32(s, w, x, lane);
  }
};

// As vdpbf16ps: the odd member of the pair first (see topk/avx512.cpp).
struct bfloat16 : neon, exact_finish {
  static constexpr int column_registers = 2;
  struct pair {
    float32x4_t odd, even;
  };
  using sum = float32x4_t;
  using columns = pair;
  using queries = pair;
  static sum zero() { return vdupq_n_f32(0.0f); }
  static pair load_queries(uint32x4_t words) {
    return {vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000u))),
            vreinterpretq_f32_u32(vshlq_n_u32(words, 16))};
  }
  static columns load_columns(const uint32_t* from) { return load_queries(vld1q_u32(from)); }
  template <int lane>
  static sum step(const queries& x, const columns& w, sum s) {
    return vfmaq_laneq_f32(vfmaq_laneq_f32(s, w.odd, x.odd, lane), w.even, x.even, lane);
  }
};

// Bytes lie in [-127, 127], so that two products fit an int16.
struct int8 : neon_int8 {
  using columns = int8x16_t;
  using queries = int8x16_t;
  template <int lane>
  static sum step(queries x, columns w, sum s) {
    const int8x16_t value = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane));
    const int16x8_t low = vmull_s8(vget_low_s8(value), vget_low_s8(w));
    return vpadalq_s16(s, vpaddq_s16(low, vmull_high_s8(value, w)));
  }
};

}  // namespace

uint32_t tile_neon(const tile_args& tile) { return by_rows<float32, by_lane>(tile); }
uint32_t tile_neon_bf16(const tile_args& tile) { return flushing(by_rows<bfloat16, by_lane>, tile); }
uint32_t tile_neon_int8(const tile_args& tile) { return by_rows<int8, by_lane>(tile); }

// One chain a category, eight in flight.
void rescore_neon(const float* x, const float* const* w, int count, int64_t width, float* dots) {
  constexpr int kChains = 8;
  for (int first = 0; first < count; first += kChains) {
    float sums[kChains] = {};
    const float* rows[kChains];
    PVP_FAST_UNROLL
    for (int i = 0; i < kChains; ++i) rows[i] = w[first + i < count ? first + i : first];
    for (int64_t d = 0; d < width; ++d) {
      PVP_FAST_UNROLL
      for (int i = 0; i < kChains; ++i) sums[i] = __builtin_fmaf(x[d], rows[i][d], sums[i]);
    }
    for (int i = 0; i < kChains && first + i < count; ++i) dots[first + i] = sums[i];
  }
}

}  // namespace pvp_fast
