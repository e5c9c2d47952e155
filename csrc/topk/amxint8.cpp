// int8 by AMX: tdpbusd multiplies 16 queries x 64 bytes by 64 bytes x 16 lanes.
//
// A panel is laid out as the right factor must be already: a row of a tile register is one word of 16
// lanes. 32 queries x 32 lanes are four registers of sums. While they are made, the vector units look at
// those of 32 queries before: the finish of one is spread over the steps of the next.
#include <immintrin.h>

#include "topk/tile.h"

namespace pvp_fast {
namespace {

static_assert(kTileLanes == 32 && kGridRows == 32, "two registers by two");
constexpr int kUnit = 16;  // rows, lanes and words of a tile register
constexpr int64_t kUnitWords = kUnit * kUnit;
constexpr int64_t kLaneBytes = 4 * kTileLanes;

// Every register holds 16 rows of 64 bytes. Constant: compilers take the instruction to read 8 bytes of it.
struct alignas(64) tile_layout {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr tile_layout kLayout{};

// Memory that tile loads are to see is written: compilers do not know that they read any.
inline void publish() { asm volatile("" ::: "memory"); }

// The sums of up to 32 queries against a panel, row by row to what reaches its cut.
class finisher {
 public:
  void start(const grid_args& args, int tile, int panel, const uint32_t* stats, const int32_t* sums) {
    row_ = tile * kGridRows;
    last_ = row_ + kGridRows < args.rows ? row_ + kGridRows : args.rows;
    panel_ = panel;
    stats_ = stats;
    bias_ = (panel + 1 == args.panels ? args.last_bias : args.bias + panel * args.bias_step);
    sums_ = sums;
  }

  void finish(const grid_args& args, int rows, grid_hit*& at) {
    grid_hit* to = at;
    if (row_ == last_) return;
    const __m512i minus[] = {words(0, 0), words(0, 1)};
    const __m512 step[] = {floats(1, 0), floats(1, 1)}, offset[] = {floats(4, 0), floats(4, 1)};
    const __m512 bias[] = {_mm512_loadu_ps(bias_), _mm512_loadu_ps(bias_ + kUnit)};
    const int end = row_ + rows < last_ ? row_ + rows : last_;
    for (; row_ < end; ++row_, sums_ += kTileLanes) {
      const __m512 scale = _mm512_set1_ps(args.row_scale[row_]);
      const __m512 shift = _mm512_set1_ps(args.row_shift[row_]);
      const __m512 reach = _mm512_set1_ps(args.reach[row_]);
      uint32_t mask = 0;
      PVP_FAST_UNROLL
      for (int n = 0; n < 2; ++n) {
        const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums_ + n * kUnit), minus[n]);
        const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), step[n]);
        const __m512 part = _mm512_fmadd_ps(scale, dot, _mm512_fmadd_ps(shift, offset[n], bias[n]));
        _mm512_storeu_ps(to->values + n * kUnit, part);
        mask |= static_cast<uint32_t>(_mm512_cmp_ps_mask(part, reach, _CMP_NLT_UQ)) << (n * kUnit);
      }
      to->mask = mask;
      to->row = row_;
      to->panel = panel_;
      to += mask != 0 ? 1 : 0;
    }
    at = to;
  }

 private:
  __m512i words(int stat, int n) const {
    return _mm512_loadu_si512(stats_ + stat * kTileLanes + n * kUnit);
  }
  __m512 floats(int stat, int n) const { return _mm512_castsi512_ps(words(stat, n)); }

  int row_ = 0, last_ = 0, panel_ = 0;
  const uint32_t* stats_ = nullptr;
  const float* bias_ = nullptr;
  const int32_t* sums_ = nullptr;
};

