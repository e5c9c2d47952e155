// The bfloat16 tile for NEON with bfloat16: bfmlalt and bfmlalb widen and multiply-add in one, each
// rounded once. bfdot and bfmmla would take more products at a time, but round sums to odd and
// products too, so that they cannot give the bits of topk/topk.h.
#include "topk/tile_neon.h"

namespace pvp_fast {
namespace {

struct bfloat16 : neon, exact_finish {
  using sum = float32x4_t;
  using columns = bfloat16x8_t;
  using queries = bfloat16x8_t;
  static sum zero() { return vdupq_n_f32(0.0f); }
  static columns load_columns(const uint32_t* from) { return vreinterpretq_bf16_u32(vld1q_u32(from)); }
  static queries load_queries(uint32x4_t words) { return vreinterpretq_bf16_u32(words); }
  template <int lane>
  static sum step(queries x, columns w, sum s) {
    return vbfmlalbq_laneq_f32(vbfmlaltq_laneq_f32(s, w, x, 2 * lane + 1), w, x, 2 * lane);
  }
};

}  // namespace

uint32_t tile_neonbf16(const tile_args& tile) { return flushing(by_rows<bfloat16, by_lane>, tile); }

}  // namespace pvp_fast
