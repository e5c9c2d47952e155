// The tile for any processor. Fast where the compiler has a fused multiply-add instruction for its
// baseline target (aarch64, POWER, RISC-V); exact but slow where fmaf is a library call.
#include <cmath>

#include "topk_tile.h"

namespace pvp_fast {
namespace {

struct portable {
  static constexpr int lanes = 4;
  struct type {
    float lane[lanes];
  };
  static type zero() { return {}; }
  static type load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static type broadcast(float value) { return {{value, value, value, value}}; }
  static type fma(const type& a, const type& b, const type& c) {
    type sum;
    for (int i = 0; i < lanes; ++i) sum.lane[i] = ::fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return sum;
  }
  static void store(float* to, const type& value) {
    for (int i = 0; i < lanes; ++i) to[i] = value.lane[i];
  }
  static uint32_t not_below(const type& a, const type& b) {
    uint32_t mask = 0;
    for (int i = 0; i < lanes; ++i) mask |= uint32_t{!(a.lane[i] < b.lane[i])} << i;
    return mask;
  }
};

}  // namespace

uint32_t tile_portable(const tile_args& tile) {
  uint32_t any = 0;
  int row = 0;
  for (; row + 4 <= tile.rows; row += 4) any |= tile_rows<portable, 4, 4>(tile, row);
  for (; row < tile.rows; ++row) any |= tile_rows<portable, 1, 8>(tile, row);
  return any;
}

}  // namespace pvp_fast
