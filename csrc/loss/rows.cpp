// Rows of a tile of products to their loss and its gradient, in plain loops that the compiler turns into vectors.
//
// Built once an instruction set, which PVP_FAST_SET names, each with its own compiler flags (see
// vector.h).
#include "loss/loss.h"

#include "vector.h"

#if !defined(PVP_FAST_SET)
#define PVP_FAST_SET portable
#endif

namespace pvp_fast {
namespace {

constexpr int kBlock = 256;  // entries at a time: the scratch of a block stays in the first cache

// sigmoid(s) and sigmoid(-s), neither by subtraction from 1.
struct sigmoids {
  float of, of_minus, decay;  // decay: e^-|s|
};

inline sigmoids sigmoid(float s) {
  const float e = exp_negative(s < 0 ? s : -s);
  const float near = 1.0f / (1.0f + e), far = e * near;
  return {s < 0 ? far : near, s < 0 ? near : far, e};
}

// ln(1 + e^s), e being e^-|s|. The quotient mends what rounding 1 + e lost.
inline float softplus(float s, float e) {
  const float u = 1.0f + e, lost = u - 1.0f;
  const float tail = lost == 0.0f ? e : log_positive(u) * (e / lost);
  return max_of(s, 0.0f) + tail;
}

// out = base^exponent for bases in [0, 1]; 0^0 = 1, and NaN stays NaN.
inline void power(const float* base, float exponent, float* out, int n) {
  const int whole = static_cast<int>(exponent);
  if (exponent >= 0.0f && exponent <= 8.0f && static_cast<float>(whole) == exponent) {
    for (int i = 0; i < n; ++i) out[i] = 1.0f;
    for (int k = 0; k < whole; ++k) {
      for (int i = 0; i < n; ++i) out[i] *= base[i];
    }
    return;
  }
  for (int i = 0; i < n; ++i) {
    const float safe = max_of(base[i], 1.2e-38f);
    out[i] = base[i] > 0.0f ? exp_negative(min_of(exponent * log_positive(safe), 0.0f)) : 0.0f * base[i];
  }
}

// -ln(max(q, eps)) p^gamma with q = min(sigmoid(-s) + clip, 1), p = max(sigmoid(s) - clip, 0).
void absent_asl(const asl_settings& set, float* s, float* loss, int n) {
  float p[kBlock], q[kBlock], slope[kBlock], focus[kBlock], lower[kBlock];
  for (int i = 0; i < n; ++i) {
    const sigmoids at = sigmoid(s[i]);
    const float wide = at.of_minus + set.clip;
    p[i] = max_of(at.of - set.clip, 0.0f) + 0.0f * at.of;  // NaN stays NaN
    q[i] = min_of(wide, 1.0f);
    slope[i] = wide <= 1.0f ? at.of * at.of_minus : 0.0f;  // -dq/ds
  }
  power(p, set.gamma_neg, focus, n);
  if (set.detach_focal_weight || set.gamma_neg == 0.0f) {
    for (int i = 0; i < n; ++i) lower[i] = 0.0f;
  } else if (set.gamma_neg < 1.0f) {
    for (int i = 0; i < n; ++i) lower[i] = p[i] > 0.0f ? set.gamma_neg * focus[i] / p[i] : 0.0f;
  } else {
    power(p, set.gamma_neg - 1.0f, lower, n);
    for (int i = 0; i < n; ++i) lower[i] = p[i] > 0.0f ? set.gamma_neg * lower[i] : 0.0f;
  }
  for (int i = 0; i < n; ++i) {
    const float kept = max_of(q[i], set.eps);
    const float log_q = log_positive(kept);
    const float direct = q[i] >= set.eps ? slope[i] / kept : 0.0f;
    loss[i] = -log_q * focus[i] + 0.0f * p[i];  // NaN stays NaN
    s[i] = direct * focus[i] - log_q * slope[i] * lower[i];
  }
}

void absent_bce(float* s, float* loss, int n) {
  for (int i = 0; i < n; ++i) {
    const sigmoids at = sigmoid(s[i]);
    loss[i] = softplus(s[i], at.decay);
    s[i] = at.of;
  }
}

// softplus(s) sigmoid(s)^gamma (1 - alpha).
void absent_focal(const focal_settings& set, float* s, float* loss, int n) {
  float sigma[kBlock], focus[kBlock], slope[kBlock];
  const float balance = set.alpha >= 0.0f ? 1.0f - set.alpha : 1.0f;
  for (int i = 0; i < n; ++i) {
    const sigmoids at = sigmoid(s[i]);
    sigma[i] = at.of;
    loss[i] = softplus(s[i], at.decay);
    slope[i] = at.of + set.gamma * loss[i] * at.of_minus;
  }
  power(sigma, set.gamma, focus, n);
  for (int i = 0; i < n; ++i) {
    loss[i] *= focus[i] * balance;
    s[i] = slope[i] * focus[i] * balance;
  }
}

struct entry {
  float loss, slope;
};

// The few present entries, one by one: `power` of one base.
inline float power_of(float base, float exponent) {
  float out;
  power(&base, exponent, &out, 1);
  return out;
}

entry present_asl(const asl_settings& set, float s) {
  const sigmoids at = sigmoid(s);
  const float log_p = log_positive(max_of(at.of, set.eps)) + 0.0f * at.of;  // NaN stays NaN
  const float focus = power_of(at.of_minus, set.gamma_pos);
  const float direct = at.of >= set.eps ? at.of_minus * focus : 0.0f;
  const float through = set.detach_focal_weight ? 0.0f : log_p * set.gamma_pos * at.of * focus;
  return {-log_p * focus, through - direct};
}

entry present_bce(float s) {
  const sigmoids at = sigmoid(s);
  return {softplus(-s, at.decay), -at.of_minus};
}

entry present_focal(const focal_settings& set, float s) {
  const sigmoids at = sigmoid(s);
  const float entropy = softplus(-s, at.decay);
  const float focus = power_of(at.of_minus, set.gamma) * (set.alpha >= 0.0f ? set.alpha : 1.0f);
  return {entropy * focus, -focus * (at.of_minus + set.gamma * entropy * at.of)};
}

entry present(const loss_settings& set, float s) {
  switch (set.kind) {
    case loss_kind::asl: return present_asl(set.asl, s);
    case loss_kind::focal: return present_focal(set.focal, s);
    default: return present_bce(s);
  }
}

// Where the present and unknown entries of one block of a row are, and the present ones' gradients.
// They are taken out of the block as scores of -inf, which cost nothing as absent ones.
struct marked {
  int count = 0;
  double loss = 0;
  int at[kBlock];
  float slope[kBlock];

