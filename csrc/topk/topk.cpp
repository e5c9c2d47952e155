// Batched top-k on the CPU: how rows and categories are divided, and the running top k of a row.
//
// A wave of at most kWaveRows rows is cut into blocks of at most kBlockRows rows (they stay in the
// second-level cache while all panels stream past them once) and the panels into splits. Every
// (block, split) keeps its own top k; a last pass merges a row's splits. The order (value, category)
// is total, so the answer does not depend on how the work was cut.
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "topk/topk.h"
#include "topk/heap.h"
#include "topk/int8.h"
#include "topk/tile.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pvp_fast {
namespace {

static_assert(kTileLanes == kLanes, "one panel layout serves every path");

constexpr int64_t kBlockRows = 240;
constexpr int64_t kFewRows = 32;             // in a block, they hide the reading of the panels
constexpr int64_t kWaveRows = 4080;          // with kWaveEntries: bounds the scratch memory
constexpr int64_t kWaveEntries = 1 << 22;    // heap entries of a wave before splitting
constexpr double kThreadWork = 4e6;          // float32 multiply-adds that repay waking one more thread
constexpr int64_t kMostWaiting = 512;         // of a short list, and the least
constexpr int64_t kLeastWaiting = 128;
constexpr int kFewRescored = 16;  // at a time: two vectors of AVX2
constexpr int64_t kManyRows = 7;  // repay parts
constexpr int64_t kGridLeast = 12;     // rows that repay a grid: 8 do not differ
constexpr int64_t kGridTiles = 8;      // at a time, whose bounds share a cut
constexpr int64_t kGridBlockRows = 512;
constexpr int64_t kPartSteps = 128;  // of a chain: lanes of 16 KiB and a tile's 6 KiB of queries

// Default rounding for the scope, and denormals as the contract has them: the caller may run with
// flush-to-zero, and bfloat16 needs it.
class float_environment {
 public:
  explicit float_environment([[maybe_unused]] scalar type) {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
#if defined(PVP_FAST_X86)
    constexpr unsigned kFlush = 0x8040;  // results and inputs
    if (type == scalar::bfloat16) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | kFlush);
#endif
  }
  ~float_environment() { std::fesetenv(&saved_); }
  float_environment(const float_environment&) = delete;
  float_environment& operator=(const float_environment&) = delete;

