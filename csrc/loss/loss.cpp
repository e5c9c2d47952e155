// Rows of a tile over the threads, by the best instruction set there is.
#include <algorithm>
#include <stdexcept>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "loss/rows.h"
#include "topk/topk.h"

namespace pvp_fast {

const row_functions kRowsPortable{row_loss, row_project};

namespace {

// Entries a thread must have before waking another pays.
constexpr int64_t kLeastWork = 1 << 13;

const row_functions& choose(const std::string& isa) {
  const std::vector<std::string> names = available_isas();  // best first
  const auto from = isa.empty() ? names.begin() : std::find(names.begin(), names.end(), isa);
  if (from == names.end()) {
    throw std::invalid_argument("instruction set '" + isa + "' is not available here");
  }
#if defined(PVP_FAST_X86)
  if (std::find(from, names.end(), "avx512") != names.end()) return kRowsAvx512;
  if (std::find(from, names.end(), "avx2") != names.end()) return kRowsAvx2;
#endif
  return kRowsPortable;
}

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

void loss_cpu(const loss_tile& tile, const loss_settings& settings, int threads,
              const std::string& isa, loss_sums* sums, uint32_t* scratch) {
  const row_functions& by = choose(isa);
  for_rows(tile.rows, tile.columns, threads, [&](int64_t b, int thread) {
    sums[b] = by.loss(tile, settings, b, scratch ? scratch + thread * 3 * tile.columns : nullptr);
  });
}

void project_cpu(const projection& task, int threads, const std::string& isa) {
  const row_functions& by = choose(isa);
  for_rows(task.rows, task.width, threads, [&](int64_t b, int) { by.project(task, b); });
}

}  // namespace pvp_fast
