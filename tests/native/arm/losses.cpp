// The losses as built for NEON against float64: sums and gradients, dense labels and lists.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "loss/loss.h"

using namespace pvp_fast;

namespace {

using real = long double;

real sigmoid(real s) { return 1 / (1 + std::exp(-s)); }
real softplus(real s) { return std::max(s, real{0}) + std::log1p(std::exp(-std::fabs(s))); }

// One entry's loss, the focal factors taken at `focus`, which is s unless they are detached.
real entry_loss(const loss_settings& set, real s, real focus, bool present) {
  const real p = sigmoid(focus);
  switch (set.kind) {
    case loss_kind::asl: {
      const auto& a = set.asl;
      if (present) {
        return -std::log(std::max(sigmoid(s), real{a.eps})) * std::pow(sigmoid(-focus), real{a.gamma_pos});
      }
      const real q = std::min(sigmoid(-s) + real{a.clip}, real{1});
      return -std::log(std::max(q, real{a.eps})) * std::pow(std::max(p - real{a.clip}, real{0}), real{a.gamma_neg});
    }
    case loss_kind::focal: {
      const real alpha = set.focal.alpha, gamma = set.focal.gamma;
      const real balance = alpha < 0 ? real{1} : present ? alpha : 1 - alpha;
      return balance * (present ? softplus(-s) * std::pow(sigmoid(-focus), gamma)
                                : softplus(s) * std::pow(p, gamma));
    }
    default: return softplus(present ? -s : s);
  }
}

enum class mark : int8_t { absent = -1, unknown = 0, present = 1 };

struct truth {
  std::vector<real> gradient;  // of the scores
  real loss = 0;
};

truth of_row(const loss_settings& set, const std::vector<real>& scores, const std::vector<mark>& marks,
             const std::vector<float>& weight) {
  truth out;
  out.gradient.assign(scores.size(), 0);
  const auto weighed = [&](size_t c) { return weight.empty() ? real{1} : real{weight[c]}; };
  if (set.kind == loss_kind::ranking) {
    for (size_t p = 0; p < scores.size(); ++p) {
      for (size_t n = 0; n < scores.size(); ++n) {
        if (marks[p] != mark::present || marks[n] != mark::absent) continue;
        const real over = real{set.ranking.margin} - scores[p] + scores[n];
        if (over <= 0) continue;
        out.loss += weighed(n) * over;
        out.gradient[p] -= weighed(n);
        out.gradient[n] += weighed(n);
      }
    }
    return out;
  }
  const bool detached = set.kind == loss_kind::asl && set.asl.detach_focal_weight;
  for (size_t c = 0; c < scores.size(); ++c) {
    if (marks[c] == mark::unknown) continue;
    const real s = scores[c], step = 1e-6L;
    const bool present = marks[c] == mark::present;
    const auto at = [&](real moved) { return entry_loss(set, moved, detached ? s : moved, present); };
    out.loss += weighed(c) * at(s);
    out.gradient[c] = weighed(c) * (at(s + step) - at(s - step)) / (2 * step);
  }
  return out;
}

enum class given { bytes, partial, lists };

void near(real value, real expected, real size, const char* what, const loss_settings& set) {
  REQUIRE(std::fabs(value - expected) <= 4e-6L * (size + std::fabs(expected)), "%s of kind %d: %Lg, truth %Lg", what,
          static_cast<int>(set.kind), value, expected);
}

void check(const loss_settings& set, int64_t rows, int64_t columns, given labels, bool plain) {
  random_numbers random(static_cast<uint32_t>(columns * 13 + static_cast<int>(labels)));
  const size_t n = static_cast<size_t>(columns), all = static_cast<size_t>(rows) * n;
  walled<float> products(all);
  walled<int8_t> bytes(all);
  std::vector<float> before, weight, x_inverse, w_inverse;
  std::vector<mark> marks;
  std::vector<int64_t> offsets{0}, indices;
  for (float& p : products) before.push_back(p = random.value());
  for (size_t i = 0; i < all; ++i) {
    const uint32_t drawn = random.below(9);
    const bool unknown = labels == given::partial && drawn == 1;
    marks.push_back(drawn == 0 ? mark::present : unknown ? mark::unknown : mark::absent);
    bytes[i] = labels == given::partial ? static_cast<int8_t>(marks[i]) : drawn == 0;
    if (drawn == 0) indices.push_back(static_cast<int64_t>(i % n));
    if (i % n == n - 1) offsets.push_back(static_cast<int64_t>(indices.size()));
  }
  for (size_t c = 0; c < n && !plain; ++c) weight.push_back(0.5f + 0.4f * random.value());
  for (size_t c = 0; c < n && !plain; ++c) w_inverse.push_back(1.0f + 0.5f * random.value());
  for (int64_t b = 0; b < rows && !plain; ++b) x_inverse.push_back(1.0f + 0.5f * random.value());
  const auto pointer = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  loss_tile tile{products.data(), rows, columns, pointer(x_inverse), pointer(w_inverse), 6.0f, -1.5f,
                 nullptr, 0, labels == given::partial, nullptr, nullptr, 0, pointer(weight)};
  if (labels == given::lists) {
    tile.offsets = offsets.data();
    tile.indices = indices.data();
  } else {
    tile.labels = bytes.data();
    tile.label_stride = columns;
  }
  std::vector<loss_sums> sums(static_cast<size_t>(rows));
  best(kLosses, most_isa()).use->loss(tile, set, 2, sums.data());
  for (size_t b = 0; b < sums.size(); ++b) {
    std::vector<real> cosines, scores;
    for (size_t c = 0; c < n; ++c) {
      cosines.push_back(real{before[b * n + c]} * (plain ? 1 : real{x_inverse[b]} * w_inverse[c]));
      scores.push_back(6 * cosines[c] - 1.5L);
    }
    const auto begin = marks.begin() + static_cast<int64_t>(b * n);
    const truth expected = of_row(set, scores, {begin, begin + columns}, weight);
    real dbias = 0, dscale = 0, size = 0;
    for (size_t c = 0; c < n; ++c) {
      const real g = expected.gradient[c];
      dbias += g, dscale += g * cosines[c], size += std::fabs(g);
      near(products[b * n + c], g * 6 * (plain ? 1 : real{x_inverse[b]} * w_inverse[c]), 6, "gradient", set);
    }
    near(sums[b].loss, expected.loss, 1 + size, "loss", set);
    if (set.kind != loss_kind::ranking) near(sums[b].dbias, dbias, 1 + size, "dbias", set);
    near(sums[b].dscale, dscale, 1 + size, "dscale", set);
  }
}

void check_projection(int64_t rows, int64_t width) {
  random_numbers random(static_cast<uint32_t>(width));
  const size_t all = static_cast<size_t>(rows * width);
  walled<float> g(all), t(all);
  std::vector<float> before, inverse_norm;
  for (float& value : g) before.push_back(value = random.value());
  for (float& value : t) value = random.value();
  for (int64_t b = 0; b < rows; ++b) {
    real square = 0;
    for (int64_t d = 0; d < width; ++d) square += real{t[static_cast<size_t>(b * width + d)]} * t[static_cast<size_t>(b * width + d)];
    inverse_norm.push_back(static_cast<float>(1 / std::sqrt(square)));
  }
  best(kLosses, most_isa())
      .use->project({g.data(), false, t.data(), false, inverse_norm.data(), rows, width, 0.5f}, 2);
  for (int64_t b = 0; b < rows; ++b) {
    const size_t first = static_cast<size_t>(b * width), last = first + static_cast<size_t>(width);
    real along = 0;
    for (size_t i = first; i < last; ++i) along += real{before[i]} * t[i];
    along *= real{inverse_norm[static_cast<size_t>(b)]} * inverse_norm[static_cast<size_t>(b)];
    for (size_t i = first; i < last; ++i) {
      REQUIRE(std::fabs(g[i] - 0.5L * (before[i] - along * t[i])) < 2e-6L, "projection, width %ld", static_cast<long>(width));
    }
  }
}

void check_norms(int64_t rows, int64_t width) {
  random_numbers random(static_cast<uint32_t>(width));
  walled<float> t(static_cast<size_t>(rows * width)), norms(static_cast<size_t>(rows)),
      inverse(static_cast<size_t>(rows));
  for (float& value : t) value = random.value();
  for (int64_t d = 0; d < width; ++d) t[static_cast<size_t>(d)] = 0;  // a row that is shorter than any
  const loss_functions& by = *best(kLosses, most_isa()).use;
  by.norms({t.data(), false, rows, width, 0.5f, false, norms.data(), inverse.data()}, 2);
  for (int64_t b = 0; b < rows; ++b) {
    real square = 0;
    for (int64_t d = 0; d < width; ++d) square += real{t[static_cast<size_t>(b * width + d)]} * t[static_cast<size_t>(b * width + d)];
    const real norm = std::sqrt(square), least = 0.5L, longer = norm < least ? least : norm;
    const size_t at = static_cast<size_t>(b);
    REQUIRE(std::fabs(norms[at] - norm) <= 1e-6L * norm, "norm, width %ld", static_cast<long>(width));
    REQUIRE(std::fabs(inverse[at] * longer - 1) < 1e-6L, "inverse, width %ld", static_cast<long>(width));
  }
}

}  // namespace

int check_losses() {
  const loss_settings settings[] = {
      {loss_kind::asl, {1.0f, 4.0f, 0.05f, 1e-8f, false}, {}, {}},
      {loss_kind::asl, {0.0f, 2.5f, 0.0f, 1e-8f, true}, {}, {}},
      {loss_kind::bce, {}, {}, {}},
      {loss_kind::focal, {}, {0.25f, 2.0f}, {}},
      {loss_kind::focal, {}, {-1.0f, 1.5f}, {}},
      {loss_kind::ranking, {}, {}, {1.0f}},
  };
  int losses = 0;
  for (const loss_settings& set : settings) {
    for (const int64_t columns : {1, 7, 20, 81, 259}) {
      for (const given labels : {given::bytes, given::partial, given::lists}) {
        for (const bool plain : {true, false}) {
          check(set, 3, columns, labels, plain);
          ++losses;
        }
      }
    }
  }
  for (const int64_t width : {1, 5, 64, 77}) check_projection(3, width);
  for (const int64_t width : {1, 5, 64, 77}) check_norms(3, width);
  return losses;
}
