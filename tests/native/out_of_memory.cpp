// Every allocation of an int8 search fails once, in whichever thread: std::bad_alloc for the caller,
// never the end of the process. Built and run by tests/native/test_topk_native.py.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "topk/topk.h"

static std::atomic<long> left{-1};  // allocations until one fails; negative: none does

void* operator new(std::size_t size) {
  if (left.load() >= 0 && left.fetch_sub(1) == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace pvp_fast;

int main() {
  // Large enough for two threads; zero panels bound nothing, so all is rescored.
  constexpr int64_t kRows = 64, kCategories = 8192, kWidth = 64;
  std::vector<float> x(kRows * kWidth, 1.0f), w(kCategories * kWidth, 0.5f);
  std::vector<float> packed(panel_count(kCategories) * (kWidth / 4 + kInt8Stats) * kLanes);
  std::vector<float> scores(kRows);
  std::vector<int64_t> indices(kRows), counts(kRows);
  topk_query query{{x.data(), kRows, kWidth, kWidth, 1}, packed.data(), kCategories, 1, 0.0f,
                   nullptr, nullptr, 1.0f, 2, scalar::int8, w.data(), nullptr};
  int failures = 0;
  for (bool done = false; !done;) {
    left.store(failures);
    try {
      topk_cpu(query, {scores.data(), indices.data(), counts.data()}, most_isa());
      done = true;
    } catch (const std::bad_alloc&) {
      ++failures;
    }
    left.store(-1);
  }
  std::printf("%d allocations may fail\n", failures);
  return failures > 20 && indices[0] == 0 ? 0 : 1;
}