 private:
  std::fenv_t saved_;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part i of n nearly equal parts of [0, total).
int64_t part(int64_t total, int64_t n, int64_t i) { return total / n * i + std::min(total % n, i); }

// Position of the lowest set bit of a mask that is not zero.
int lowest_bit(uint32_t mask) {
#if defined(__GNUC__)
  return __builtin_ctz(mask);
#else
  int bit = 0;
  for (; (mask & 1) == 0; mask >>= 1) ++bit;
  return bit;
#endif
}

// By instruction set; empty: nothing better than the entries before.
constexpr tile_kind kFloat32Tiles[kIsas] = {
    {tile_portable},
#if defined(PVP_FAST_X86)
    {tile_avx2, row_avx2, part_avx2}, {}, {tile_avx512, row_avx512}, {}, {}, {},
#elif defined(PVP_FAST_ARM)
    {tile_neon}, {}, {}, {},
#endif
};
constexpr tile_kind kBfloat16Tiles[kIsas] = {
    {tile_portable_bf16},
#if defined(PVP_FAST_X86)
    {tile_avx2_bf16, nullptr, part_avx2, widen_avx2}, {}, {tile_avx512_bf16}, {}, {tile_avx512bf16}, {},
#elif defined(PVP_FAST_ARM)
    {tile_neon_bf16}, {}, {}, {tile_neonbf16},
#endif
};
constexpr tile_kind kInt8Tiles[kIsas] = {
    {tile_portable_int8},
#if defined(PVP_FAST_X86)
    {tile_avx2_int8, nullptr, nullptr, nullptr, 63},
#if defined(PVP_FAST_AVXVNNI)
    {tile_avxvnni},
#else
    {},
#endif
    {}, {tile_avx512vnni}, {},
#if defined(PVP_FAST_AMX)
    {tile_avx512vnni, nullptr, nullptr, nullptr, 127, grid_amxint8},
#else
    {},
#endif
#elif defined(PVP_FAST_ARM)
    {tile_neon_int8}, {tile_neondot}, {tile_neoni8mm}, {},
#endif
};
constexpr rescore_function kRescores[kIsas] = {
    rescore_portable,
#if defined(PVP_FAST_X86)
    rescore_avx2, nullptr, nullptr, nullptr, nullptr, nullptr,
#elif defined(PVP_FAST_ARM)
    rescore_neon, nullptr, nullptr, nullptr,
#endif
};

constexpr round_function kRounds[kIsas] = {
    round_portable,
#if defined(PVP_FAST_X86)
    round_avx2,
#endif
};

isa_entry<tile_kind> best_tile(scalar type, isa most) {
  return best(type == scalar::float32    ? kFloat32Tiles
              : type == scalar::bfloat16 ? kBfloat16Tiles
                                         : kInt8Tiles,
              most);
}

struct chosen_path {
  tile_kind kind;
  rescore_function rescore;
  round_function round;
};

// Rounded to nearest even; a NaN stays one.
uint32_t to_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  if (std::isnan(value)) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Rows [begin, end) of x to [tile][steps][rows of the tile], for float32 and bfloat16; wide: bfloat16
// as widen_function has it, in twice the steps.
void pack_rows(const matrix& x, scalar type, bool wide, int64_t begin, int64_t end, uint32_t* to) {
  const int64_t rows = end - begin;
  const int64_t stride = type == scalar::bfloat16 ? 2 : 1;
  for (int64_t d = 0; d < x.columns; d += stride) {
    const float* from = x.data + begin * x.row_stride + d * x.column_stride;
    for (int64_t r = 0; r < rows; ++r, from += x.row_stride) {
      if (type == scalar::float32) {
        to[r] = as_bits(*from);
        continue;
      }
      const uint32_t odd = d + 1 < x.columns ? to_bfloat16(from[x.column_stride]) << 16 : 0;
      const uint32_t even = to_bfloat16(*from);
      to[r] = wide ? odd : even | odd;
      if (wide) to[rows + r] = even << 16;
    }
    to += wide ? 2 * rows : rows;
  }
}

struct wave_plan {
  int64_t first;      // row of x
  int64_t rows;
  bool by_grid;       // tile_kind::grid
  int64_t unit;       // rows in tiles of multiples of these
  int64_t tiles;      // of nearly equal rows, at most kTileRows, or kGridRows
  int64_t blocks;
  int64_t splits;
  int64_t capacity;   // of a heap
  int threads;
};

wave_plan plan_wave(const topk_query& q, const tile_kind& kind, int64_t first) {
  wave_plan plan{};
  plan.first = first;
  plan.capacity = std::min(q.k, q.categories);
  const int64_t most = std::clamp<int64_t>(kWaveEntries / plan.capacity, kTileRows, kWaveRows);
  plan.rows = std::min(most, q.x.rows - first);
  plan.by_grid = kind.grid != nullptr && plan.rows >= kGridLeast;
  plan.unit = plan.by_grid ? kGridUnit : 1;
  plan.tiles = ceil_div(plan.rows, plan.by_grid ? kGridRows : kTileRows);
  plan.blocks = ceil_div(plan.rows, plan.by_grid ? kGridBlockRows : kBlockRows);
  plan.splits = 1;
  const int64_t steps = std::max<int64_t>(step_count(q.type, q.x.columns), 16);
  const double work = static_cast<double>(plan.rows) * static_cast<double>(q.categories) *
                      static_cast<double>(steps);
  plan.threads = static_cast<int>(std::clamp(work / kThreadWork, 1.0, static_cast<double>(q.threads)));
  if (plan.threads == 1) return plan;
  // Two items a thread balance uneven progress. Blocks first: every split finds its cut anew.
  const int64_t items = 2 * plan.threads;
  plan.blocks = std::max(plan.blocks, std::min(items, plan.rows / kFewRows));
  plan.splits = std::clamp<int64_t>(ceil_div(items, plan.blocks), 1, panel_count(q.categories));
  return plan;
}

// Memory of a known size that is written before it is read: a vector would fill it with zeros.
template <class T>
class room {
 public:
  void resize(size_t size) { memory_.reset(new T[size]); }
  T* data() const { return memory_.get(); }

