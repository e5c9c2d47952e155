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
#include <functional>
#include <vector>

#include "topk/topk.h"
#include "topk/heap.h"
#include "topk/tile.h"

namespace pvp_fast {
namespace {

// The factors of a query in 8 bits, times the scale: with those of a category (topk/topk.h) its value is
// step s <p, q> + shift <m, w - m> + offset + bias, give or take length |r| + error |w - m| + slack.
struct rounded_row {
  float step = 0.0f;
  float offset = 0.0f;
  float shift = 0.0f;
  float length = kInfinity;
  float error = kInfinity;
  float slack = 0.0f;
};

// The same for the rows of a wave.
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

// Queries outside are not quantised: every category is rescored.
constexpr double kSmallest8 = 1e-15, kLargest8 = 1e15;
constexpr double kSmallestScaled = 1e-18, kLargestScaled = 1e18;  // times the scale
constexpr double kSmallestProduct = 1e-30;  // far from denormals, whose relative error is large

class query_rounder {
 public:
  // top: the largest byte.
  query_rounder(const float* centre, int64_t width, float scale, int top)
      : width_(width), scale_(scale), largest_byte_(top), words_(step_count(scalar::int8, width)) {
    const size_t padded = static_cast<size_t>(4 * words_);
    row_.assign(padded, 0.0);
    centre_.assign(padded, 0.0);
    bytes_.assign(padded, 0);
    if (centre) std::copy(centre, centre + width, centre_.begin());
    for (const double value : centre_) square_ += value * value;
  }

  // to[i * stride]: four values of the row, each + (top + 1).
  rounded_row operator()(const float* row, uint32_t* to, int64_t stride) {
    std::copy(row, row + width_, row_.begin());
    const double largest = top();
    const double square = sum([](double value, double) { return value * value; });
    const double along = sum([](double value, double middle) { return value * middle; });
    const double magnitude = std::fabs(static_cast<double>(scale_));
    const double scaled = magnitude * largest;
    const bool usable = std::isfinite(square) &&
                        (largest == 0.0 || (largest >= kSmallest8 && largest <= kLargest8)) &&
                        (scaled == 0.0 || (scaled >= kSmallestScaled && scaled <= kLargestScaled));
    if (!usable) {
      const uint32_t zeros = 0x01010101u * static_cast<uint32_t>(largest_byte_ + 1);
      for (int64_t i = 0; i < words_; ++i) to[i * stride] = zeros;
      return {};
    }
    double multiple = square_ > 0.0 ? along / square_ : 0.0;
    if (!(magnitude * std::fabs(multiple) >= kSmallestProduct && std::isfinite(multiple))) multiple = 0.0;
    for (size_t d = 0; d < row_.size(); ++d) row_[d] -= multiple * centre_[d];
    double step = static_cast<double>(static_cast<float>(top() / largest_byte_));
    if (magnitude * step < kSmallestProduct || step < kSmallestProduct) step = 0.0;
    const double inverse = step > 0.0 ? 1.0 / step : 0.0;
    constexpr double kRound = 0x1.8p52;  // added and subtracted: to the nearest integer, ties to even
    const auto rounded = [inverse](double value) { return (value * inverse + kRound) - kRound; };
    for (size_t d = 0; d < row_.size(); ++d) {
      bytes_[d] = static_cast<uint8_t>(static_cast<int>(rounded(row_[d])) + largest_byte_ + 1);
    }
    for (int64_t i = 0; i < words_; ++i) std::memcpy(to + i * stride, bytes_.data() + 4 * i, 4);
    const double kept = step * step * sum([rounded](double value, double) {
                          const double p = rounded(value);
                          return p * p;
                        });
    const double lost = sum([rounded, step](double value, double) {
      const double left = value - step * rounded(value);
      return left * left;
    });
    constexpr double kUp = 1.0 + 0x1p-20;
    const double rounding = static_cast<double>(width_ + 16) * 0x1p-23 * std::sqrt(square);
    rounded_row result;
    result.step = static_cast<float>(scale_ * step);
    result.offset = static_cast<float>(scale_ * along);
    result.shift = static_cast<float>(scale_ * multiple);
    result.length = static_cast<float>(kUp * magnitude * std::sqrt(kept));
    result.error = static_cast<float>(kUp * magnitude * (std::sqrt(lost) + rounding));
    // The constant covers what underflows.
    result.slack = static_cast<float>(kUp * magnitude * rounding * std::sqrt(square_) +
                                      1e-37 * (1.0 + magnitude));
    return result;
  }

 private:
  // Four sums side by side, which the compiler makes vectors of.
  template <class Term>
  double sum(Term term) const {
    double sums[4] = {};
    for (size_t d = 0; d < row_.size(); d += 4) {
      for (size_t j = 0; j < 4; ++j) sums[j] += term(row_[d + j], centre_[d + j]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  double top() const {
    double tops[4] = {};
    for (size_t d = 0; d < row_.size(); d += 4) {
      for (size_t j = 0; j < 4; ++j) {
        const double size = std::fabs(row_[d + j]);
        tops[j] = tops[j] < size ? size : tops[j];
      }
    }
    return std::max(std::max(tops[0], tops[1]), std::max(tops[2], tops[3]));
  }

  int64_t width_;
  float scale_;
  int largest_byte_;
  int64_t words_;
  std::vector<double> row_, centre_;  // padded with zeros to whole words
  std::vector<uint8_t> bytes_;
  double square_ = 0.0;
};

// The largest |r| and |w - m| in one panel.
struct panel_errors {
  float residual = 0.0f;
  float length = 0.0f;
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

// What the float32 value of a category is not above and not below, from what the tile stored.
struct interval {
  float top;
  float low;
};

interval find_interval(const row_bounds& bounds, size_t row, const uint32_t* stats, float part) {
  const double error = static_cast<double>(bounds.length[row]) * as_float(stats[2 * kLanes]) +
                       static_cast<double>(bounds.error[row]) * as_float(stats[3 * kLanes]) +
                       static_cast<double>(bounds.slack[row]);
  const double value = static_cast<double>(part) + static_cast<double>(bounds.offset[row]);
  // An infinite part, from the bias of a category switched off or always on, is exact.
  const double rounding = std::isinf(part) ? 0.0 : 0x1p-19 * (std::fabs(static_cast<double>(part)) +
                                                              std::fabs(value) + error);
  const double top = value + error + rounding;
  return {std::isnan(top) ? kInfinity : static_cast<float>(top),
          static_cast<float>(value - error - rounding)};
}

struct candidate {
  float bound;  // the float32 value is not above it
  int64_t category;
};

struct by_bound {  // the heap's front has the largest
  bool operator()(const candidate& a, const candidate& b) const { return a.bound < b.bound; }
};

// The categories of one row and split that may be among its k best, while they are only bounded.
// k categories are at least as good as the k-th largest lower bound: the cut for upper bounds.
struct short_list {
  float* lows;  // heap, the smallest at the front
  int64_t low_count;
  int64_t capacity;
  candidate* waiting;
  int64_t count;

  // True when k lower bounds are known and the smallest of them is another one.
  bool add_low(float low) {
    if (low_count == capacity) {
      if (!(low > lows[0])) return false;
      std::pop_heap(lows, lows + capacity, std::greater<float>());
      --low_count;
    }
    lows[low_count++] = low;
    std::push_heap(lows, lows + low_count, std::greater<float>());
    return low_count == capacity;
  }

  void drop_below(float cut) {
    count = std::remove_if(waiting, waiting + count, [cut](const candidate& c) { return c.bound < cut; }) -
            waiting;
  }
};

}  // namespace
}  // namespace pvp_fast
