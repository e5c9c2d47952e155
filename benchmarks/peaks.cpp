// What this processor can do at most, measured: chains of multiply-adds in registers, and a sum over
// memory. Built by peaks.py for one instruction set; each function runs on `threads` OpenMP threads.
#include <immintrin.h>
#include <omp.h>

#include <time.h>

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace {

// As many accumulators as the tiles of csrc/ keep.
#if defined(__AVX512F__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

// Of this thread: what other processes take of a shared machine is no part of the peak.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Step>
double rate(int threads, double seconds, double per_step, Step step) {
  double total = 0.0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    for (int i = 0; i < 200; ++i) step();  // warm up: clocks rise
#pragma omp barrier
    const double start = cpu_seconds();
    double now = start;
    int64_t count = 0;
    while (now - start < seconds) {
      for (int i = 0; i < 200; ++i) step();
      count += 200;
      now = cpu_seconds();
    }
    total += static_cast<double>(count) * per_step / (now - start);
  }
  return total;
}

volatile float sink;

// Accumulators the compiler must believe to differ: else one chain stands in for all of them.
template <class V>
void make_distinct(V (&sums)[kChains]) {
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) asm volatile("" : "+v"(sums[i]));
}

}  // namespace

extern "C" {

// Floating-point operations a second, float32; 0 where the instruction is missing.
double peak_float32(int threads, double seconds) {
#if defined(__AVX512F__)
  return rate(threads, seconds, 64.0 * kChains * 16 * 2, [] {
    __m512 sums[kChains] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1e-3f);
    make_distinct(sums);
    for (int r = 0; r < 64; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
      asm volatile("" : "+v"(a));
    }
    for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    sink = _mm512_cvtss_f32(sums[0]);
  });
#elif defined(__AVX2__) && defined(__FMA__)
  return rate(threads, seconds, 64.0 * kChains * 8 * 2, [] {
    __m256 sums[kChains] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1e-3f);
    make_distinct(sums);
    for (int r = 0; r < 64; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
      asm volatile("" : "+v"(a));
    }
#pragma GCC unroll 24
    for (int i = 1; i < kChains; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
    sink = _mm256_cvtss_f32(sums[0]);
  });
#else
  return 0.0;
#endif
}

double peak_bfloat16(int threads, double seconds) {
#if defined(__AVX512BF16__)
  return rate(threads, seconds, 64.0 * kChains * 32 * 2, [] {
    __m512 sums[kChains] = {};
    __m512i a = _mm512_set1_epi32(0x3f003f00), b = _mm512_set1_epi32(0x3a833a83);
    make_distinct(sums);
    for (int r = 0; r < 64; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)a, (__m512bh)b);
      asm volatile("" : "+v"(a));
    }
    for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    sink = _mm512_cvtss_f32(sums[0]);
  });
#elif !defined(__AVX512F__)
  return peak_float32(threads, seconds);  // widened
#else
  return 0.0;
#endif
}

// By AMX: four sums of 16 x 16, and 0 where Linux does not give the tile registers.
double peak_amxint8([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(__AMX_INT8__) && defined(__linux__)
  struct alignas(64) layout {
    uint8_t palette = 1, reserved[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static const layout kLayout;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) return 0.0;
  return rate(threads, seconds, 64.0 * 4 * 16 * 16 * 64 * 2, [] {
    _tile_loadconfig(&kLayout);  // sets all to zero
    for (int r = 0; r < 64; ++r) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
  });
#else
  return 0.0;
#endif
}

double peak_int8(int threads, double seconds) {
#if defined(__AVX512VNNI__)
  return rate(threads, seconds, 64.0 * kChains * 64 * 2, [] {
    __m512i sums[kChains] = {}, a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101);
    make_distinct(sums);
    for (int r = 0; r < 64; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) {
        // As asm: with the intrinsic GCC 12 spills the accumulators.
        asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
      }
      asm volatile("" : "+v"(a));
    }
#pragma GCC unroll 24
    for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    sink = static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sums[0])));
  });
#elif !defined(__AVX512F__) && defined(__AVX2__)
  return rate(threads, seconds, 64.0 * kChains * 32 * 2, [] {
    __m256i sums[kChains] = {}, a = _mm256_set1_epi32(0x01020304), b = _mm256_set1_epi32(0x01010101);
    [[maybe_unused]] const __m256i ones = _mm256_set1_epi16(1);
    make_distinct(sums);
    for (int r = 0; r < 64; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) {
#if defined(__AVXVNNI__)
        asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums[i]) : "x"(a), "x"(b));
#else
        __m256i pairs;  // as asm: always the same product
        asm volatile("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(a), "x"(b));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
#endif
      }
      asm volatile("" : "+v"(a));
    }
#pragma GCC unroll 24
    for (int i = 1; i < kChains; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    sink = static_cast<float>(_mm256_extract_epi32(sums[0], 0));
  });
#else
  return 0.0;
#endif
}

// Bytes a second read from `size` floats.
double bandwidth(const float* data, int64_t size, int threads) {
  double best = 0.0;
  for (int turn = 0; turn < 5; ++turn) {
    float total = 0.0f;
    const double start = omp_get_wtime();
#pragma omp parallel for simd num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t i = 0; i < size; ++i) total += data[i];
    const double rate = 4.0 * static_cast<double>(size) / (omp_get_wtime() - start);
    if (rate > best) best = rate;
    sink = total;
  }
  return best;
}
}
