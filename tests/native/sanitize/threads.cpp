// Several threads search one index at once, under ThreadSanitizer. Built without OpenMP: libgomp's
// barriers are not instrumented, so every parallel region would be reported; what one call's own
// threads share is covered by the bit-for-bit tests. Here: that calls share nothing but the index.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "topk/topk.h"

using namespace pvp_fast;

int main() {
  constexpr int64_t kRows = 40, kCategories = 1000, kWidth = 24, kTop = 7;
  std::vector<float> x(kRows * kWidth), w(kCategories * kWidth);
  uint32_t state = 1;
  for (std::vector<float>* values : {&x, &w}) {
    for (float& value : *values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
  }
  const matrix rows{w.data(), kCategories, kWidth, kWidth, 1};
  std::vector<float> packed(panel_count(kCategories) * kWidth * kLanes);
  pack_cpu(rows, packed.data());
  constexpr int64_t kWords = step_count(scalar::int8, kWidth) + kInt8Stats;
  const std::vector<float> centre(kWidth);
  std::vector<uint32_t> encoded(kCategories * kWords), bytes(panel_count(kCategories) * kWords * kLanes);
  encode_int8_cpu(rows, centre.data(), encoded.data());
  for (int64_t at = 0; at < kCategories * kWords; ++at) {
    const int64_t category = at / kWords, word = at % kWords;
    bytes[(category / kLanes * kWords + word) * kLanes + category % kLanes] = encoded[at];
  }
  const auto search = [&](scalar type, std::vector<float>& scores, std::vector<int64_t>& indices) {
    std::vector<int64_t> counts(kRows);
    const auto* panels = type == scalar::int8 ? reinterpret_cast<const float*>(bytes.data()) : packed.data();
    const topk_query query{{x.data(), kRows, kWidth, kWidth, 1}, panels, kCategories, kTop,
                           -1e30f, nullptr, nullptr, 1.0f, 1, type, w.data(), centre.data()};
    scores.assign(kRows * kTop, 0.0f);
    indices.assign(kRows * kTop, 0);
    if (topk_cpu(query, {scores.data(), indices.data(), counts.data()}, most_isa()) != -1) std::abort();
  };
  std::vector<float> expected_scores;
  std::vector<int64_t> expected;
  search(scalar::float32, expected_scores, expected);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      std::vector<float> scores;
      std::vector<int64_t> indices;
      for (int turn = 0; turn < 20; ++turn) {
        for (const scalar type : {scalar::float32, scalar::int8}) {
          search(type, scores, indices);
          if (scores != expected_scores || indices != expected) std::abort();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::puts("ThreadSanitizer: 4 threads on one index, no race");
}
