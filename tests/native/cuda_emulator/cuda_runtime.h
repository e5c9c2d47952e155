// Just enough of CUDA to run csrc/topk_cuda/topk.cu on a CPU, for its tests: a block's threads are
// fibers that run one at a time, the warps in random order, each as far as the barriers let it, so
// that a missing one shows as a wrong answer. Asynchronous copies happen when they are waited for.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define PVP_FAST_EMULATED
#define __device__
#define __global__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr size_t kStack = 1 << 17;

struct meeting {  // of a warp or a block
  int members = 0, arrived = 0;
  int64_t turn = 0;
};

struct fiber {
  ucontext_t context;  // of its start
  jmp_buf place;       // later: quicker, for it makes no system call
  bool started = false;
  std::unique_ptr<char[]> stack;
  int index;
  meeting* at = nullptr;
  int64_t turn = 0;
  bool done = false;
  struct copy {
    void* to;
    const void* from;
    bool inside;
  };
  std::vector<copy> copies;
};

struct block {
  std::vector<fiber> fibers;
  std::vector<meeting> warps;
  std::vector<std::vector<uint64_t>> slots;  // [warp][lane]
  std::vector<const char*> calls;            // [warp]: what its lanes meet in
  meeting all;
  std::vector<char> shared;
  std::function<void()> body;
  ucontext_t beginning;
  jmp_buf scheduler;
  int votes = 0;
};

inline block* now = nullptr;
inline fiber* self = nullptr;
inline std::mt19937 order(1);

inline void leave() {
  if (_setjmp(self->place) == 0) _longjmp(now->scheduler, 1);
}

inline void enter(fiber& f) {
  self = &f;
  if (_setjmp(now->scheduler) != 0) return;
  if (f.started) _longjmp(f.place, 1);
  f.started = true;
  swapcontext(&now->beginning, &f.context);
}

inline void meet(meeting& where) {
  if (++where.arrived == where.members) {
    where.arrived = 0;
    ++where.turn;
    return;
  }
  self->at = &where;
  self->turn = where.turn;
  leave();
}

inline void start() {
  now->body();
  self->done = true;
  for (meeting* left : {&now->warps[self->index / 32], &now->all}) {
    if (--left->members > 0 && left->arrived == left->members) {
      left->arrived = 0;
      ++left->turn;
    }
  }
  leave();
}

// What every lane of the warp brought, by lane.
template <class T>
std::array<T, 32> gather(const char* call, T mine) {
  static_assert(sizeof(T) <= 8);
  const int warp = self->index / 32;
  if (now->warps[warp].arrived == 0) now->calls[warp] = call;
  if (std::strcmp(now->calls[warp], call) != 0) {
    std::fprintf(stderr, "lanes of one warp meet in %s and %s\n", now->calls[warp], call);
    std::abort();
  }
  std::memcpy(&now->slots[warp][self->index % 32], &mine, sizeof mine);
  meet(now->warps[warp]);
  std::array<T, 32> all;
  for (int i = 0; i < 32; ++i) std::memcpy(&all[i], &now->slots[warp][i], sizeof(T));
  meet(now->warps[warp]);
  return all;
}

}  // namespace emulator

inline thread_local dim3 threadIdx, blockIdx;