// One register of queries, or two, against the 16 words at w.
template <bool Two>
inline void multiply(const uint32_t* x, int64_t second, const uint32_t* w) {
  _tile_loadd(4, x, 64);
  _tile_loadd(6, w, kLaneBytes);
  _tile_dpbusd(0, 4, 6);
  _tile_loadd(7, w + kUnit, kLaneBytes);
  _tile_dpbusd(1, 4, 7);
  if (Two) {
    _tile_loadd(5, x + second, 64);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
}

class grid {
 public:
  grid(const grid_args& args, grid_hit* hits)
      : args_(args), to_(hits), units_((args.steps + kUnit - 1) / kUnit), whole_(args.steps / kUnit) {}

  int run() {
    const grid_hit* first = to_;
    const int64_t panel_words = args_.panel_words;
    const int tiles = (args_.rows + kGridRows - 1) / kGridRows;
    const int64_t lines = args_.fetch ? panel_words / kLineWords : 0;
    _tile_loadconfig(&kLayout);
    int buffer = 0;
    for (int panel = 0; panel < args_.panels; ++panel) {
      panel_ = args_.panel + panel * panel_words;
      const bool more = args_.fetch && (panel + 1 < args_.panels || args_.more);
      ahead_ = more ? panel_ + panel_words : nullptr;
      fetched_ = lines;
      fetches_ = lines / (tiles * units_) + 1;
      if (whole_ != units_) copy_rest();
      for (int tile = 0; tile < tiles; ++tile, buffer ^= 1) {
        const uint32_t* x = args_.x + tile * 2 * units_ * kUnitWords;
        if (args_.rows - tile * kGridRows > kUnit) {
          multiply_all<true>(x, sums_[buffer]);
        } else {
          multiply_all<false>(x, sums_[buffer]);
        }
        finisher_.finish(args_, kGridRows, to_);  // what few steps have left over
        finisher_.start(args_, tile, panel, panel_ + args_.steps * kTileLanes, sums_[buffer]);
      }
    }
    finisher_.finish(args_, kGridRows, to_);
    _tile_release();
    return static_cast<int>(to_ - first);
  }

 private:
  template <bool Two>
  void multiply_all(const uint32_t* x, int32_t* sums) {
    const int64_t second = units_ * kUnitWords;
    const int share = static_cast<int>((kGridRows + units_ - 1) / units_);
    _tile_zero(0);
    _tile_zero(1);
    if (Two) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t unit = 0; unit < units_; ++unit, x += kUnitWords) {
      multiply<Two>(x, second, unit < whole_ ? panel_ + unit * kUnit * kTileLanes : rest_);
      if (ahead_ != nullptr) fetch_some();
      finisher_.finish(args_, share, to_);
    }
    _tile_stored(0, sums, kLaneBytes);
    _tile_stored(1, sums + kUnit, kLaneBytes);
    if (Two) {
      _tile_stored(2, sums + kUnit * kTileLanes, kLaneBytes);
      _tile_stored(3, sums + kUnit * kTileLanes + kUnit, kLaneBytes);
    }
  }

  void fetch_some() {
    const int64_t count = fetches_ < fetched_ ? fetches_ : fetched_;
    fetched_ -= count;
    for (int64_t i = 0; i < count; ++i, ahead_ += kLineWords) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead_), _MM_HINT_T1);
    }
  }

  // The words past the last whole register of a panel, zeros behind them.
  void copy_rest() {
    const int64_t words = (args_.steps - whole_ * kUnit) * kTileLanes;
    ::memcpy(rest_, panel_ + whole_ * kUnit * kTileLanes, static_cast<size_t>(words) * sizeof *rest_);
    ::memset(rest_ + words, 0, sizeof rest_ - static_cast<size_t>(words) * sizeof *rest_);
    publish();
  }

  const grid_args& args_;
  grid_hit* to_;
  const int64_t units_, whole_;  // of 16 words
  const uint32_t* panel_ = nullptr;
  const uint32_t* ahead_ = nullptr;
  int64_t fetched_ = 0, fetches_ = 0;  // lines left to fetch; how many a unit
  finisher finisher_;
  alignas(64) int32_t sums_[2][kGridRows * kTileLanes];
  alignas(64) uint32_t rest_[kUnit * kTileLanes];
};

}  // namespace

int grid_amxint8(const grid_args& args, grid_hit* hits) {
  grid work(args, hits);
  return work.run();
}

}  // namespace pvp_fast
