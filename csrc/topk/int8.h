// The int8 search before its exact end: queries in 8 bits, and the short list of a row.
//
// With the centre m of the class vectors (any vector is right, their mean is best) and any number a,
//
//     <x, w> = <x, m> + a <m, w - m> + <x - a m, w - m>
//
// and only the last product is rounded: x - a m = t p + u, w - m = s q + r. The embeddings of one
// encoder share most of their length and their few huge components, so what is left is short and
// even, and its bytes say more. For each category then
//
//     |<x - a m, w - m> - t s <p, q>| <= |t p| |r| + |u| |w - m|
//
// and float32 rounding adds at most (width + 16) 2^-23 |x| (|w - m| + |m|), both ways together.
#pragma once

#include <cstring>
#include <vector>

#include "topk/topk.h"
#include "topk/heap.h"
#include "topk/round.h"

namespace pvp_fast {
namespace {

// Those of topk/round.h for the rows of a wave.
struct row_bounds {
  std::vector<float> step, offset, shift, length, error, slack;

  void resize(size_t rows) {
    for (std::vector<float>* part : {&step, &offset, &shift, &length, &error, &slack}) part->resize(rows);
  }
  void set(size_t row, const rounded_row& from) {
    step[row] = from.step;
    offset[row] = from.offset;
    shift[row] = from.shift;
    length[row] = from.length;
    error[row] = from.error;
    slack[row] = from.slack;
  }
};

// Rounds queries one by one: what they share, and room for one of them.
class query_rounder {
 public:
  // top: the largest byte; each is written as byte + (top + 1).
  query_rounder(round_function function, const float* centre, int64_t width, float scale, int top)
      : function_(function) {
    const size_t padded = static_cast<size_t>(4 * step_count(scalar::int8, width));
    row_.resize(padded);
    bytes_.resize(padded);
    if (centre) {
      centre_.assign(padded, 0.0);
      std::copy(centre, centre + width, centre_.begin());
      for (const double value : centre_) args_.square += value * value;
    }
    args_.width = width;
    args_.padded = static_cast<int64_t>(padded);
    args_.centre = args_.square > 0.0 ? centre_.data() : nullptr;
    args_.scale = scale;
    args_.top = top;
    args_.row = row_.data();
    args_.bytes = bytes_.data();
  }

  rounded_row operator()(const float* row) {
    args_.from = row;
    return function_(args_);
  }
  // The words of the row before, four values each: to[run * stride], as many at a time as `run` has.
  void copy(uint32_t* to, int64_t run, int64_t stride) const {
    for (int64_t d = 0; d < args_.padded; d += 4 * run, to += stride) {
      std::memcpy(to, args_.bytes + d, static_cast<size_t>(std::min(4 * run, args_.padded - d)));
    }
  }

 private:
  round_function function_;
  round_args args_{};
  std::vector<double> row_, centre_;  // padded with zeros to whole words
  std::vector<uint8_t> bytes_;
};

// The largest |r| and |w - m| in one panel.
struct panel_errors {
  float residual = 0.0f;
  float length = 0.0f;

  void grow(const panel_errors& other) {
    residual = std::max(residual, other.residual);
    length = std::max(length, other.length);
  }
};

panel_errors largest_errors(const uint32_t* stats) {
  const auto largest = [](const uint32_t* from) {
    float tops[4] = {};
    for (int64_t lane = 0; lane < kLanes; lane += 4) {
      for (int64_t j = 0; j < 4; ++j) {
        const float value = as_float(from[lane + j]);
        tops[j] = tops[j] < value ? value : tops[j];
      }
    }
    return std::max(std::max(tops[0], tops[1]), std::max(tops[2], tops[3]));
  };
  return {largest(stats + 2 * kLanes), largest(stats + 3 * kLanes)};
}

// What a value without its error and offset must at least be for its upper bound to reach the cut. A
// NaN, from an infinite error, lets every value pass to its own bound.
void find_reach(const row_bounds& bounds, int64_t first, int rows, const float* cuts,
                const panel_errors& most, float* reach) {
  const float* offset = bounds.offset.data() + first;
  const float* length = bounds.length.data() + first;
  const float* error = bounds.error.data() + first;
  const float* slack = bounds.slack.data() + first;
  for (int r = 0; r < rows; ++r) {
    const float above = offset[r] + slack[r] + error[r] * most.length + length[r] * most.residual;
    reach[r] = cuts[r] - above - 0x1p-19f * (std::fabs(cuts[r]) + std::fabs(above));
  }
}

// What the float32 value of a category is not above, from what the tile stored.
class top_finder {
 public:
  top_finder(const row_bounds& bounds, size_t row)
      : offset_(bounds.offset[row]),
        length_(bounds.length[row]),
        error_(bounds.error[row]),
        slack_(bounds.slack[row]) {}

