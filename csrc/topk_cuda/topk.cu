// Batched top-k on CUDA, after the contract of topk_cuda/topk_cuda.h. The categories are divided into parts; a
// scan finds the k best of every row and part, a second kernel merges the parts of a row.
//
// The bfloat16 scan is in topk_cuda/bf16.cuh. The float32 scan is here: the same chain of fused
// multiply-adds as the CPU, so the same bits. One warp scans a part of the panels for kRows queries:
// lane c of the warp holds category c of the panel. The running top k lives in registers, sorted,
// spread over the lanes; most scores fail the comparison with its last entry and cost nothing more.
//
// Memory moved by it: the packed w once per kRows queries, x once per panel through the first-level
// cache, and rows * parts * k entries of 8 bytes between the two kernels.
#include "topk_cuda/topk_cuda.h"

#include <cuda_runtime.h>

#include "topk_cuda/bf16.cuh"
#include "topk_cuda/warp.cuh"

#include <algorithm>
#include <climits>
#include <cmath>
#include <stdexcept>

namespace pvp_fast {
namespace {

constexpr int kRows = 4;          // queries of one warp
constexpr int kWarpsPerBlock = 4;
constexpr int64_t kWantedWarps = 4096;  // enough to fill the largest devices several times
constexpr int64_t kWantedBlocks = 264;  // of the bfloat16 scan: two on each multiprocessor of an H100

void check(cudaError_t status, const char* action) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(action) + ": " + cudaGetErrorString(status));
}

// Makes a device current for the scope.
class device_scope {
 public:
  explicit device_scope(int device) {
    check(cudaGetDevice(&before_), "cannot ask for the current CUDA device");
    check(cudaSetDevice(device), "cannot select the CUDA device");
  }
  ~device_scope() { cudaSetDevice(before_); }
  device_scope(const device_scope&) = delete;
  device_scope& operator=(const device_scope&) = delete;

 private:
  int before_ = 0;
};

// part_values, part_categories: [rows][parts][k].
template <int S>
__global__ void scan_kernel(topk_query q, int parts, float* part_values, int* part_categories) {
  const int lane = threadIdx.x;
  const int part = blockIdx.y * kWarpsPerBlock + threadIdx.y;
  if (part >= parts) return;  // the whole warp
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t panels = (q.categories + kLanes - 1) / kLanes;
  const int64_t begin = panels * part / parts;
  const int64_t end = panels * (part + 1) / parts;
  const int k = static_cast<int>(q.k);

  const float* rows[kRows];
  warp_list<S> best[kRows];
  bool nan[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // Rows past the end repeat the last one; their lists are not written.
    rows[r] = q.x.data + min(first + r, q.x.rows - 1) * q.x.row_stride;
    best[r].clear(k, lane);
  }
  for (int64_t panel = begin; panel < end; ++panel) {
    const float* w = q.packed + panel * q.x.columns * kLanes + lane;
    float sums[kRows] = {};
    for (int64_t d = 0; d < q.x.columns; ++d) {
      const float column = w[d * kLanes];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r] = fmaf(rows[r][d * q.x.column_stride], column, sums[r]);
      }
    }
    const int64_t category = panel * kLanes + lane;
    const bool valid = category < q.categories;
    const float bias = valid && q.bias ? q.bias[category] : 0.0f;
    const float lowest = valid && q.thresholds ? q.thresholds[category] : -INFINITY;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float value = fmaf(q.scale, sums[r], bias);
      nan[r] = nan[r] || (valid && isnan(value));
      const bool offered = valid && value >= lowest && value >= q.threshold;
      best[r].take(value, static_cast<int>(category), offered, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool spoilt = __any_sync(kAll, nan[r]) != 0;
    if (first + r < q.x.rows) {
      const int64_t at = ((first + r) * parts + part) * k;
      best[r].write(part_values + at, part_categories + at, k, lane);
      __syncwarp();
      if (spoilt && lane == 0) part_categories[at] = kNanRow;
    }
  }
}

