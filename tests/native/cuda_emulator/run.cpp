// csrc/topk_cuda/topk.cu on a CPU against csrc/topk/topk.cpp: float32 bit for bit; bfloat16 on small whole
// numbers, whose sums are exact in any order. Built and run by tests/native/test_topk_native.py.
#include "topk_cuda/topk.cu"

#include <cstdio>
#include <random>

using namespace pvp_fast;

namespace {

std::mt19937 generator(7);
int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

struct answer {
  std::vector<float> scores;
  std::vector<int64_t> indices, counts;
  answer(int64_t rows, int64_t k) : scores(rows * k), indices(rows * k), counts(rows) {}
  topk_result view() { return {scores.data(), indices.data(), counts.data()}; }
};

uint32_t word(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct rows16 {  // aligned to 16 bytes
  std::vector<chunk> chunks;
  rows16(const std::vector<float>& from, int64_t rows, int64_t width) : chunks(rows * ((width + 7) / 8)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < width; ++d) {
        chunks[r * ((width + 7) / 8) + d / 8].elements[d % 8] =
            static_cast<uint16_t>(word(from[r * width + d]) >> 16);
      }
    }
  }
  const float* data() const { return reinterpret_cast<const float*>(chunks.data()); }
};

// One problem, drawn at random; false where the two disagree.
bool agree(scalar type, int rows, int categories, int width, int k, int spread, bool limits, int nan_row) {
  std::vector<float> x(rows * width), w(categories * width), bias(categories), least(categories);
  for (std::vector<float>* values : {&x, &w}) {
    for (float& value : *values) value = static_cast<float>(draw(-spread, spread));
  }
  for (int c = 0; c < categories; ++c) {
    bias[c] = draw(0, 9) == 0 ? -INFINITY : static_cast<float>(draw(-spread, spread));
    least[c] = static_cast<float>(draw(-3 * spread, spread));
  }
  if (nan_row >= 0) x[nan_row * width + width / 2] = NAN;
  if (type == scalar::float32) {
    for (float& value : x) value *= 0.1f;  // sums that round
  }
  std::vector<float> packed(panel_count(categories) * width * kLanes);
  pack_cpu({w.data(), categories, width, width, 1}, packed.data());
  topk_query q{{x.data(), rows, width, width, 1}, packed.data(), categories, k, -INFINITY,
               nullptr, nullptr, limits ? 0.5f : 1.0f, 1, scalar::float32};
  if (limits) {
    q.threshold = static_cast<float>(-2 * spread);
    q.thresholds = least.data();
    q.bias = bias.data();
  }
  answer expected(rows, k), got(rows, k);
  const int64_t nan = topk_cpu(q, expected.view(), most_isa());

  q.type = type;
  const rows16 x16(x, rows, width), w16(w, categories, width);
  if (type == scalar::bfloat16) {
    const int64_t padded = (width + 7) / 8 * 8;
    q.x = {x16.data(), rows, padded, padded, 1};
    q.packed = w16.data();
  }
  const int parts = draw(1, static_cast<int>(topk_cuda_parts(type, rows, categories)));
  const size_t entries = size_t(rows) * parts * k;
  std::vector<float> part_values(entries, NAN);
  std::vector<int> part_categories(entries, -77);
  topk_cuda(q, got.view(), {part_values.data(), part_categories.data(), parts, 0, 0});
  if (nan != nan_row) return false;
  if (nan_row >= 0) {
    // The others are whole: the row alone is marked.
    for (int r = 0; r < rows; ++r) {
      if ((got.counts[r] == -1) != (r == nan_row)) return false;
    }
    return got.indices[nan_row * k] == -1;
  }
  return got.indices == expected.indices && got.counts == expected.counts &&
         std::memcmp(got.scores.data(), expected.scores.data(), 4 * got.scores.size()) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int turns = argc > 1 ? std::atoi(argv[1]) : 3;
  constexpr int kSizes[] = {1, 2, 7, 10, 32, 33, 64, 100, 129, 256};
  int count = 0;
  for (int turn = 0; turn < turns; ++turn) {
    for (const scalar type : {scalar::float32, scalar::bfloat16}) {
      for (const int k : kSizes) {
        const int rows = draw(1, turn % 2 == 0 ? 9 : 70), categories = draw(1, 600);
        const int width = draw(1, 150), spread = draw(1, 3);
        const int nan_row = draw(0, 7) == 0 ? draw(0, rows - 1) : -1;
        if (!agree(type, rows, categories, width, k, spread, draw(0, 1) == 1, nan_row)) {
          std::printf("%s differs: rows %d, categories %d, width %d, k %d, nan row %d, turn %d\n",
                      type == scalar::float32 ? "float32" : "bfloat16", rows, categories, width, k, nan_row,
                      turn);
          return 1;
        }
        ++count;
      }
    }
  }
  std::printf("%d problems agree\n", count);
}
