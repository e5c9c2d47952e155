// Rows of a tile over the threads, by the best instruction set there is.
#include <algorithm>
#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "loss/rows.h"

namespace pvp_fast {

const row_functions kRowsPortable{row_loss, row_project};

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

}  // namespace pvp_fast