 private:
  std::unique_ptr<T[]> memory_;
};

class wave {
 public:
  wave(const topk_query& query, const topk_result& result, const chosen_path& path, int64_t first)
      : q_(query),
        out_(result),
        path_(path),
        steps_(step_count(query.type, query.x.columns)),
        panel_words_((steps_ + (query.type == scalar::int8 ? kInt8Stats : 0)) * kLanes),
        plan_(plan_wave(query, path.kind, first)),
        by_parts_(path.kind.part != nullptr && plan_.rows >= kManyRows),
        wide_(by_parts_ && path.kind.widen != nullptr),
        row_steps_(wide_           ? 2 * steps_
                   : plan_.by_grid ? ceil_div(steps_, kGridUnit) * kGridUnit
                                   : steps_) {
    packed_x_.resize(static_cast<size_t>(ceil_div(plan_.rows, plan_.unit) * plan_.unit * row_steps_));
    heaps_.resize(static_cast<size_t>(plan_.rows * plan_.splits * plan_.capacity));
    states_.resize(static_cast<size_t>(plan_.rows * plan_.splits));
    cuts_.assign(states_.size(), q_.threshold);
    shared_cuts_ = std::vector<std::atomic<float>>(static_cast<size_t>(plan_.rows));
    for (std::atomic<float>& cut : shared_cuts_) cut.store(q_.threshold, std::memory_order_relaxed);
    first_nan_.store(plan_.rows);
    if (q_.type == scalar::int8) {
      const size_t rows = static_cast<size_t>(plan_.rows);
      rows_.resize(rows * static_cast<size_t>(q_.x.columns));
      bounds_.resize(rows);
      lists_.resize(states_.size());
      most_waiting_ = std::clamp(4 * plan_.capacity, kLeastWaiting, kMostWaiting);
      waiting_.resize(states_.size() * static_cast<size_t>(most_waiting_));
      tops_.resize(states_.size() * static_cast<size_t>(most_waiting_));
    }
    // The last panel may be part empty: its bias and thresholds are read from padded copies.
    const int64_t tail = (panel_count(q_.categories) - 1) * kLanes;
    std::fill(no_bias_, no_bias_ + kRowPanels * kLanes, 0.0f);
    std::fill(no_threshold_, no_threshold_ + kRowPanels * kLanes, -kInfinity);
    std::copy(no_bias_, no_bias_ + kLanes, tail_bias_);
    std::copy(no_threshold_, no_threshold_ + kLanes, tail_threshold_);
    if (q_.bias) std::copy(q_.bias + tail, q_.bias + q_.categories, tail_bias_);
    if (q_.thresholds) {
      std::copy(q_.thresholds + tail, q_.thresholds + q_.categories, tail_threshold_);
    }
  }

  int64_t rows() const { return plan_.rows; }

  // Returns -1 or the first row of x with a NaN.
  int64_t run() {
    if (plan_.threads == 1) {
      work();  // a team of one would cost a small search a microsecond
    } else {
#if defined(_OPENMP)
#pragma omp parallel num_threads(plan_.threads)
#endif
      work();
    }
    if (out_of_memory_.load()) throw std::bad_alloc();
    const int64_t nan = first_nan_.load();
    return nan == plan_.rows ? -1 : plan_.first + nan;
  }

