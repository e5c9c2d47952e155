// Rows of a tile over the threads, by the best instruction set there is.
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "loss/softmax.h"

namespace pvp_fast {

const row_functions kRowsPortable = kFunctions;

namespace {

// Entries a thread must have before waking another pays.
constexpr int64_t kLeastWork = 1 << 13;

const row_functions* const kRows[kIsas] = {
    &kRowsPortable,
#if defined(PVP_FAST_X86)
    &kRowsAvx2, nullptr, &kRowsAvx512, nullptr, nullptr,
#elif defined(PVP_FAST_ARM)
    // Every 64-bit Arm processor has NEON, so the compiler made the portable rows for it; nothing in
    // them is a dot product.
    nullptr, nullptr, nullptr, nullptr,
#endif
};

template <class Row>
void for_rows(int64_t rows, int64_t width, int threads, const Row& row) {
  const int64_t most = std::min(rows, rows * width / kLeastWork + 1);
  const int used = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, most)));
  (void)used;  // without OpenMP
#pragma omp parallel num_threads(used) if (used > 1)
  {
#if defined(_OPENMP)
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
#pragma omp for schedule(static)
    for (int64_t b = 0; b < rows; ++b) row(b, thread);
  }
}

}  // namespace

void loss_cpu(const loss_tile& tile, const loss_settings& settings, int threads, isa most,
              loss_sums* sums) {
  const row_functions& by = *best(kRows, most).use;
  const int64_t words = settings.kind == loss_kind::ranking ? 3 * tile.columns : 0;
  const std::unique_ptr<uint32_t[]> scratch(new uint32_t[static_cast<size_t>(words * threads)]);
  for_rows(tile.rows, tile.columns, threads, [&](int64_t b, int thread) {
    sums[b] = by.loss(tile, settings, b, scratch.get() + thread * words);
  });
}

void project_cpu(const projection& task, int threads, isa most) {
  const row_functions& by = *best(kRows, most).use;
  for_rows(task.rows, task.width, threads, [&](int64_t b, int) { by.project(task, b); });
}

void pairs_sums_cpu(const pairs_panel& panel, int threads, isa most, const pairs_sums& to) {
  const row_functions& by = *best(kRows, most).use;
  const int64_t strips = (panel.rows + kStrip - 1) / kStrip, blocks = (panel.columns + kBlock - 1) / kBlock;
  const std::unique_ptr<float[]> parts(new float[static_cast<size_t>(2 * strips * panel.columns)]);
  for_rows(strips, kStrip * panel.columns, threads, [&](int64_t strip, int) {
    float* part = parts.get() + 2 * strip * panel.columns;
    by.strip_sums(panel, strip, to, part, part + panel.columns);
  });
  for_rows(blocks, kBlock * strips, threads,
           [&](int64_t block, int) { by.column_sums(panel, block * kBlock, to, parts.get()); });
}

double pairs_gradient_cpu(const pairs_panel& panel, const pairs_softmax& softmax, int threads, isa most,
                          float* gradients) {
  const row_functions& by = *best(kRows, most).use;
  std::vector<double> dscale(static_cast<size_t>(panel.rows));
  for_rows(panel.rows, panel.columns, threads, [&](int64_t row, int) {
    dscale[static_cast<size_t>(row)] = by.pairs_gradient(panel, row, softmax, gradients);
  });
  return std::accumulate(dscale.begin(), dscale.end(), 0.0);
}

namespace {

// Blocks of categories of every image over the threads.
template <class Block>
void for_blocks(const pool_task& task, int threads, const Block& block) {
  const int64_t blocks = (task.columns + kBlock - 1) / kBlock, units = task.images * blocks;
  const int64_t entries = task.offsets[task.images] * task.columns;
  for_rows(units, entries / std::max<int64_t>(1, units), threads,
           [&](int64_t unit, int) { block(unit / blocks, unit % blocks, static_cast<size_t>(unit)); });
}

}  // namespace

void pool_cpu(const pool_task& task, int threads, isa most) {
  const row_functions& by = *best(kRows, most).use;
  for_blocks(task, threads, [&](int64_t image, int64_t block, size_t) { by.pool(task, image, block); });
}

double pool_gradient_cpu(const pool_task& task, const float* g, int threads, isa most, float* gradients) {
  const row_functions& by = *best(kRows, most).use;
  std::vector<double> along(static_cast<size_t>(task.images * ((task.columns + kBlock - 1) / kBlock)));
  for_blocks(task, threads, [&](int64_t image, int64_t block, size_t unit) {
    along[unit] = by.pool_gradient(task, image, block, g, gradients);
  });
  return std::accumulate(along.begin(), along.end(), 0.0);
}

}  // namespace pvp_fast
