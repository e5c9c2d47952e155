// What the files share that are built once an instruction set: bits, e^x and ln x in plain loops that
// the compiler turns into vectors, and such loops over the threads.
//
// Internal linkage, and nothing from the standard library but builtins (see topk/tile.h).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pvp_fast {
namespace {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// e^x for x <= 0, to 1e-7 relative; 0 below -87. 2^n by exponent bits, the rest by Taylor's series,
// whose next term is 5e-9 for |r| <= ln(2) / 2.
inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float kept = x < -87.0f ? -87.0f : x;
  const float shifted = kept * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2), its head exact
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const float power = as_float((as_bits(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : sum * power;
}

// ln v for normal v > 0: v = 2^e m, m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh((m - 1) / (m + 1)).
inline float log_positive(float v) {
  const uint32_t bits = as_bits(v);
  const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float m = as_float(bits - (static_cast<uint32_t>(e) << 23));
  const float z = (m - 1.0f) / (m + 1.0f);
  const float t = z * z;
  float sum = 2.0f / 9.0f;
  sum = sum * t + 2.0f / 7.0f;
  sum = sum * t + 2.0f / 5.0f;
  sum = sum * t + 2.0f / 3.0f;
  const float whole = static_cast<float>(e);
  return whole * 0.693359375f + (2.0f * z + (sum * t * z - whole * 2.12194440e-4f));
}

inline float max_of(float a, float b) { return a > b ? a : b; }
inline float min_of(float a, float b) { return a < b ? a : b; }

// Memory for `count` values, not set. Throws std::bad_alloc.
template <class T>
struct scratch {
  explicit scratch(int64_t count) : values(new T[static_cast<size_t>(count)]) {}
  ~scratch() { delete[] values; }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;

  T* const values;
};

// Entries a thread must have before waking another pays.
constexpr int64_t kLeastWork = 1 << 13;

// row(b, thread) of each row of `width` entries, as many at a time as pays of `threads`.
template <class Row>
void for_rows(int64_t rows, int64_t width, int threads, const Row& row) {
  const int64_t fed = rows * width / kLeastWork + 1, most = rows < fed ? rows : fed;
  const int used = most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
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
}  // namespace pvp_fast