  float operator()(const uint32_t* stats, float part) const {
    const float error = length_ * as_float(stats[2 * kLanes]) + error_ * as_float(stats[3 * kLanes]) + slack_;
    const float value = part + offset_;
    // An infinite part, from the bias of a category switched off or always on, is exact.
    const float size = std::fabs(part);
    const float rounding = size > kLargest ? 0.0f : 0x1p-18f * (size + std::fabs(value) + error);
    const float top = value + error + rounding;
    return top == top ? top : kInfinity;
  }

 private:
  static constexpr float kLargest = std::numeric_limits<float>::max();
  float offset_, length_, error_, slack_;
};

// The categories of one row and split that may be among its k best, while they are only bounded: the
// float32 value is not above the bound. Loops without branches, for nobody could foresee them.
struct short_list {
  float* bounds;
  int64_t* categories;
  int64_t count;

  void add(float bound, int64_t category) {
    bounds[count] = bound;
    categories[count++] = category;
  }

  void drop_below(float cut) {
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float bound = bounds[i];
      bounds[left] = bound;
      categories[left] = categories[i];
      left += !(bound < cut);
    }
    count = left;
  }

  // Moves some of large bounds to `taken`, which has a place more: `least` to `most` where a few
  // halvings find such a bound, else fewer, but one at least. Returns how many.
  int take(int least, int most, int64_t* taken) {
    const float pivot = count <= most ? -kInfinity : find_pivot(least, most);
    int64_t left = 0;
    int at = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float bound = bounds[i];
      const bool goes = bound >= pivot && at < most;
      const int64_t category = categories[i];
      taken[at] = category;
      bounds[left] = bound;
      categories[left] = category;
      at += goes;
      left += !goes;
    }
    count = left;
    return at;
  }

 private:
  // Side by side, which the compiler makes vectors of.
  static constexpr int kAbreast = 8;

  int count_from(float low) const {
    int found[kAbreast] = {};
    const int64_t whole = count - count % kAbreast;
    for (int64_t i = 0; i < whole; i += kAbreast) {
      for (int j = 0; j < kAbreast; ++j) found[j] += bounds[i + j] >= low ? 1 : 0;
    }
    int sum = 0;
    for (int j = 0; j < kAbreast; ++j) sum += found[j];
    for (int64_t i = whole; i < count; ++i) sum += bounds[i] >= low ? 1 : 0;
    return sum;
  }

  float find_pivot(int least, int most) const {
    float lows[kAbreast], highs[kAbreast];
    std::copy(bounds, bounds + kAbreast, lows);
    std::copy(bounds, bounds + kAbreast, highs);
    for (int64_t i = 0; i + kAbreast <= count; i += kAbreast) {  // a few may be left out
      for (int j = 0; j < kAbreast; ++j) {
        const float bound = bounds[i + j];
        lows[j] = bound < lows[j] ? bound : lows[j];
        highs[j] = highs[j] < bound ? bound : highs[j];
      }
    }
    float low = *std::min_element(lows, lows + kAbreast);
    float high = *std::max_element(highs, highs + kAbreast);
    for (int halvings = 0; halvings < 10; ++halvings) {
      const float middle = 0.5f * low + 0.5f * high;
      const int found = count_from(middle);
      if (found >= least && found <= most) return middle;
      if (found == 0) break;
      (found > most ? low : high) = middle;
    }
    return high;
  }
};

}  // namespace
}  // namespace pvp_fast
