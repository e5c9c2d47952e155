// Whole searches on every instruction set here: float64 truth for the portable path, its bits for the rest.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "topk/topk.h"

using namespace pvp_fast;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct found {
  std::vector<float> scores;
  std::vector<int64_t> indices, counts;
  int64_t nan;
  bool operator==(const found& other) const {
    return scores == other.scores && indices == other.indices && counts == other.counts && nan == other.nan;
  }
};

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

uint32_t half_bits(float value) {  // to nearest even
  const uint32_t bits = bits_of(value);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

float half(float value) {
  const uint32_t bits = half_bits(value) << 16;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Class vectors as panels (pvp_fast/topk/panels.py), int8 without a centre.
std::vector<uint32_t> pack(const std::vector<float>& w, int64_t categories, int64_t width, scalar type) {
  const int64_t steps = step_count(type, width), words = steps + (type == scalar::int8 ? kInt8Stats : 0);
  std::vector<uint32_t> panels(static_cast<size_t>(panel_count(categories) * words * kLanes));
  const auto at = [&](int64_t c, int64_t word) -> uint32_t& {
    return panels[static_cast<size_t>((c / kLanes * words + word) * kLanes + c % kLanes)];
  };
  for (int64_t c = 0; c < categories; ++c) {
    const float* row = w.data() + c * width;
    double largest = 0, length = 0, residual = 0;
    for (int64_t d = 0; d < width; ++d) {
      largest = std::max(largest, std::fabs(static_cast<double>(row[d])));
      length += static_cast<double>(row[d]) * row[d];
    }
    const float step = static_cast<float>(largest / 127);
    int32_t sum = 0;
    for (int64_t d = 0; d < width; ++d) {
      if (type == scalar::float32) {
        at(c, d) = bits_of(row[d]);
      } else if (type == scalar::bfloat16) {
        at(c, d / 2) |= half_bits(row[d]) << 16 * (d % 2);
      } else {
        const double rounded = step > 0 ? std::clamp(std::nearbyint(row[d] / static_cast<double>(step)), -127.0, 127.0) : 0;
        const double left = row[d] - rounded * step;
        residual += left * left;
        sum += static_cast<int32_t>(rounded);
        at(c, d / 4) |= (static_cast<uint32_t>(static_cast<int32_t>(rounded)) & 0xff) << 8 * (d % 4);
      }
    }
    if (type != scalar::int8) continue;
    const auto up = [](double value) { return bits_of(static_cast<float>(std::max(value * (1 + 0x1p-20), 1e-37))); };
    at(c, steps) = static_cast<uint32_t>(128 * sum);
    at(c, steps + 1) = bits_of(step);
    at(c, steps + 2) = up(std::sqrt(residual));
    at(c, steps + 3) = up(std::sqrt(length));
    at(c, steps + 4) = 0;
  }
  return panels;
}

struct problem {
  int64_t rows, categories, width, k;
  std::vector<float> x, w, bias, thresholds;
  float scale = 0.7f;
  int threads = 1;
};

found search(const problem& p, const std::vector<uint32_t>& panels, scalar type, isa most) {
  found out;
  out.scores.assign(static_cast<size_t>(p.rows * p.k), 0.0f);
  out.indices.assign(out.scores.size(), 0);
  out.counts.assign(static_cast<size_t>(p.rows), 0);
  const auto given = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  const topk_query query{{p.x.data(), p.rows, p.width, p.width, 1}, reinterpret_cast<const float*>(panels.data()),
                         p.categories, p.k, -kInfinity, given(p.thresholds), given(p.bias), p.scale, p.threads, type,
                         type == scalar::int8 ? p.w.data() : nullptr, nullptr};
  out.nan = topk_cpu(query, {out.scores.data(), out.indices.data(), out.counts.data()}, most);
  return out;
}

// The portable answer against all scores in float64.
void check_truth(const problem& p, const found& got, scalar type) {
  for (int64_t b = 0; b < p.rows; ++b) {
    std::vector<double> scores;
    for (int64_t c = 0; c < p.categories; ++c) {
      double dot = 0;
      for (int64_t d = 0; d < p.width; ++d) {
        const float x = p.x[static_cast<size_t>(b * p.width + d)], w = p.w[static_cast<size_t>(c * p.width + d)];
        dot += type == scalar::bfloat16 ? static_cast<double>(half(x)) * half(w) : static_cast<double>(x) * w;
      }
      const double value = static_cast<double>(p.scale) * dot + p.bias[static_cast<size_t>(c)];
      if (value >= p.thresholds[static_cast<size_t>(c)]) scores.push_back(value);
    }
    std::sort(scores.begin(), scores.end(), std::greater<double>());
    const int64_t kept = std::min<int64_t>(p.k, static_cast<int64_t>(scores.size()));
    REQUIRE(got.counts[static_cast<size_t>(b)] == kept, "row %ld", static_cast<long>(b));
    for (int64_t i = 0; i < kept; ++i) {
      const double value = got.scores[static_cast<size_t>(b * p.k + i)], truth = scores[static_cast<size_t>(i)];
      REQUIRE(std::fabs(value - truth) < 1e-6 * static_cast<double>(p.width + 1), "%g, truth %g", value, truth);
    }
  }
}

constexpr isa kSets[] = {isa::neon, isa::neondot, isa::neoni8mm, isa::neonbf16};

int check(int64_t rows, int64_t categories, int64_t width, int threads) {
  random_numbers random(static_cast<uint32_t>(rows * 7919 + categories * 31 + width));
  problem p{rows, categories, width, std::min<int64_t>(9, categories), {}, {}, {}, {}, 0.7f, threads};
  for (int64_t i = 0; i < rows * width; ++i) p.x.push_back(random.value());
  for (int64_t i = 0; i < categories * width; ++i) p.w.push_back(random.value());
  for (int64_t c = categories / 2; c < categories; c += 7) {  // duplicates: the tie rule is at work
    std::copy(p.w.begin(), p.w.begin() + width, p.w.begin() + c * width);
  }
  for (int64_t c = 0; c < categories; ++c) {
    p.bias.push_back(c % 7 == (categories / 2) % 7 ? 0.0f : 0.1f * random.value());
    p.thresholds.push_back(c % 5 == 0 ? -2.0f : -kInfinity);
  }
  int searches = 0;
  found exact;
  for (const scalar type : {scalar::float32, scalar::bfloat16, scalar::int8}) {
    const std::vector<uint32_t> panels = pack(p.w, categories, width, type);
    const found expected = search(p, panels, type, isa::portable);
    check_truth(p, expected, type);
    if (type == scalar::float32) exact = expected;
    REQUIRE(type != scalar::int8 || expected == exact, "int8 is not float32's answer");
    for (const isa set : kSets) {
      if (!runs_here(set)) continue;
      REQUIRE(search(p, panels, type, set) == expected, "%s, %ld x %ld x %ld, type %d", isa_name(set),
              static_cast<long>(rows), static_cast<long>(categories), static_cast<long>(width),
              static_cast<int>(type));
      ++searches;
    }
  }
  return searches;
}

// 2^-126 - 2^-152 rounds to 2^-126, which is not denormal; NEON's own flush-to-zero takes it for one.
// And 2^-126 - 2^-130 is.
int check_flushing() {
  const float near_one[] = {std::ldexp(1.0f, -76), std::ldexp(1.0f, -63)};
  problem p{1, 3, 2, 3, {near_one[0], near_one[1]}, {}, {}, {}, 1.0f, 1};
  p.w = {-near_one[0], near_one[1], std::ldexp(-1.0f, -54), near_one[1], 0.0f, near_one[1]};
  const std::vector<uint32_t> panels = pack(p.w, 3, 2, scalar::bfloat16);
  int searches = 0;
  for (const isa set : {isa::portable, isa::neon, isa::neonbf16}) {
    if (!runs_here(set)) continue;
    const found got = search(p, panels, scalar::bfloat16, set);
    const float smallest = 0x1p-126f;
    REQUIRE(got.scores == (std::vector<float>{smallest, smallest, 0.0f}), "%s: %a %a %a", isa_name(set),
            static_cast<double>(got.scores[0]), static_cast<double>(got.scores[1]), static_cast<double>(got.scores[2]));
    REQUIRE(got.indices == (std::vector<int64_t>{0, 2, 1}), "%s", isa_name(set));
    ++searches;
  }
  return searches;
}

// The caller's rounding and flushing neither change the answer nor are changed; a NaN is named.
int check_environment() {
  problem p{5, 40, 21, 4, {}, {}, {}, {}, 1.0f, 1};
  random_numbers random(3);
  for (int64_t i = 0; i < p.rows * p.width; ++i) p.x.push_back(random.value());
  for (int64_t i = 0; i < p.categories * p.width; ++i) p.w.push_back(1e-38f * random.value());
  int searches = 0;
  for (const scalar type : {scalar::float32, scalar::bfloat16}) {
    const std::vector<uint32_t> panels = pack(p.w, p.categories, p.width, type);
    for (const isa set : kSets) {
      if (!runs_here(set)) continue;
      const found expected = search(p, panels, type, set);
      uint64_t before, mine, after;
      asm volatile("mrs %0, fpcr" : "=r"(before));
      asm volatile("msr fpcr, %0" : : "r"(before | uint64_t{3} << 22 | uint64_t{1} << 24) : "memory");
      asm volatile("mrs %0, fpcr" : "=r"(mine) : : "memory");
      const found got = search(p, panels, type, set);
      asm volatile("mrs %0, fpcr\n\tmsr fpcr, %1" : "=&r"(after) : "r"(before) : "memory");
      REQUIRE(got == expected, "%s follows the caller's rounding", isa_name(set));
      REQUIRE(mine == after && mine != before, "%s leaves another environment", isa_name(set));
      problem with_nan = p;
      with_nan.x[static_cast<size_t>(3 * p.width + 2)] = std::numeric_limits<float>::quiet_NaN();
      REQUIRE(search(with_nan, panels, type, set).nan == 3, "%s", isa_name(set));
      searches += 3;
    }
  }
  return searches;
}

}  // namespace

int check_topk() {
  int searches = check_flushing() + check_environment();
  for (int64_t rows = 1; rows <= 14; ++rows) searches += check(rows, 165, 37, 1);
  for (const int64_t width : {1, 2, 3, 4, 5, 7, 64}) searches += check(3, 33, width, 1);
  for (const int64_t categories : {1, 31, 32}) searches += check(2, categories, 24, 1);
  return searches + check(250, 90, 50, 1) + check(64, 2100, 32, 3);
}
