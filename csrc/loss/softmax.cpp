// Softmaxes of products and their gradients, in plain loops that the compiler turns into vectors.
//
// Built once an instruction set, which PVP_FAST_SET names, each with its own compiler flags (see
// vector.h).
#include "loss/softmax.h"

#include "vector.h"

#if !defined(PVP_FAST_SET)
#define PVP_FAST_SET portable
#endif

namespace pvp_fast {
namespace {

constexpr int kBlock = 256;  // entries at a time, which stay in the first cache
constexpr int kStrip = 16;  // rows that share one part of the columns' sums
constexpr float kLeast = -3.0e38f;  // maxima start here: a score of -inf less this is -inf, not NaN

// One strip of a panel: the softmax of its rows, what its targets aim at, and the part that it has of
// every column's softmax.
void strip_sums(const pairs_panel& panel, int64_t strip, const pairs_sums& to, float* part_top,
                float* part_total) {
  const int64_t start = strip * kStrip;
  const int rows = static_cast<int>(panel.rows - start < kStrip ? panel.rows - start : kStrip);
  double aimed[kStrip], total_of[kStrip];
  float top_of[kStrip];
  for (int i = 0; i < rows; ++i) {
    aimed[i] = total_of[i] = 0;
    top_of[i] = kLeast;
  }
  for (int64_t column = 0; column < panel.columns; column += kBlock) {
    const int n = static_cast<int>(panel.columns - column < kBlock ? panel.columns - column : kBlock);
    float s[kStrip][kBlock], *top = part_top + column, *total = part_total + column;
    for (int c = 0; c < n; ++c) top[c] = kLeast;
    for (int i = 0; i < rows; ++i) {
      const float* products = panel.products + (start + i) * panel.columns + column;
      const float x_inverse = panel.x_inverse_norm ? panel.x_inverse_norm[start + i] : 1.0f;
      for (int c = 0; c < n; ++c) {
        const float w_inverse = panel.w_inverse_norm ? panel.w_inverse_norm[column + c] : 1.0f;
        s[i][c] = panel.scale * (products[c] * x_inverse * w_inverse);
        top[c] = max_of(top[c], s[i][c]);
      }
      if (panel.targets) {
        const float* y = panel.targets + (start + i) * panel.columns + column;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < n; ++c) {
          sum += y[c] * (panel.row_share[start + i] + panel.column_share[column + c]) * s[i][c];
        }
        aimed[i] += sum;
      } else if (panel.first + start + i >= column && panel.first + start + i < column + n) {
        aimed[i] = 2.0f * s[i][panel.first + start + i - column];
      }
    }
    for (int c = 0; c < n; ++c) total[c] = 0;
    for (int i = 0; i < rows; ++i) {
      float most = top_of[i], sum = 0;
#pragma omp simd reduction(max : most)
      for (int c = 0; c < n; ++c) most = s[i][c] > most ? s[i][c] : most;
#pragma omp simd reduction(+ : sum)
      for (int c = 0; c < n; ++c) {
        total[c] += exp_negative(s[i][c] - top[c]);
        sum += exp_negative(s[i][c] - most);
      }
      total_of[i] = total_of[i] * exp_negative(top_of[i] - most) + sum;
      top_of[i] = most;
    }
  }
  for (int i = 0; i < rows; ++i) {
    to.row_top[start + i] = top_of[i];
    to.row_total[start + i] = static_cast<float>(total_of[i]);
    to.aimed[start + i] = static_cast<float>(aimed[i]);
  }
}

// The parts of a block of columns are added to what its softmax has so far, strip after strip.
void column_sums(const pairs_panel& panel, int64_t column, const pairs_sums& to, const float* parts) {
  const int64_t strips = (panel.rows + kStrip - 1) / kStrip;
  const int n = static_cast<int>(panel.columns - column < kBlock ? panel.columns - column : kBlock);
  float *top = to.column_top + column, *total = to.column_total + column;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const float* part_top = parts + 2 * strip * panel.columns + column;
    const float* part_total = part_top + panel.columns;
    for (int c = 0; c < n; ++c) {
      const float most = max_of(top[c], part_top[c]);
      total[c] = total[c] * exp_negative(top[c] - most) + part_total[c] * exp_negative(part_top[c] - most);
      top[c] = most;
    }
  }
}