namespace emulator {

inline void run_block(dim3 threads, size_t shared, std::function<void()> body) {
  const int count = static_cast<int>(threads.x * threads.y);
  block here;
  here.fibers.resize(count);
  here.warps.resize((count + 31) / 32);
  here.slots.assign(here.warps.size(), std::vector<uint64_t>(32));
  here.calls.resize(here.warps.size());
  here.shared.resize(shared + 128);
  std::memset(here.shared.data(), 0xff, here.shared.size());  // NaN to who reads before writing
  here.body = std::move(body);
  here.all.members = count;
  now = &here;
  for (fiber& f : here.fibers) {
    f.index = static_cast<int>(&f - here.fibers.data());
    ++here.warps[f.index / 32].members;
    f.stack.reset(new char[kStack]);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, start, 0);
  }
  // One warp after another, each until it can go no further: the first is far ahead of the last.
  std::vector<int> turn(here.warps.size());
  std::iota(turn.begin(), turn.end(), 0);
  for (bool running = true; running;) {
    running = false;
    bool moved = false;
    std::shuffle(turn.begin(), turn.end(), order);
    for (const int warp : turn) {
      for (bool again = true; again;) {
        again = false;
        for (int i = 32 * warp; i < std::min(count, 32 * (warp + 1)); ++i) {
          fiber& f = here.fibers[i];
          if (f.done) continue;
          running = true;
          if (f.at != nullptr && f.at->turn == f.turn) continue;
          f.at = nullptr;
          threadIdx = dim3(i % threads.x, i / threads.x);
          enter(f);
          moved = again = true;
        }
      }
    }
    if (running && !moved) {
      std::fputs("the threads of a block wait for each other forever\n", stderr);
      std::abort();
    }
  }
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(emulator::now->all); }
inline void __syncwarp() { emulator::meet(emulator::now->warps[emulator::self->index / 32]); }
inline int __syncthreads_or(int vote) {
  emulator::now->votes |= vote;
  __syncthreads();
  const int result = emulator::now->votes;
  __syncthreads();
  emulator::now->votes = 0;
  return result;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::gather("shfl", value)[lane & 31];
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulator::gather("shfl_xor", value)[(emulator::self->index % 32) ^ lanes];
}
inline unsigned __ballot_sync(unsigned, int vote) {
  unsigned mask = 0;
  const std::array<int, 32> votes = emulator::gather("ballot", vote);
  for (int i = 0; i < 32; ++i) mask |= (votes[i] != 0 ? 1u : 0u) << i;
  return mask;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __popc(unsigned mask) { return __builtin_popcount(mask); }
inline int __ffs(int mask) { return __builtin_ffs(mask); }
inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned before = *at;
  *at |= bits;
  return before;
}
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
using std::isnan;

namespace pvp_fast {
namespace {

inline void* dynamic_shared() {
  const auto at = reinterpret_cast<std::uintptr_t>(emulator::now->shared.data());
  return reinterpret_cast<void*>((at + 127) / 128 * 128);
}

inline void copy_async(void* to, const void* from, bool inside) {
  for (const std::uintptr_t at : {reinterpret_cast<std::uintptr_t>(to), reinterpret_cast<std::uintptr_t>(from)}) {
    if (at % 16 != 0) std::abort();
  }
  emulator::self->copies.push_back({to, from, inside});
}

inline void copy_wait() {
  for (const emulator::fiber::copy& c : emulator::self->copies) {
    if (c.inside) {
      std::memcpy(c.to, c.from, 16);
    } else {
      std::memset(c.to, 0, 16);
    }
  }
  emulator::self->copies.clear();
}

inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const std::array<const void*, 32> rows = emulator::gather("ldmatrix", row);
  const int lane = emulator::self->index % 32;
  for (int j = 0; j < 4; ++j) {
    std::memcpy(&to[j], static_cast<const char*>(rows[8 * j + lane / 4]) + 4 * (lane % 4), 4);
  }
}

inline double element(uint32_t pair, int which) {
  const uint32_t bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// By the layout that the PTX manual draws for mma.m16n8k16 with .bf16.
inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const std::array<const uint32_t*, 32> held = emulator::gather("mma", static_cast<const uint32_t*>(mine));
  const int lane = emulator::self->index % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2;
      const uint32_t x = held[row % 8 * 4 + holder][(row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0)];
      const uint32_t w = held[column * 4 + holder][k >= 8 ? 5 : 4];
      sum += element(x, k % 2) * element(w, k % 2);
    }
    sums[i] = static_cast<float>(sum);
  }
  __syncwarp();  // all have read what the others hold
}

}  // namespace
}  // namespace pvp_fast

// The host's side.
using cudaStream_t = struct stream_type*;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
template <class F>
cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class... Taken, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Taken...), Given... given) {
  const dim3 grid = config->gridDim;
  if (grid.y > 65535 || config->dynamicSmemBytes > 160 * 1024) std::abort();
  for (unsigned i = 0; i < grid.x * grid.y; ++i) {
    blockIdx = dim3(i % grid.x, i / grid.x);
    emulator::run_block(config->blockDim, config->dynamicSmemBytes, [&] { kernel(given...); });
  }
  return cudaSuccess;
}
