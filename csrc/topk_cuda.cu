// Batched top-k on CUDA, after the contract of topk.h: the same chain of fused multiply-adds as the
// CPU, so the same bits. One warp scans a part of the panels for kRows queries: lane c of the warp
// holds category c of the panel. The running top k lives in registers, sorted, spread over the
// lanes; most scores fail the comparison with its last entry and cost nothing more. A second
// kernel merges the parts of a row.
//
// Memory moved: the packed w once per kRows queries, x once per panel through the first-level
// cache, and rows * parts * k entries of 8 bytes between the two kernels.
#include "topk_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <stdexcept>

namespace pvp_fast {
namespace {

constexpr int kRows = 4;          // queries of one warp
constexpr int kWarpsPerBlock = 4;
constexpr int64_t kWantedWarps = 4096;  // enough to fill the largest devices several times
constexpr unsigned kAll = 0xffffffffu;

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

__device__ bool better(float value, int category, float other_value, int other_category) {
  return value > other_value || (value == other_value && category < other_category);
}

// The k best entries, best first, in the last k of 32 * S positions; position i * 32 + lane is
// entry i of a lane. Positions before them hold (inf, -1), better than every real entry, so that
// the k-th best is always in the last one: registers cannot be indexed by a variable. Absent
// entries are (-inf, INT_MAX): worse than every real one, a score of -inf included.
template <int S>
struct warp_list {
  float values[S];
  int categories[S];

  __device__ void clear(int k, int lane) {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const bool used = rank(i, k, lane) >= 0;
      values[i] = used ? -INFINITY : INFINITY;
      categories[i] = used ? INT_MAX : -1;
    }
  }

  // Of entry i of this lane: 0 is the best; negative before the list.
  static __device__ int rank(int i, int k, int lane) { return i * 32 + lane - (32 * S - k); }

  // The same candidate in all lanes. Entries after it move back by one position.
  __device__ void insert(float value, int category, int lane) {
    float last_value = 0.0f;  // of position i * 32 - 1, from lane 31 of the entry before
    int last_category = 0;
    bool last_moves = false;
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const bool moves = better(value, category, values[i], categories[i]);
      float before_value = __shfl_up_sync(kAll, values[i], 1);
      int before_category = __shfl_up_sync(kAll, categories[i], 1);
      bool before_moves = __shfl_up_sync(kAll, static_cast<int>(moves), 1) != 0;
      const float end_value = __shfl_sync(kAll, values[i], 31);
      const int end_category = __shfl_sync(kAll, categories[i], 31);
      const bool end_moves = __shfl_sync(kAll, static_cast<int>(moves), 31) != 0;
      if (lane == 0) {
        before_value = last_value;
        before_category = last_category;
        before_moves = last_moves;
      }
      if (moves) {
        values[i] = before_moves ? before_value : value;
        categories[i] = before_moves ? before_category : category;
      }
      last_value = end_value;
      last_category = end_category;
      last_moves = end_moves;
    }
  }

  // Takes at most one candidate of each lane.
  __device__ void take(float value, int category, bool offered, int lane) {
    const float cut_value = __shfl_sync(kAll, values[S - 1], 31);
    const int cut_category = __shfl_sync(kAll, categories[S - 1], 31);
    unsigned waiting =
        __ballot_sync(kAll, offered && better(value, category, cut_value, cut_category));
    while (waiting != 0) {
      const int from = __ffs(waiting) - 1;
      waiting &= waiting - 1;
      insert(__shfl_sync(kAll, value, from), __shfl_sync(kAll, category, from), lane);
    }
  }

  __device__ void write(float* to_values, int* to_categories, int k, int lane) const {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const int at = rank(i, k, lane);
      if (at >= 0) {
        to_values[at] = values[i];
        to_categories[at] = categories[i];
      }
    }
  }
};

// part_values, part_categories: [rows][parts][k]. nan_row: one number, lowered to the first NaN row.
template <int S>
__global__ void scan_kernel(topk_query q, int64_t panels, int parts, float* part_values, int* part_categories,
                            unsigned long long* nan_row) {
  const int lane = threadIdx.x;
  const int part = blockIdx.y * kWarpsPerBlock + threadIdx.y;
  if (part >= parts) return;  // the whole warp
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t begin = panels * part / parts;
  const int64_t end = panels * (part + 1) / parts;
  const int k = static_cast<int>(q.k);

  const float* rows[kRows];
  warp_list<S> best[kRows];
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
      if (valid && isnan(value) && first + r < q.x.rows) {
        atomicMin(nan_row, static_cast<unsigned long long>(first + r));
      }
      const bool offered = valid && value >= lowest && value >= q.threshold;
      best[r].take(value, static_cast<int>(category), offered, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first + r < q.x.rows) {
      const int64_t at = ((first + r) * parts + part) * k;
      best[r].write(part_values + at, part_categories + at, k, lane);
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
  for (int64_t at = 0; at < total; at += 32) {
    const bool inside = at + lane < total;
    const float value = inside ? part_values[row * total + at + lane] : -INFINITY;
    const int category = inside ? part_categories[row * total + at + lane] : INT_MAX;
    best.take(value, category, category != INT_MAX, lane);
  }
  int count = 0;
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const int at = best.rank(i, k, lane);
    const bool there = at >= 0 && best.categories[i] != INT_MAX;
    count += __popc(__ballot_sync(kAll, there));
    if (at >= 0) {
      out.scores[row * k + at] = there ? best.values[i] : -INFINITY;
      out.indices[row * k + at] = there ? best.categories[i] : -1;
    }
  }
  if (lane == 0) out.counts[row] = count;
}

template <int S>
void launch(const topk_query& q, const topk_result& out, int parts, float* part_values,
            int* part_categories, unsigned long long* nan_row, cudaStream_t stream) {
  const dim3 threads(32, kWarpsPerBlock);
  const auto blocks = [](int64_t n, int64_t size) {
    return static_cast<unsigned>((n + size - 1) / size);
  };
  const dim3 grid(blocks(q.x.rows, kRows), blocks(parts, kWarpsPerBlock));
  scan_kernel<S><<<grid, threads, 0, stream>>>(q, panel_count(q.categories), parts, part_values,
                                               part_categories, nan_row);
  check(cudaGetLastError(), "cannot launch the CUDA top-k scan");
  merge_kernel<S><<<blocks(q.x.rows, kWarpsPerBlock), threads, 0, stream>>>(
      q.x.rows, parts, static_cast<int>(q.k), part_values, part_categories, out);
  check(cudaGetLastError(), "cannot launch the CUDA top-k merge");
}

}  // namespace

std::string cuda_status() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return std::string("no usable CUDA driver: ") + cudaGetErrorString(status);
  return devices == 0 ? "no CUDA device" : "";
}

int64_t topk_cuda_parts(int64_t rows, int64_t categories) {
  const int64_t groups = (rows + kRows - 1) / kRows;
  return std::clamp<int64_t>(kWantedWarps / std::max<int64_t>(groups, 1), 1, panel_count(categories));
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
  const device_scope scope(work.device);
  const auto stream = reinterpret_cast<cudaStream_t>(work.stream);
  const int parts = static_cast<int>(topk_cuda_parts(q.x.rows, q.categories));
  const auto run = q.k <= 32 ? launch<1> : q.k <= 64 ? launch<2> : q.k <= 128 ? launch<4> : launch<8>;
  run(q, out, parts, work.part_values, work.part_categories, work.nan_row, stream);
}

}  // namespace pvp_fast
