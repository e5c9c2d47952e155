// The int8 tile for NEON with matrix products: smmla takes 2 rows x 8 bytes by 8 bytes x 2 lanes.
#include "topk/tile_neon.h"

namespace pvp_fast {
namespace {

struct by_matrix {
  // The words of one step and the next of four rows or lanes, as 8 bytes of two and of the other two.
  struct halves {
    int8x16_t part[2];
  };
  static halves join(int8x16_t step, int8x16_t next) {
    const int32x4_t first = vreinterpretq_s32_s8(step), second = vreinterpretq_s32_s8(next);
    return {{vreinterpretq_s8_s32(vzip1q_s32(first, second)), vreinterpretq_s8_s32(vzip2q_s32(first, second))}};
  }

  // Two steps, of which the last may not be there: its words are zero.
  template <class V, int M, int N>
  static void two_steps(const uint32_t* x, const uint32_t* w, bool both, int32x4_t (&sums)[(M + 1) / 2][2 * N]) {
    const int8x16_t none = vdupq_n_s8(0);
    halves columns[N];
    PVP_FAST_UNROLL
    for (int n = 0; n < N; ++n) {
      const uint32_t* at = w + n * V::lanes;
      columns[n] = join(V::load_columns(at), both ? V::load_columns(at + kTileLanes) : none);
    }
    PVP_FAST_UNROLL
    for (int m = 0; m < M; m += 4) {
      const halves rows = join(load<V, M>(x, m), both ? load<V, M>(x + M, m) : none);
      PVP_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (m + 2 * half >= M) continue;
        PVP_FAST_UNROLL
        for (int n = 0; n < 2 * N; ++n) {
          int32x4_t& sum = sums[m / 2 + half][n];
          sum = vmmlaq_s32(sum, rows.part[half], columns[n / 2].part[n % 2]);
        }
      }
    }
  }

  template <class V, int M>
  static int8x16_t load(const uint32_t* x, int m) {
    return V::load_queries(m + 4 <= M ? load_rows<4>(x + m) : load_rows<M % 4>(x + m));
  }

  template <class V, int M, int N>
  static uint32_t block(const tile_args& t, int lane) {
    int32x4_t squares[(M + 1) / 2][2 * N];  // of two rows and two lanes
    PVP_FAST_UNROLL
    for (int m = 0; m < (M + 1) / 2; ++m) {
      PVP_FAST_UNROLL
      for (int n = 0; n < 2 * N; ++n) squares[m][n] = vdupq_n_s32(0);
    }
    const uint32_t* x = t.x;
    const uint32_t* w = t.panel + lane;
    for (int64_t d = 0; d + 2 <= t.steps; d += 2, x += 2 * M, w += 2 * kTileLanes) {
      two_steps<V, M, N>(x, w, true, squares);
    }
    if (t.steps % 2 != 0) two_steps<V, M, N>(x, w, false, squares);
    int32x4_t sums[M][N];
    PVP_FAST_UNROLL
    for (int m = 0; m < M; ++m) {
      PVP_FAST_UNROLL
      for (int n = 0; n < N; ++n) {
        const int64x2_t left = vreinterpretq_s64_s32(squares[m / 2][2 * n]);
        const int64x2_t right = vreinterpretq_s64_s32(squares[m / 2][2 * n + 1]);
        sums[m][n] = vreinterpretq_s32_s64(m % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
      }
    }
    return finish_sums<V>(t, 0, lane, sums);
  }

  template <class V, int M>
  static uint32_t rows(const tile_args& tile) {
    constexpr int N = M <= 2 ? 4 : 2;
    uint32_t any = 0;
    for (int lane = 0; lane < kTileLanes; lane += N * V::lanes) any |= block<V, M, N>(tile, lane);
    return any;
  }
};

}  // namespace

uint32_t tile_neoni8mm(const tile_args& tile) { return by_rows<neon_int8, by_matrix>(tile); }

}  // namespace pvp_fast