 private:
  // By each thread of a team.
  void work() {
    const float_environment environment(q_.type);
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int64_t t = 0; t < plan_.tiles; ++t) pack(t);
    const int64_t items = plan_.blocks * plan_.splits;
#if defined(_OPENMP)
#pragma omp for schedule(dynamic)
#endif
    for (int64_t item = 0; item < items; ++item) scan(item % plan_.blocks, item / plan_.blocks);
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 4)
#endif
    for (int64_t row = 0; row < plan_.rows; ++row) guarded([&] { finish(row); });
  }

  // An exception may not leave a parallel region; the only one here is that memory ran out.
  template <class Work>
  void guarded(Work work) {
    try {
      work();
    } catch (const std::bad_alloc&) {
      out_of_memory_.store(true);
    }
  }

  int64_t tile_begin(int64_t t) const {
    return std::min(plan_.rows, plan_.unit * part(ceil_div(plan_.rows, plan_.unit), plan_.tiles, t));
  }
  size_t slot(int64_t split, int64_t row) const {
    return static_cast<size_t>(split * plan_.rows + row);
  }

  // A tile's queries as its kernel reads them.
  void pack(int64_t t) {
    const int64_t begin = tile_begin(t), end = tile_begin(t + 1);
    uint32_t* to = packed_x_.data() + begin * row_steps_;
    if (q_.type == scalar::int8) {
      guarded([&] { round_tile(begin, end, to); });
    } else {
      pack_rows(q_.x, q_.type, wide_, plan_.first + begin, plan_.first + end, to);
    }
  }

  void round_tile(int64_t begin, int64_t end, uint32_t* to) {
    query_rounder round(path_.round, q_.centre, q_.x.columns, q_.scale, path_.kind.query_top);
    const int64_t units = ceil_div(end - begin, kGridUnit) * kGridUnit;
    if (plan_.by_grid) std::fill(to, to + units * row_steps_, 0u);
    for (int64_t row = begin; row < end; ++row) {
      float* copy = rows_.data() + row * q_.x.columns;
      const float* from = q_.x.data + (plan_.first + row) * q_.x.row_stride;
      for (int64_t d = 0; d < q_.x.columns; ++d) copy[d] = from[d * q_.x.column_stride];
      bounds_.set(static_cast<size_t>(row), round(copy));
      const int64_t at = row - begin;
      if (plan_.by_grid) {
        const int64_t unit = at / kGridUnit;
        round.copy(to + unit * kGridUnit * row_steps_ + at % kGridUnit * kGridUnit, kGridUnit,
                   kGridUnit * kGridUnit);
      } else {
        round.copy(to + at, 1, end - begin);
      }
    }
  }

  void scan(int64_t block, int64_t split) {
    const int64_t first_tile = part(plan_.tiles, plan_.blocks, block);
    const int64_t last_tile = part(plan_.tiles, plan_.blocks, block + 1);
    for (int64_t row = tile_begin(first_tile); row < tile_begin(last_tile); ++row) {
      const size_t at = slot(split, row);
      states_[at] = {heaps_.data() + at * static_cast<size_t>(plan_.capacity), 0, plan_.capacity};
      cuts_[at] = shared_cuts_[static_cast<size_t>(row)].load(std::memory_order_relaxed);
      if (q_.type == scalar::int8) {
        const size_t first_waiting = at * static_cast<size_t>(most_waiting_);
        lists_[at] = {tops_.data() + first_waiting, waiting_.data() + first_waiting, 0};
      }
    }
    const int64_t panels = panel_count(q_.categories);
    const int64_t last_panel = part(panels, plan_.splits, split + 1);
    int64_t p = part(panels, plan_.splits, split);
    if (plan_.rows == 1 && path_.kind.row != nullptr) {
      for (int64_t count; (count = std::min<int64_t>({last_panel, panels - 1, p + kRowPanels}) - p) > 0;
           p += count) {
        scan_row(split, p, static_cast<int>(count));
      }
    }
    if (plan_.by_grid) return scan_grid(split, p, last_panel, first_tile, last_tile);
    for (; p < last_panel; ++p) {
      if (by_parts_) {
        scan_parts(split, p, first_tile, last_tile, p + 1 < last_panel);
        continue;
      }
      tile_output output;
      tile_args args = of_panel(p, output);
      panel_errors errors{};
      if (q_.type == scalar::int8) errors = largest_errors(args.panel + steps_ * kLanes);
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t row = tile_begin(t);
        of_tile(split, t, args);
        if (q_.type == scalar::int8) {
          args.row_scale = bounds_.step.data() + row;
          args.row_shift = bounds_.shift.data() + row;
          find_reach(bounds_, row, args.rows, args.cut, errors, output.reach);
        }
        args.ahead = t == first_tile && p + 1 < last_panel ? args.panel + panel_words_ : nullptr;
        std::fill(output.masks, output.masks + args.rows, 0u);
        if ((path_.kind.tile(args) & lanes_of(p)) != 0) take(split, row, p, args);
      }
    }
  }

  struct tile_output {
    float values[kTileRows * kLanes];
    float reach[kTileRows];
    uint32_t masks[kTileRows];
  };

  bool is_last(int64_t p) const { return p + 1 == panel_count(q_.categories); }
  const float* bias_of(int64_t p) const {
    return is_last(p) ? tail_bias_ : q_.bias ? q_.bias + p * kLanes : no_bias_;
  }
  const float* thresholds_of(int64_t p) const {
    return is_last(p) ? tail_threshold_ : q_.thresholds ? q_.thresholds + p * kLanes : no_threshold_;
  }

  // The arguments that the tiles of a panel share.
  tile_args of_panel(int64_t p, tile_output& output) const {
    tile_args args{};
    args.panel = reinterpret_cast<const uint32_t*>(q_.packed) + p * panel_words_;
    args.steps = steps_;
    args.scale = q_.scale;
    args.bias = bias_of(p);
    args.thresholds = thresholds_of(p);
    args.values = output.values;
    args.reach = output.reach;
    args.masks = output.masks;
    return args;
  }

  void of_tile(int64_t split, int64_t t, tile_args& args) const {
    const int64_t row = tile_begin(t);
    args.rows = static_cast<int>(tile_begin(t + 1) - row);
    args.x = packed_x_.data() + row * row_steps_;
    args.cut = cuts_.data() + slot(split, row);
  }

  // The lanes of a panel that are categories.
  uint32_t lanes_of(int64_t p) const {
    const int64_t lanes = std::min(kLanes, q_.categories - p * kLanes);
    return lanes == kLanes ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1;
  }

  // What a tile found, its first row being `row`.
  void take(int64_t split, int64_t row, int64_t p, const tile_args& args) {
    for (int r = 0; r < args.rows; ++r) {
      const uint32_t mask = args.masks[r] & lanes_of(p);
      if (q_.type == scalar::int8) {
        wait(split, row + r, p * kLanes, args.values + r * kLanes, args.panel + args.steps * kLanes,
             args.thresholds, mask);
      } else {
        collect(split, row + r, p * kLanes, args.values + r * kLanes, mask);
      }
    }
  }

  // All rows of a block against a panel, part by part of its chains.
  void scan_parts(int64_t split, int64_t p, int64_t first_tile, int64_t last_tile, bool more) {
    tile_output output;
    float sums[kBlockRows * kLanes];
    uint32_t wide[kPartSteps * kLanes];
    tile_args args = of_panel(p, output);
    const uint32_t* words = args.panel;
    for (int64_t step = 0; step < row_steps_; step += kPartSteps) {
      args.steps = std::min(kPartSteps, row_steps_ - step);
      args.begins = step == 0;
      args.ends = step + args.steps == row_steps_;
      args.panel = wide_ ? wide : words;
      if (wide_) path_.kind.widen(words, args.steps / 2, wide);
      words += (wide_ ? args.steps / 2 : args.steps) * kLanes;
      // The tiles of a part share the fetching of the next one, where that has as many words.
      const bool fetch = args.ends ? more : step + 2 * args.steps <= row_steps_;
      const int64_t quarters = wide_ ? 2 : 4;  // two bfloat16 are a word
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t row = tile_begin(t);
        of_tile(split, t, args);
        args.x += step * args.rows;
        const int64_t share = ceil_div(quarters, last_tile - first_tile), quarter = share * (t - first_tile);
        args.quarters = fetch ? static_cast<int>(std::clamp<int64_t>(quarters - quarter, 0, share)) : 0;
        args.ahead = words + (args.quarters > 0 ? quarter * args.steps * kLanes / 4 : 0);
        args.sums = sums + (row - tile_begin(first_tile)) * kLanes;
        if (args.ends) std::fill(output.masks, output.masks + args.rows, 0u);
        if ((path_.kind.part(args) & lanes_of(p)) != 0) take(split, row, p, args);
      }
    }
  }

  // All rows of a block against panels of a split, several tiles at a time.
  void scan_grid(int64_t split, int64_t p, int64_t last_panel, int64_t first_tile, int64_t last_tile) {
    constexpr int64_t kMostRows = kGridTiles * kGridRows;
    grid_hit hits[kMostRows + 1];
    float reach[kMostRows];
    const int64_t panels_abreast = std::max<int64_t>(1, kGridTiles / (last_tile - first_tile));
    grid_args args{};
    args.steps = steps_;
    args.panel_words = panel_words_;
    args.bias_step = q_.bias ? kLanes : 0;
    args.reach = reach;
    for (; p < last_panel; p += args.panels) {
      args.panels = static_cast<int>(std::min(panels_abreast, last_panel - p));
      args.panel = reinterpret_cast<const uint32_t*>(q_.packed) + p * panel_words_;
      args.bias = q_.bias ? q_.bias + p * kLanes : no_bias_;
      args.last_bias = bias_of(p + args.panels - 1);
      args.more = p + args.panels < last_panel;
      panel_errors errors{};
      for (int i = 0; i < args.panels; ++i) {
        errors.grow(largest_errors(args.panel + i * panel_words_ + steps_ * kLanes));
      }
      for (int64_t t = first_tile; t < last_tile; t += kGridTiles) {
        const int64_t row = tile_begin(t);
        args.rows = static_cast<int>(tile_begin(std::min(t + kGridTiles, last_tile)) - row);
        args.x = packed_x_.data() + row * row_steps_;
        args.row_scale = bounds_.step.data() + row;
        args.row_shift = bounds_.shift.data() + row;
        args.fetch = t == first_tile;
        find_reach(bounds_, row, args.rows, cuts_.data() + slot(split, row), errors, reach);
        const int count = path_.kind.grid(args, hits);
        for (int i = 0; i < count; ++i) {
          const grid_hit& hit = hits[i];
          const int64_t panel = p + hit.panel;
          const uint32_t* stats = args.panel + hit.panel * panel_words_ + steps_ * kLanes;
          wait(split, row + hit.row, panel * kLanes, hit.values, stats, thresholds_of(panel),
               hit.mask & lanes_of(panel));
        }
      }
    }
  }

  // The only row against whole panels.
  void scan_row(int64_t split, int64_t p, int count) {
    static_assert(kRowPanels <= kTileRows, "the output holds them");
    tile_output output;
    tile_args args = of_panel(p, output);
    of_tile(split, 0, args);
    if ((path_.kind.row(args, count)) == 0) return;
    for (int i = 0; i < count; ++i) {
      collect(split, 0, (p + i) * kLanes, output.values + i * kLanes, output.masks[i]);
    }
  }

  // Adds the categories of a mask to a short list, unless their own bounds rule them out.
  void wait(int64_t split, int64_t row, int64_t category, const float* parts, const uint32_t* stats,
            const float* thresholds, uint32_t mask) {
    const size_t at = slot(split, row);
    const top_finder find_top(bounds_, static_cast<size_t>(row));
    if (most_waiting_ - lists_[at].count < kLanes) shorten(at, row);
    short_list list = lists_[at];
    const float cut = cuts_[at];
    for (; mask != 0; mask &= mask - 1) {
      const int lane = lowest_bit(mask);
      const float top = find_top(stats + lane, parts[lane]);
      list.bounds[list.count] = top;
      list.categories[list.count] = category + lane;
      list.count += !(top < cut || top < thresholds[lane]);
    }
    lists_[at].count = list.count;
  }

  // Makes room for a panel in a short list: exact values of its best give a cut for the bounds of the others.
  void shorten(size_t at, int64_t row) {
    short_list& list = lists_[at];
    row_state& best = states_[at];
    do {
      rescore_some(row, list, best);
      if (best.full()) raise_cut(at, row, best.heap[0].value, best.heap[0].value);
      list.drop_below(cuts_[at]);
    } while (2 * list.count > most_waiting_ || (!best.full() && list.count > 0));
  }

  // Merges the float32 values of those with the largest bounds into the best; they leave the list.
  void rescore_some(int64_t row, short_list& list, row_state& best) {
    const int wanted = static_cast<int>(
        std::clamp<int64_t>(best.capacity - best.count, kFewRescored / 2, kRescored));
    int64_t categories[kRescored + 1];
    const int most = wanted > kFewRescored ? kRescored : kFewRescored;
    const int taken = list.take(wanted, most, categories);
    const float* vectors[kRescored];
    for (int i = 0; i < taken; ++i) vectors[i] = q_.vectors + categories[i] * q_.x.columns;
    float dots[kRescored];
    path_.rescore(rows_.data() + row * q_.x.columns, vectors, taken, q_.x.columns, dots);
    for (int i = 0; i < taken; ++i) {
      const int64_t category = categories[i];
      const float value = std::fma(q_.scale, dots[i], q_.bias ? q_.bias[category] : 0.0f);
      if (std::isnan(value)) {
        report_nan(row);
      } else if (value >= q_.threshold && !(q_.thresholds && value < q_.thresholds[category])) {
        best.merge({value, category});
      }
    }
  }

  void collect(int64_t split, int64_t row, int64_t category, const float* values, uint32_t mask) {
    const size_t at = slot(split, row);
    for (; mask != 0; mask &= mask - 1) {
      const int lane = lowest_bit(mask);
      if (std::isnan(values[lane])) {
        report_nan(row);
        return;
      }
      if (states_[at].push({values[lane], category + lane})) {
        const float worst = states_[at].heap[0].value;
        raise_cut(at, row, worst, std::nextafter(worst, kInfinity));
      }
    }
  }

  // k values of the row reach `worst`, so a value below cannot enter in any split; nor can one below
  // `own` in this split. The splits tell each other the former: a lost update costs nothing but time.
  void raise_cut(size_t at, int64_t row, float worst, float own) {
    std::atomic<float>& shared = shared_cuts_[static_cast<size_t>(row)];
    const float seen = shared.load(std::memory_order_relaxed);
    if (worst > seen) shared.store(worst, std::memory_order_relaxed);
    cuts_[at] = std::max(cuts_[at], std::max(own, seen));
  }

  void report_nan(int64_t row) {
    int64_t seen = first_nan_.load();
    while (row < seen && !first_nan_.compare_exchange_weak(seen, row)) {
    }
  }

  // Merges the splits of a row into split 0 and writes the row's result.
  void finish(int64_t row) {
    row_state& best = states_[slot(0, row)];
    for (int64_t split = 1; split < plan_.splits; ++split) {
      const row_state& other = states_[slot(split, row)];
      for (int64_t i = 0; i < other.count; ++i) best.merge(other.heap[i]);
    }
    if (q_.type == scalar::int8) finish_short_lists(row, best);
    std::sort(best.heap, best.heap + best.count, better);
    const int64_t at = plan_.first + row;
    float* scores = out_.scores + at * q_.k;
    int64_t* indices = out_.indices + at * q_.k;
    for (int64_t i = 0; i < best.count; ++i) {
      scores[i] = best.heap[i].value;
      indices[i] = best.heap[i].category;
    }
    std::fill(scores + best.count, scores + q_.k, -kInfinity);
    std::fill(indices + best.count, indices + q_.k, int64_t{-1});
    out_.counts[at] = best.count;
  }

  // The cut of all splits together is higher than that of each.
  void finish_short_lists(int64_t row, row_state& best) {
    short_list all = lists_[slot(0, row)];
    std::vector<float> tops;
    std::vector<int64_t> categories;
    if (plan_.splits > 1) {
      for (int64_t split = 0; split < plan_.splits; ++split) {
        const short_list& list = lists_[slot(split, row)];
        tops.insert(tops.end(), list.bounds, list.bounds + list.count);
        categories.insert(categories.end(), list.categories, list.categories + list.count);
      }
      all = {tops.data(), categories.data(), static_cast<int64_t>(tops.size())};
    }
    all.drop_below(shared_cuts_[static_cast<size_t>(row)].load(std::memory_order_relaxed));
    for (;;) {
      if (best.full()) all.drop_below(best.heap[0].value);
      if (all.count == 0) return;
      rescore_some(row, all, best);
    }
  }

  const topk_query& q_;
  const topk_result& out_;
  const chosen_path path_;
  const int64_t steps_;
  const int64_t panel_words_;
  const wave_plan plan_;
  const bool by_parts_;      // tile_kind::part
  const bool wide_;          // and widened
  const int64_t row_steps_;  // of a query
  room<uint32_t> packed_x_;  // tiles of [steps][rows]
  room<entry> heaps_;       // [splits][rows][capacity]
  std::vector<row_state> states_;  // [splits][rows]
  std::vector<float> cuts_;        // [splits][rows]: values below are not wanted
  std::vector<std::atomic<float>> shared_cuts_;  // [rows]: nor are those, by all splits
  std::atomic<int64_t> first_nan_{0};
  std::atomic<bool> out_of_memory_{false};
  // int8 alone:
  room<float> rows_;  // the queries, [rows][width]
  row_bounds bounds_;
  std::vector<short_list> lists_;   // [splits][rows]
  room<float> tops_;                // [splits][rows][most_waiting]
  room<int64_t> waiting_;           // [splits][rows][most_waiting]
  int64_t most_waiting_ = 0;
  float no_bias_[kRowPanels * kLanes];
  float no_threshold_[kRowPanels * kLanes];
  float tail_bias_[kLanes];
  float tail_threshold_[kLanes];
};

}  // namespace

