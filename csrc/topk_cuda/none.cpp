// topk_cuda.h in a build without CUDA.
#include <stdexcept>

#include "topk_cuda/topk_cuda.h"

namespace pvp_fast {

std::string cuda_status() { return "pvp_fast was built without CUDA (PVP_FAST_CUDA, see CMakeLists.txt)"; }

int64_t topk_cuda_parts(scalar, int64_t, int64_t) { throw std::runtime_error(cuda_status()); }

void topk_cuda(const topk_query&, const topk_result&, const cuda_workspace&) {
  throw std::runtime_error(cuda_status());
}

}  // namespace pvp_fast
