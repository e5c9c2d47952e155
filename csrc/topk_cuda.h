// The CUDA side of the contract in topk.h. All pointers of the query and the result are on `device`;
// nothing here allocates, waits for the device or copies.
#pragma once

#include <cstdint>
#include <string>

#include "topk.h"

namespace pvp_fast {

constexpr int64_t kCudaMaxK = 256;

struct cuda_workspace {
  float* part_values;           // rows * topk_cuda_parts() * k
  int* part_categories;         // as many
  unsigned long long* nan_row;  // one number, set by the caller to the largest int64; becomes the
                                // first row with a NaN value, if there is one
  int device;
  std::uintptr_t stream;        // cudaStream_t
};

// Empty when kernels can be launched, else the reason why not.
std::string cuda_status();

// Into how many parts the categories are divided for this many rows.
int64_t topk_cuda_parts(int64_t rows, int64_t categories);

// Throws std::invalid_argument (k or categories too large) and std::runtime_error (CUDA's message).
void topk_cuda(const topk_query& query, const topk_result& result, const cuda_workspace& workspace);

}  // namespace pvp_fast