isa topk_isa(scalar type, isa most) { return best_tile(type, most).set; }

void pack_cpu(const matrix& w, float* packed) {
  for (int64_t p = 0; p < panel_count(w.rows); ++p) {
    float* panel = packed + p * w.columns * kLanes;
    const int64_t lanes = std::min(kLanes, w.rows - p * kLanes);
    for (int64_t d = 0; d < w.columns; ++d) {
      const float* from = w.data + p * kLanes * w.row_stride + d * w.column_stride;
      float* to = panel + d * kLanes;
      for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = from[lane * w.row_stride];
      std::fill(to + lanes, to + kLanes, 0.0f);
    }
  }
}

void encode_int8_cpu(const matrix& w, const float* centre, uint32_t* words) {
  const int64_t steps = step_count(scalar::int8, w.columns);
  const size_t padded = static_cast<size_t>(4 * steps);
  std::vector<double> middle(padded), wide(padded);
  std::copy(centre, centre + w.columns, middle.begin());
  for (int64_t row = 0; row < w.rows; ++row, words += steps + kInt8Stats) {
    const float* from = w.data + row * w.row_stride;
    for (int64_t d = 0; d < w.columns; ++d) wide[static_cast<size_t>(d)] = from[d * w.column_stride];
    const rounded_category made = round_category(wide.data(), middle.data(), 4 * steps, words);
    const float floats[] = {made.step, made.residual, made.length, made.offset};
    std::memcpy(words + steps, &made.bias, sizeof made.bias);
    std::memcpy(words + steps + 1, floats, sizeof floats);
  }
}

int64_t topk_cpu(const topk_query& query, const topk_result& result, isa most) {
  const chosen_path path{best_tile(query.type, most).use, best(kRescores, most).use,
                         best(kRounds, most).use};
  for (int64_t first = 0; first < query.x.rows;) {
    wave next(query, result, path, first);
    const int64_t nan = next.run();
    if (nan >= 0) return nan;
    first += next.rows();
  }
  return -1;
}

}  // namespace pvp_fast
