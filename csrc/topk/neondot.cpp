// The int8 tile for NEON with dot products: sdot takes four products a lane.
#include "topk/tile_neon.h"

namespace pvp_fast {
namespace {

struct int8 : neon_int8 {
  using columns = int8x16_t;
  using queries = int8x16_t;
  template <int lane>
  static sum step(queries x, columns w, sum s) {
    return vdotq_laneq_s32(s, w, x, lane);
  }
};

}  // namespace

uint32_t tile_neondot(const tile_args& tile) { return by_rows<int8, by_lane>(tile); }

}  // namespace pvp_fast