  void take(const loss_settings& set, float* s, const float* weight, int i, bool unknown) {
    entry found{0.0f, 0.0f};
    if (!unknown) found = present(set, s[i]);
    const float weighed = weight ? weight[i] : 1.0f;
    loss += static_cast<double>(found.loss) * weighed;
    at[count] = i;
    slope[count++] = found.slope * weighed;
    s[i] = -__builtin_inff();
  }
};

void take_dense(const loss_tile& tile, const loss_settings& set, const int8_t* labels, float* s,
                const float* weight, int n, marked& found) {
  constexpr int kWord = sizeof(uint64_t);
  const uint64_t plain = tile.partial ? ~uint64_t{0} : 0;  // eight absent labels
  for (int start = 0; start < n; start += kWord) {
    const int stop = start + kWord < n ? start + kWord : n;
    uint64_t word = plain;
    std::memcpy(&word, labels + start, static_cast<size_t>(stop - start));
    if (word == plain) continue;
    for (int i = start; i < stop; ++i) {
      if (tile.partial ? labels[i] >= 0 : labels[i] != 0) {
        found.take(set, s, weight, i, tile.partial && labels[i] == 0);
      }
    }
  }
}

// The cosines of a block, which dloss/dscale is made of, and its scores.
void block_scores(const loss_tile& tile, float x_inverse, const float* w_inverse, const float* products,
                  float* cosines, float* scores, int n) {
  for (int i = 0; i < n; ++i) {
    const float cosine = products[i] * x_inverse * (w_inverse ? w_inverse[i] : 1.0f);
    cosines[i] = cosine;
    scores[i] = tile.scale * cosine + tile.bias;
  }
}

void block_loss(const loss_tile& tile, const loss_settings& set, int64_t row, int64_t column,
                const int64_t*& list, const int64_t* list_end, loss_sums& sums) {
  const int n = static_cast<int>(tile.columns - column < kBlock ? tile.columns - column : kBlock);
  float* products = tile.products + row * tile.columns + column;
  const float* weight = tile.weight ? tile.weight + column : nullptr;
  const float* w_inverse = tile.w_inverse_norm ? tile.w_inverse_norm + column : nullptr;
  const float x_inverse = tile.x_inverse_norm ? tile.x_inverse_norm[row] : 1.0f;
  float cosines[kBlock], s[kBlock], losses[kBlock];
  block_scores(tile, x_inverse, w_inverse, products, cosines, s, n);
  marked found;
  if (tile.offsets) {
    const int64_t base = tile.first + column;
    for (; list < list_end && *list < base + n; ++list) {
      if (*list >= base) found.take(set, s, weight, static_cast<int>(*list - base), false);
    }
  } else {
    take_dense(tile, set, tile.labels + row * tile.label_stride + column, s, weight, n, found);
  }
  switch (set.kind) {
    case loss_kind::asl: absent_asl(set.asl, s, losses, n); break;
    case loss_kind::bce: absent_bce(s, losses, n); break;
    case loss_kind::focal: absent_focal(set.focal, s, losses, n); break;
    case loss_kind::ranking: break;  // ranking_row
  }
  if (weight) {
    for (int i = 0; i < n; ++i) {
      losses[i] *= weight[i];
      s[i] *= weight[i];
    }
  }
  for (int k = 0; k < found.count; ++k) s[found.at[k]] = found.slope[k];
  const float through = tile.scale * x_inverse;
  float loss = 0, dbias = 0, dscale = 0;
#pragma omp simd reduction(+ : loss, dbias, dscale)
  for (int i = 0; i < n; ++i) {
    loss += losses[i];
    dbias += s[i];
    dscale += s[i] * cosines[i];
    products[i] = s[i] * through * (w_inverse ? w_inverse[i] : 1.0f);
  }
  sums.loss += found.loss + loss;
  sums.dbias += dbias;
  sums.dscale += dscale;
}

// The present entries of a row: their categories and cosines. In the row they become NaN, as the
// unknown do, which is nearer to nothing.
struct ranked {
  int64_t count;
  int32_t* at;
  float* cosine;
  float* active;  // [columns]: how many present ones an absent one comes too near to
};

void take_ranked(const loss_tile& tile, int64_t row, float* s, ranked& found) {
  const auto take = [&](int64_t c, bool present) {
    if (present) {
      found.at[found.count] = static_cast<int32_t>(c);
      found.cosine[found.count++] = s[c];
    }
    s[c] = __builtin_nanf("");
  };
  if (tile.offsets) {
    for (int64_t i = tile.offsets[row]; i < tile.offsets[row + 1]; ++i) take(tile.indices[i], true);
    return;
  }
  const int8_t* labels = tile.labels + row * tile.label_stride;
  for (int64_t c = 0; c < tile.columns; ++c) {
    if (tile.partial ? labels[c] >= 0 : labels[c] != 0) take(c, !tile.partial || labels[c] > 0);
  }
}

// One present entry of score - margin = `below` against the cosines of all absent ones.
template <bool kWeighted>
void hinge(const float* s, float scale, const float* weight, float below, float* active, int64_t n,
           double& loss, float& count) {
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t stop = start + kBlock < n ? start + kBlock : n;
    float sum = 0, near = 0;
#pragma omp simd reduction(+ : sum, near)
    for (int64_t c = start; c < stop; ++c) {
      const float over = scale * s[c] - below, weighed = kWeighted ? weight[c] : 1.0f;
      const float is = over > 0.0f ? 1.0f : 0.0f;
      sum += over > 0.0f ? over * weighed : 0.0f;
      near += is * weighed;
      active[c] += is;
    }
    loss += sum;
    count += near;
  }
}

loss_sums ranking_row(const loss_tile& tile, const loss_settings& set, int64_t row, uint32_t* words) {
  const int64_t n = tile.columns;
  float* s = tile.products + row * n;
  const float x_inverse = tile.x_inverse_norm ? tile.x_inverse_norm[row] : 1.0f;
  const float through = tile.scale * x_inverse;
  float nan = 0;
#pragma omp simd reduction(+ : nan)
  for (int64_t c = 0; c < n; ++c) {
    s[c] *= x_inverse * (tile.w_inverse_norm ? tile.w_inverse_norm[c] : 1.0f);
    nan += 0.0f * s[c];  // NaN stays NaN
  }
  ranked found{0, reinterpret_cast<int32_t*>(words), reinterpret_cast<float*>(words + n),
               reinterpret_cast<float*>(words + 2 * n)};
  for (int64_t c = 0; c < n; ++c) found.active[c] = 0;
  take_ranked(tile, row, s, found);
  loss_sums sums{nan, 0, 0};
  for (int64_t k = 0; k < found.count; ++k) {
    const float below = tile.scale * found.cosine[k] - set.ranking.margin;
    float count = 0;
    if (tile.weight) {
      hinge<true>(s, tile.scale, tile.weight, below, found.active, n, sums.loss, count);
    } else {
      hinge<false>(s, tile.scale, nullptr, below, found.active, n, sums.loss, count);
    }
    sums.dscale -= static_cast<double>(count) * found.cosine[k];
    found.cosine[k] = -count;  // its gradient
  }
  double along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t c = 0; c < n; ++c) {
    const float g = found.active[c] * (tile.weight ? tile.weight[c] : 1.0f);
    along += g != 0.0f ? static_cast<double>(g) * s[c] : 0.0;
    s[c] = g * through * (tile.w_inverse_norm ? tile.w_inverse_norm[c] : 1.0f);
  }
  for (int64_t k = 0; k < found.count; ++k) {
    const int64_t c = found.at[k];
    s[c] = found.cosine[k] * through * (tile.w_inverse_norm ? tile.w_inverse_norm[c] : 1.0f);
  }
  sums.dscale += along;
  return sums;
}