// One warp a row.
template <int S>
__global__ void merge_kernel(int64_t rows, int parts, int k, const float* part_values,
                             const int* part_categories, topk_result out) {
  const int lane = threadIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.y;
  if (row >= rows) return;  // the whole warp
  warp_list<S> best;
  best.clear(k, lane);
  const int64_t total = static_cast<int64_t>(parts) * k;
  bool nan = false;
  for (int64_t at = 0; at < total; at += 32) {
    const bool inside = at + lane < total;
    const float value = inside ? part_values[row * total + at + lane] : -INFINITY;
    const int category = inside ? part_categories[row * total + at + lane] : kAbsent;
    nan = nan || category == kNanRow;
    best.take(value, category, category != kAbsent && category != kNanRow, lane);
  }
  const bool spoilt = __any_sync(kAll, nan) != 0;
  int count = 0;
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const int at = best.rank(i, k, lane);
    const bool there = !spoilt && at >= 0 && best.categories[i] != kAbsent;
    count += __popc(__ballot_sync(kAll, there));
    if (at >= 0) {
      out.scores[row * k + at] = there ? best.values[i] : -INFINITY;
      out.indices[row * k + at] = there ? best.categories[i] : -1;
    }
  }
  if (lane == 0) out.counts[row] = spoilt ? -1 : count;
}

unsigned block_count(int64_t n, int64_t size) { return static_cast<unsigned>((n + size - 1) / size); }

template <class... Taken, class... Given>
void launch(const char* what, dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
            void (*kernel)(Taken...), Given... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

template <int S>
void run(const topk_query& q, const topk_result& out, const cuda_workspace& work) {
  const auto stream = reinterpret_cast<cudaStream_t>(work.stream);
  const dim3 warps(32, kWarpsPerBlock);
  const int k = static_cast<int>(q.k), parts = work.parts;
  if (q.type == scalar::bfloat16) {
    const size_t size = sizeof(scan_shared);
    check(cudaFuncSetAttribute(scan_bf16_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(size)),
          "cannot reserve shared memory for the CUDA top-k scan");
    launch("cannot launch the CUDA top-k scan",
           dim3(block_count(q.x.rows, kTileQueries), static_cast<unsigned>(parts)), dim3(kScanThreads),
           size, stream, scan_bf16_kernel<S>, q, parts, work.part_values, work.part_categories);
  } else {
    launch("cannot launch the CUDA top-k scan",
           dim3(block_count(q.x.rows, kRows), block_count(parts, kWarpsPerBlock)), warps, 0, stream,
           scan_kernel<S>, q, parts, work.part_values, work.part_categories);
  }
  launch("cannot launch the CUDA top-k merge", dim3(block_count(q.x.rows, kWarpsPerBlock)), warps, 0,
         stream, merge_kernel<S>, q.x.rows, parts, k, static_cast<const float*>(work.part_values),
         static_cast<const int*>(work.part_categories), out);
}

}  // namespace

std::string cuda_status() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return std::string("no usable CUDA driver: ") + cudaGetErrorString(status);
  return devices == 0 ? "no CUDA device" : "";
}

int64_t topk_cuda_parts(scalar type, int64_t rows, int64_t categories) {
  const bool bf16 = type == scalar::bfloat16;
  const int64_t groups = block_count(std::max<int64_t>(rows, 1), bf16 ? kTileQueries : kRows);
  const int64_t most = bf16 ? (categories + kTileCategories - 1) / kTileCategories : panel_count(categories);
  return std::clamp<int64_t>((bf16 ? kWantedBlocks : kWantedWarps) / groups, 1, most);
}

void topk_cuda(const topk_query& q, const topk_result& out, const cuda_workspace& work) {
  if (q.x.rows == 0) return;
  if (q.k > kCudaMaxK) throw std::invalid_argument("k must be <= 256 for the CUDA kernel");
  if (q.categories >= INT_MAX) {
    throw std::invalid_argument("categories must be < 2^31 - 1 for the CUDA kernel");
  }
  if (q.x.rows > int64_t{INT_MAX} * kRows) {
    throw std::invalid_argument("x must have fewer than 2^33 - 4 rows for the CUDA kernel");
  }
  if (work.parts < 1 || work.parts > topk_cuda_parts(q.type, q.x.rows, q.categories)) {
    throw std::invalid_argument("parts is out of range");
  }
  if (q.type == scalar::int8) throw std::invalid_argument("dtype must be float32 or bfloat16");
  if (q.type == scalar::bfloat16) {
    const auto aligned = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 == 0; };
    if (q.x.columns % 8 != 0 || !aligned(q.x.data) || !aligned(q.packed)) {
      throw std::invalid_argument("bfloat16 rows must be aligned to 16 bytes, a multiple of 8 wide");
    }
  }
  const device_scope scope(work.device);
  const auto chosen = q.k <= 32 ? run<1> : q.k <= 64 ? run<2> : q.k <= 128 ? run<4> : run<8>;
  chosen(q, out, work);
}

}  // namespace pvp_fast
