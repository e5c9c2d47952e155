// A query in 8 bits, and the bounds of what that leaves out (topk/int8.h).
//
// Included by one source file per instruction set, like topk/tile.h: plain loops, which the compiler
// makes vectors of. The sums of two sets may differ in their last bits, and so may the bounds, but each
// holds for the bytes beside it.
#pragma once

#include <math.h>
#include <string.h>

#include "topk/tile.h"

namespace pvp_fast {

// The factors of a query in 8 bits, times the scale: with those of a category (topk/topk.h) its value is
// step s <p, q> + shift <m, w - m> + offset + bias, give or take length |r| + error |w - m| + slack.
struct rounded_row {
  float step = 0.0f;
  float offset = 0.0f;
  float shift = 0.0f;
  float length = HUGE_VALF;
  float error = HUGE_VALF;
  float slack = 0.0f;
};

struct round_args {
  const float* from;       // [width]
  int64_t width;
  int64_t padded;          // width, up to whole words
  const double* centre;    // [padded], or null for zero
  double square;           // of its length
  float scale;
  int top;                 // the largest byte
  double* row;             // [padded], scratch
  uint8_t* bytes;          // out: [padded], each + (top + 1)
};

using round_function = rounded_row (*)(const round_args&);

rounded_row round_portable(const round_args& args);
#if defined(PVP_FAST_X86)
rounded_row round_avx2(const round_args& args);
#endif

namespace {

// Queries outside are not quantised: every category is rescored.
constexpr double kSmallest8 = 1e-15, kLargest8 = 1e15;
constexpr double kSmallestScaled = 1e-18, kLargestScaled = 1e18;  // times the scale
constexpr double kSmallestProduct = 1e-30;  // far from denormals, whose relative error is large
constexpr double kLargestSquare = 1e300;
constexpr double kRound = 0x1.8p52;  // added and subtracted: to the nearest integer, ties to even
constexpr double kUp = 1.0 + 0x1p-20;  // lengths are rounded upwards
constexpr double kSmallestBound = 1e-37;  // far from denormals, which round too coarsely for a bound

// Four numbers side by side.
#if defined(__GNUC__)
typedef double quad __attribute__((vector_size(32)));
#else
struct quad {
  double at[4];
  double operator[](int i) const { return at[i]; }
  friend quad operator+(const quad& a, const quad& b) {
    return {a.at[0] + b.at[0], a.at[1] + b.at[1], a.at[2] + b.at[2], a.at[3] + b.at[3]};
  }
  friend quad operator-(const quad& a, const quad& b) {
    return {a.at[0] - b.at[0], a.at[1] - b.at[1], a.at[2] - b.at[2], a.at[3] - b.at[3]};
  }
  friend quad operator*(const quad& a, const quad& b) {
    return {a.at[0] * b.at[0], a.at[1] * b.at[1], a.at[2] * b.at[2], a.at[3] * b.at[3]};
  }
};
#endif

inline void load(const double* from, quad& to) { memcpy(&to, from, sizeof to); }
inline void store(double* to, const quad& from) { memcpy(to, &from, sizeof from); }
inline double total(const quad& sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

inline double largest(const double* values, int64_t count) {
  double tops[4] = {};
  for (int64_t d = 0; d < count; d += 4) {
    for (int j = 0; j < 4; ++j) {
      const double size = ::fabs(values[d + j]);
      tops[j] = tops[j] < size ? size : tops[j];
    }
  }
  const double a = tops[0] < tops[1] ? tops[1] : tops[0], b = tops[2] < tops[3] ? tops[3] : tops[2];
  return a < b ? b : a;
}

inline rounded_row round_row(const round_args& args) {
  const int64_t padded = args.padded;
  double* const row = args.row;
  const double* const centre = args.centre;
  for (int64_t d = 0; d < args.width; ++d) row[d] = args.from[d];
  for (int64_t d = args.width; d < padded; ++d) row[d] = 0.0;
  quad squares = {}, alongs = {};
  for (int64_t d = 0; d < padded; d += 4) {
    quad value, middle;
    load(row + d, value);
    squares = squares + value * value;
    if (centre == nullptr) continue;
    load(centre + d, middle);
    alongs = alongs + value * middle;
  }
  const double square = total(squares), along = total(alongs);
  double top = largest(row, padded);
  const double magnitude = ::fabs(static_cast<double>(args.scale));
  const double scaled = magnitude * top;
  const bool usable = square <= kLargestSquare &&  // no NaN either
                      (top == 0.0 || (top >= kSmallest8 && top <= kLargest8)) &&
                      (scaled == 0.0 || (scaled >= kSmallestScaled && scaled <= kLargestScaled));
  if (!usable) {
    for (int64_t d = 0; d < padded; ++d) args.bytes[d] = static_cast<uint8_t>(args.top + 1);
    return {};
  }
  double multiple = centre != nullptr ? along / args.square : 0.0;
  if (!(magnitude * ::fabs(multiple) >= kSmallestProduct && ::fabs(multiple) <= kLargestSquare)) {
    multiple = 0.0;
  }
  if (multiple != 0.0) {
    for (int64_t d = 0; d < padded; ++d) row[d] -= multiple * centre[d];
    top = largest(row, padded);
  }
  double step = static_cast<double>(static_cast<float>(top / args.top));
  if (magnitude * step < kSmallestProduct || step < kSmallestProduct) step = 0.0;
  const double inverse = step > 0.0 ? 1.0 / step : 0.0;
  const quad inverses = {inverse, inverse, inverse, inverse}, steps = {step, step, step, step};
  const quad rounds = {kRound, kRound, kRound, kRound};
  quad kept = {}, lost = {};
  for (int64_t d = 0; d < padded; d += 4) {
    quad value;
    load(row + d, value);
    const quad p = (value * inverses + rounds) - rounds;
    const quad left = value - steps * p;
    kept = kept + p * p;
    lost = lost + left * left;
    store(row + d, p);
  }
  for (int64_t d = 0; d < padded; ++d) {
    args.bytes[d] = static_cast<uint8_t>(static_cast<int>(row[d]) + args.top + 1);
  }
  const double rounding = static_cast<double>(args.width + 16) * 0x1p-23 * ::sqrt(square);
  rounded_row result;
  result.step = static_cast<float>(args.scale * step);
  result.offset = static_cast<float>(args.scale * along);
  result.shift = static_cast<float>(args.scale * multiple);
  result.length = static_cast<float>(kUp * magnitude * step * ::sqrt(total(kept)));
  result.error = static_cast<float>(kUp * magnitude * (::sqrt(total(lost)) + rounding));
  // The constant covers what underflows.
  result.slack = static_cast<float>(kUp * magnitude * rounding * ::sqrt(args.square) +
                                    1e-37 * (1.0 + magnitude));
  return result;
}

// The same of a class vector, in the order of its stats (kInt8Stats in topk/topk.h).
struct rounded_category {
  int32_t bias;
  float step, residual, length, offset;
};

// wide: [padded], the class vector, zeros up to whole words; its distance from the centre afterwards.
inline rounded_category round_category(double* wide, const double* centre, int64_t padded, uint32_t* words) {
  const double size = largest(wide, padded);
  const bool usable = size == 0.0 || (size >= kSmallest8 && size <= kLargest8);
  for (int64_t d = 0; d < padded; ++d) wide[d] = usable ? wide[d] - centre[d] : 0.0;
  double step = static_cast<double>(static_cast<float>(largest(wide, padded) / 127));
  if (step < kSmallest8 / 127) step = 0.0;
  const double inverse = step > 0.0 ? 1.0 / step : 0.0;
  const quad inverses = {inverse, inverse, inverse, inverse}, steps = {step, step, step, step};
  const quad rounds = {kRound, kRound, kRound, kRound};
  quad sums = {}, lost = {}, lengths = {}, offsets = {};
  for (int64_t d = 0; d < padded; d += 4) {
    quad value, middle;
    load(wide + d, value);
    load(centre + d, middle);
    const quad q = (value * inverses + rounds) - rounds;
    const quad left = value - steps * q;
    sums = sums + q;
    lost = lost + left * left;
    lengths = lengths + value * value;
    offsets = offsets + value * middle;
    int8_t bytes[4];
    for (int j = 0; j < 4; ++j) bytes[j] = static_cast<int8_t>(static_cast<int>(q[j]));
    memcpy(words + d / 4, bytes, sizeof bytes);
  }
  const auto bound = [usable](double square) {
    const double upwards = kUp * ::sqrt(square);
    return !usable ? HUGE_VALF : static_cast<float>(upwards < kSmallestBound ? kSmallestBound : upwards);
  };
  return {static_cast<int32_t>(128.0 * total(sums)), static_cast<float>(step), bound(total(lost)),
          bound(total(lengths)), static_cast<float>(total(offsets))};
}

}  // namespace
}  // namespace pvp_fast