void pairs(const pairs_panel& panel, int threads, const pairs_sums& to) {
  const int64_t strips = (panel.rows + kStrip - 1) / kStrip, blocks = (panel.columns + kBlock - 1) / kBlock;
  const scratch<float> parts(2 * strips * panel.columns);
  for_rows(strips, kStrip * panel.columns, threads, [&](int64_t strip, int) {
    float* part = parts.values + 2 * strip * panel.columns;
    strip_sums(panel, strip, to, part, part + panel.columns);
  });
  for_rows(blocks, kBlock * strips, threads,
           [&](int64_t block, int) { column_sums(panel, block * kBlock, to, parts.values); });
}

double pairs_row(const pairs_panel& panel, int64_t row, const pairs_softmax& by, float* gradients) {
  const float x_inverse = panel.x_inverse_norm ? panel.x_inverse_norm[row] : 1.0f;
  const float row_top = by.row_top[row], row_inverse = by.row_inverse[row];
  const float through = panel.scale * x_inverse;
  double dscale = 0;
  for (int64_t column = 0; column < panel.columns; column += kBlock) {
    const int n = static_cast<int>(panel.columns - column < kBlock ? panel.columns - column : kBlock);
    const float* products = panel.products + row * panel.columns + column;
    const float *column_top = by.column_top + column, *column_inverse = by.column_inverse + column;
    float cosines[kBlock], g[kBlock], w_inverse[kBlock];
    for (int c = 0; c < n; ++c) {
      w_inverse[c] = panel.w_inverse_norm ? panel.w_inverse_norm[column + c] : 1.0f;
      cosines[c] = products[c] * x_inverse * w_inverse[c];
      const float s = panel.scale * cosines[c];
      g[c] = exp_negative(s - row_top) * row_inverse +
             exp_negative(s - column_top[c]) * column_inverse[c];
    }
    if (panel.targets) {
      const float* y = panel.targets + row * panel.columns + column;
      for (int c = 0; c < n; ++c) g[c] -= y[c] * (panel.row_share[row] + panel.column_share[column + c]);
    } else if (panel.first + row >= column && panel.first + row < column + n) {
      g[panel.first + row - column] -= 2.0f;
    }
    float along = 0;
    float* to = gradients + row * panel.columns + column;
#pragma omp simd reduction(+ : along)
    for (int c = 0; c < n; ++c) {
      along += g[c] * cosines[c];
      to[c] = g[c] * through * w_inverse[c];
    }
    dscale += along;
  }
  return dscale;
}

double sum(const scratch<double>& parts, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += parts.values[i];
  return total;
}

double pairs_gradient(const pairs_panel& panel, const pairs_softmax& by, int threads, float* gradients) {
  const scratch<double> dscale(panel.rows);
  for_rows(panel.rows, panel.columns, threads, [&](int64_t row, int) {
    dscale.values[row] = pairs_row(panel, row, by, gradients);
  });
  return sum(dscale, panel.rows);
}

// Cosines of one region and a block of categories. Blocks are filled up to whole vectors, so that a
// few categories need no remainder of a loop.
struct pool_columns {
  int64_t first;
  int n, wide;
  float w_inverse[kBlock];

  pool_columns(const pool_task& task, int64_t block) : first(block * kBlock) {
    n = static_cast<int>(task.columns - first < kBlock ? task.columns - first : kBlock);
    wide = (n + 15) / 16 * 16;
    for (int c = 0; c < wide; ++c) {
      w_inverse[c] = c >= n ? 0.0f : task.w_inverse_norm ? task.w_inverse_norm[first + c] : 1.0f;
    }
  }
  void cosines(const pool_task& task, int64_t region, float* a) const {
    const float inverse = task.z_inverse_norm ? task.z_inverse_norm[region] : 1.0f;
    for (int c = n; c < wide; ++c) a[c] = 0;
    std::memcpy(a, task.products + region * task.columns + first, sizeof(float) * static_cast<size_t>(n));
    for (int c = 0; c < wide; ++c) a[c] = a[c] * inverse * w_inverse[c];
  }
};

