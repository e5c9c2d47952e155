// The CUDA side of the contract in topk/topk.h. All pointers of the query and the result are on `device`;
// nothing here allocates, waits for the device or copies, so a graph may capture it.
//
// float32: the bits of the CPU. bfloat16: products are exact and summed in float32 by tensor cores,
// in their own order, so the last bits of a score may differ from the CPU's; they depend on the two
// vectors alone, not on the batch or the split of C. x and packed are then contiguous rows of 16-bit
// elements, (rows, columns) and (categories, columns), columns a multiple of 8 (padded with zeros),
// aligned to 16 bytes.
//
// A row with a NaN value gets the count -1 and no entries: nobody waits to report it.
#pragma once

#include <cstdint>
#include <string>

#include "topk/topk.h"

namespace pvp_fast {

constexpr int64_t kCudaMaxK = 256;

struct cuda_workspace {
  float* part_values;     // rows * parts * k
  int* part_categories;   // as many
  int parts;              // of the categories: at most topk_cuda_parts(), which is the best choice
  int device;
  std::uintptr_t stream;  // cudaStream_t
};

// Empty when kernels can be launched, else the reason why not.
std::string cuda_status();

// Into how many parts to divide the categories for this many rows.
int64_t topk_cuda_parts(scalar type, int64_t rows, int64_t categories);

// Throws std::invalid_argument (sizes, dtype, alignment) and std::runtime_error (CUDA's message).
void topk_cuda(const topk_query& query, const topk_result& result, const cuda_workspace& workspace);

}  // namespace pvp_fast
