// The instructions of sm_80 that C++ has no name for. A build for the CPU (tests/native/cuda_emulator)
// brings its own.
#pragma once

#if !defined(PVP_FAST_EMULATED)

#include <cuda_runtime.h>

#include <cstdint>

namespace pvp_fast {
namespace {

__device__ inline void* dynamic_shared() {
  extern __shared__ uint4 pvp_fast_shared[];
  return pvp_fast_shared;
}

__device__ inline unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// 16 bytes from global to shared memory, both aligned to 16, or zeros; done after copy_wait.
__device__ inline void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

// Waits for all copies of this thread.
__device__ inline void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit elements: lane 8 j + i gives the address of row i of matrix j, and
// gets elements 2 (lane % 4) and the next of row lane / 4 of each.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums (16 x 8) += a (16 x 16) * b (16 x 8), bfloat16 into float32. With g = lane / 4, t = lane % 4:
// a holds rows g, g + 8, g, g + 8 of columns 2t, 2t + 1 (the last two: + 8); b rows 2t, 2t + 1, then
// + 8, of column g; sums rows g, g, g + 8, g + 8 of columns 2t, 2t + 1 in turn.
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace pvp_fast

#endif