void pool_block(const pool_task& task, int64_t image, int64_t block) {
  const pool_columns columns(task, block);
  const int wide = columns.wide;
  const int64_t begin = task.offsets[image], end = task.offsets[image + 1];
  float a[kBlock], top[kBlock], total[kBlock], mixed[kBlock];
  for (int c = 0; c < wide; ++c) {
    top[c] = kLeast;
    total[c] = mixed[c] = 0;
  }
  for (int64_t region = begin; region < end; ++region) {
    columns.cosines(task, region, a);
    for (int c = 0; c < wide; ++c) top[c] = max_of(top[c], task.temperature * a[c]);
  }
  for (int64_t region = begin; region < end; ++region) {
    columns.cosines(task, region, a);
    for (int c = 0; c < wide; ++c) {
      const float e = exp_negative(task.temperature * a[c] - top[c]);
      total[c] += e;
      mixed[c] += e * a[c];
    }
  }
  const int64_t to = image * task.stride + columns.first;
  for (int c = 0; c < columns.n; ++c) {
    const float inverse = begin < end ? 1.0f / total[c] : 0.0f;
    task.pooled[to + c] = mixed[c] * inverse;
    task.top[to + c] = begin < end ? top[c] : 0.0f;
    task.inverse_total[to + c] = inverse;
  }
}

double pool_gradient_block(const pool_task& task, int64_t image, int64_t block, const float* g,
                           float* gradients) {
  const pool_columns columns(task, block);
  const int wide = columns.wide;
  const int64_t from = image * task.stride + columns.first;
  float a[kBlock], share[kBlock] = {}, top[kBlock] = {}, pooled[kBlock] = {};
  for (int c = 0; c < columns.n; ++c) {
    share[c] = g[from + c] * task.inverse_total[from + c];
    top[c] = task.top[from + c];
    pooled[c] = task.pooled[from + c];
  }
  double dtemperature = 0;
  for (int64_t region = task.offsets[image]; region < task.offsets[image + 1]; ++region) {
    columns.cosines(task, region, a);
    const float inverse = task.z_inverse_norm ? task.z_inverse_norm[region] : 1.0f;
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int c = 0; c < wide; ++c) {
      const float part = exp_negative(task.temperature * a[c] - top[c]) * share[c];
      const float apart = a[c] - pooled[c], lean = part * apart;
      along += lean * apart;
      a[c] = (part + task.temperature * lean) * inverse * columns.w_inverse[c];
    }
    dtemperature += along;
    std::memcpy(gradients + region * task.columns + columns.first, a,
                sizeof(float) * static_cast<size_t>(columns.n));
  }
  return dtemperature;
}

// Blocks of categories of every image over the threads.
template <class Block>
void for_blocks(const pool_task& task, int threads, const Block& block) {
  const int64_t blocks = (task.columns + kBlock - 1) / kBlock, units = task.images * blocks;
  const int64_t entries = task.offsets[task.images] * task.columns;
  for_rows(units, units < 1 ? entries : entries / units, threads,
           [&](int64_t unit, int) { block(unit / blocks, unit % blocks, unit); });
}

void pool(const pool_task& task, int threads) {
  for_blocks(task, threads, [&](int64_t image, int64_t block, int64_t) { pool_block(task, image, block); });
}

double pool_gradient(const pool_task& task, const float* g, int threads, float* gradients) {
  const int64_t units = task.images * ((task.columns + kBlock - 1) / kBlock);
  const scratch<double> along(units);
  for_blocks(task, threads, [&](int64_t image, int64_t block, int64_t unit) {
    along.values[unit] = pool_gradient_block(task, image, block, g, gradients);
  });
  return sum(along, units);
}

}  // namespace

const softmax_functions PVP_FAST_SET::kSoftmax{pairs, pairs_gradient, pool, pool_gradient};

}  // namespace pvp_fast