loss_sums row_loss(const loss_tile& tile, const loss_settings& set, int64_t row, uint32_t* words) {
  if (set.kind == loss_kind::ranking) return ranking_row(tile, set, row, words);
  const int64_t* list = tile.offsets ? tile.indices + tile.offsets[row] : nullptr;
  const int64_t* list_end = tile.offsets ? tile.indices + tile.offsets[row + 1] : nullptr;
  loss_sums sums{0, 0, 0};
  for (int64_t column = 0; column < tile.columns; column += kBlock) {
    block_loss(tile, set, row, column, list, list_end, sums);
  }
  return sums;
}

void loss(const loss_tile& tile, const loss_settings& set, int threads, loss_sums* sums) {
  const int64_t words = set.kind == loss_kind::ranking ? 3 * tile.columns : 0;
  const scratch<uint32_t> ranking(words * threads);
  for_rows(tile.rows, tile.columns, threads, [&](int64_t b, int thread) {
    sums[b] = row_loss(tile, set, b, ranking.values + thread * words);
  });
}

inline float load(const float* from) { return *from; }
inline float load(const uint16_t* from) { return as_float(static_cast<uint32_t>(*from) << 16); }
inline void store(float* to, float value) { *to = value; }

inline void store(uint16_t* to, float value) {  // to the nearest bfloat16, ties to even
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

template <class G, class T>
void project_row(const projection& task, int64_t row) {
  G* g = static_cast<G*>(task.gradients) + row * task.width;
  const T* t = static_cast<const T*>(task.t) + row * task.width;
  float along = 0;
  if (task.inverse_norm) {
#pragma omp simd reduction(+ : along)
    for (int64_t d = 0; d < task.width; ++d) along += load(g + d) * load(t + d);
    along *= task.inverse_norm[row] * task.inverse_norm[row];
  }
  for (int64_t d = 0; d < task.width; ++d) {
    store(g + d, task.factor * (load(g + d) - along * load(t + d)));
  }
}

void row_project(const projection& task, int64_t row) {
  if (task.gradients_half) {
    task.t_half ? project_row<uint16_t, uint16_t>(task, row) : project_row<uint16_t, float>(task, row);
  } else {
    task.t_half ? project_row<float, uint16_t>(task, row) : project_row<float, float>(task, row);
  }
}

void project(const projection& task, int threads) {
  for_rows(task.rows, task.width, threads, [&](int64_t b, int) { row_project(task, b); });
}

template <class T>
float norm_of(const norm_task& task, int64_t row) {
  const T* t = static_cast<const T*>(task.t) + row * task.width;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < task.width; ++d) sum += load(t + d) * load(t + d);
  return __builtin_sqrtf(sum);
}

void norms(const norm_task& task, int threads) {
  for_rows(task.rows, task.known ? 1 : task.width, threads, [&](int64_t b, int) {
    if (!task.known) task.norms[b] = task.half ? norm_of<uint16_t>(task, b) : norm_of<float>(task, b);
    const float norm = task.norms[b];
    task.inverse[b] = 1.0f / (norm < task.least ? task.least : norm);  // NaN stays NaN
  });
}

}  // namespace

const loss_functions PVP_FAST_SET::kLoss{loss, project, norms};

}  // namespace pvp_fast
