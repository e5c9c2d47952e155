// Top-k for Python: what its arrays must look like. The caller looks for NaN (pvp_fast/topk/ops.py).
#include <pybind11/pybind11.h>


#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "buffers.h"
#include "topk/topk.h"
#include "topk_cuda/topk_cuda.h"

namespace py = pybind11;

namespace pvp_fast {
namespace {

scalar read_type(const std::string& name) {
  if (name == "float32") return scalar::float32;
  if (name == "bfloat16") return scalar::bfloat16;
  if (name == "int8") return scalar::int8;
  throw std::invalid_argument("dtype is '" + name + "'; give float32, bfloat16 or int8");
}

matrix read_matrix(const buffer& from) {
  const float* data = from.strided<const float>({kAnySize, kAnySize});
  if (from.size(1) < 1) from.refuse("must have at least one column");
  return {data, from.size(0), from.size(1), from.stride(0), from.stride(1)};
}

// What both searches ask of their numbers.
void check_numbers(int64_t categories, double threshold, double scale) {
  if (categories < 1) {
    throw std::invalid_argument("categories is " + std::to_string(categories) + "; give at least 1");
  }
  if (std::isnan(threshold)) throw std::invalid_argument("threshold is NaN; give a number");
  if (!std::isfinite(static_cast<float>(scale))) {
    throw std::invalid_argument("scale is " + std::to_string(scale) + "; give one finite in float32");
  }
}

void pack(py::handle w, py::handle panels) {
  const buffer rows(w, "w"), packed(panels, "panels");
  const matrix from = read_matrix(rows);
  if (from.rows < 1) rows.refuse("must have at least one row");
  float* to = packed.contiguous<float>({panel_count(from.rows), from.columns, kLanes});
  const py::gil_scoped_release unlocked;
  pack_cpu(from, to);
}

void encode_int8(py::handle w, py::handle centre, py::handle words) {
  const buffer rows(w, "w"), middle(centre, "centre"), encoded(words, "words");
  const matrix from = read_matrix(rows);
  if (from.columns > kInt8Width) {
    rows.refuse("is too wide; int8 sums fit 32 bits up to " + std::to_string(kInt8Width));
  }
  const float* at = middle.contiguous<const float>({from.columns});
  int32_t* to = encoded.contiguous<int32_t>(
      {from.rows, step_count(scalar::int8, from.columns) + kInt8Stats});
  const py::gil_scoped_release unlocked;
  encode_int8_cpu(from, at, reinterpret_cast<uint32_t*>(to));
}

// The panels' type is that of their elements: float32, bfloat16 as uint16, or int8.
scalar type_of(const buffer& panels) {
  if (panels.holds<float>()) return scalar::float32;
  if (panels.holds<uint16_t>()) return scalar::bfloat16;
  if (panels.holds<int8_t>()) return scalar::int8;
  panels.refuse("must be float32, uint16 (bfloat16) or int8");
}

// The words of a panel: one float32, two bfloat16 or four int8 each.
const float* read_panels(const buffer& panels, scalar type, int64_t categories, int64_t width) {
  const int64_t size = panel_count(categories), steps = step_count(type, width);
  const void* words = nullptr;
  switch (type) {
    case scalar::float32: words = panels.contiguous<const float>({size, steps, kLanes}); break;
    case scalar::bfloat16: words = panels.contiguous<const uint16_t>({size, steps, 2 * kLanes}); break;
    case scalar::int8:
      words = panels.contiguous<const int8_t>({size, steps + kInt8Stats, 4 * kLanes});
      break;
  }
  if (reinterpret_cast<std::uintptr_t>(words) % sizeof(float) != 0) {
    panels.refuse("is misaligned; copy it first");
  }
  return static_cast<const float*>(words);
}

int64_t topk(py::handle x, py::handle panels, int64_t categories, double threshold,
             py::handle thresholds, py::handle bias, double scale, py::handle scores,
             py::handle indices, py::handle counts, int threads, py::handle vectors,
             py::handle centre) {
  const buffer x_(x, "x"), panels_(panels, "panels"), thresholds_(thresholds, "thresholds", true),
      bias_(bias, "bias", true), scores_(scores, "scores"), indices_(indices, "indices"),
      counts_(counts, "counts"), vectors_(vectors, "vectors", true), centre_(centre, "centre", true);
  check_numbers(categories, threshold, scale);
  check_threads(threads);
  topk_query query{};
  query.x = read_matrix(x_);
  const int64_t rows = query.x.rows, width = query.x.columns, k = scores_.size(1);
  query.type = type_of(panels_);
  query.packed = read_panels(panels_, query.type, categories, width);
  query.categories = categories;
  query.k = k;
  query.threshold = static_cast<float>(threshold);
  query.thresholds = thresholds_.contiguous<const float>({categories});
  query.bias = bias_.contiguous<const float>({categories});
  query.scale = static_cast<float>(scale);
  query.threads = threads;
  if (query.type == scalar::int8) {
    if (width > kInt8Width) {
      x_.refuse("is too wide; int8 sums fit 32 bits up to " + std::to_string(kInt8Width));
    }
    if (!vectors_.given()) {
      throw std::invalid_argument("vectors is None; int8 panels need the float32 rows (C, D) too");
    }
    query.vectors = vectors_.contiguous<const float>({categories, width});
    query.centre = centre_.contiguous<const float>({width});
  }
  float* best = scores_.contiguous<float>({rows, kAnySize});
  if (k < 1) scores_.refuse("must have at least one column");
  const topk_result result{best, indices_.contiguous<int64_t>({rows, k}),
                           counts_.contiguous<int64_t>({rows})};
  const isa most = most_isa();
  const py::gil_scoped_release unlocked;
  return topk_cpu(query, result, most);
}

std::string isa_of(const std::string& dtype) {
  return isa_name(dtype.empty() ? most_isa() : topk_isa(read_type(dtype), most_isa()));
}

int64_t cuda_parts(const std::string& dtype, int64_t rows, int64_t categories) {
  return topk_cuda_parts(read_type(dtype), rows, categories);
}

// There is no buffer protocol for a device's memory: addresses are integers, which nothing can check.
template <class T>
T* on_device(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void topk_device(std::uintptr_t x, int64_t rows, int64_t width, int64_t row_stride,
                 int64_t column_stride, std::uintptr_t panels, const std::string& dtype,
                 int64_t categories, int64_t k, double threshold, std::uintptr_t thresholds,
                 std::uintptr_t bias, double scale, std::uintptr_t scores, std::uintptr_t indices,
                 std::uintptr_t counts, std::uintptr_t part_values, std::uintptr_t part_categories,
                 int device, std::uintptr_t stream) {
  check_numbers(categories, threshold, scale);
  if (rows < 0 || width < 1 || k < 1) throw std::invalid_argument("rows >= 0, width >= 1 and k >= 1 are needed");
  const topk_query query{{on_device<const float>(x), rows, width, row_stride, column_stride},
                         on_device<const float>(panels), categories, k, static_cast<float>(threshold),
                         on_device<const float>(thresholds), on_device<const float>(bias),
                         static_cast<float>(scale), 1, read_type(dtype)};
  const topk_result result{on_device<float>(scores), on_device<int64_t>(indices),
                           on_device<int64_t>(counts)};
  const cuda_workspace workspace{on_device<float>(part_values), on_device<int>(part_categories),
                                 static_cast<int>(topk_cuda_parts(query.type, rows, categories)),
                                 device, stream};
  const py::gil_scoped_release unlocked;
  topk_cuda(query, result, workspace);
}

}  // namespace

void bind_topk(py::module_& m) {
  using py::arg;
  m.def("pack", &pack, py::kw_only(), arg("w"), arg("panels"),
        "Write (C, D) float32 w as panels (ceil(C / 32), D, 32) float32.");
  m.def("encode_int8", &encode_int8, py::kw_only(), arg("w"), arg("centre"), arg("words"),
        "Write (C, D) float32 w less its centre (D,) as int32 words of int8 lanes (C, ceil(D / 4) + 5).");
  // By position too: names cost a single query 2 of its microseconds.
  m.def("topk", &topk, arg("x"), arg("panels"), arg("categories"), arg("threshold"),
        arg("thresholds"), arg("bias"), arg("scale"), arg("scores"), arg("indices"), arg("counts"),
        arg("threads"), arg("vectors") = py::none(), arg("centre") = py::none(),
        "Fill scores (B, k), indices and counts; return -1, or the first row with a NaN. Contract: topk/topk.h.");
  m.def("isa", &isa_of, arg("dtype") = "",
        "The instruction set that answers: of top-k on panels of a dtype, or the best that may be used.");
  m.def("cuda_status", &cuda_status, "Empty when the CUDA kernel can be launched, else why not.");
  m.attr("CUDA_MAX_K") = kCudaMaxK;
  m.def("topk_cuda_parts", &cuda_parts, py::kw_only(), arg("dtype"), arg("rows"), arg("categories"),
        "Parts of the categories: the workspaces hold rows * parts * k entries each.");
  m.def("topk_cuda", &topk_device, py::kw_only(), arg("x"), arg("rows"), arg("width"),
        arg("row_stride"), arg("column_stride"), arg("panels"), arg("dtype"), arg("categories"),
        arg("k"), arg("threshold"), arg("thresholds"), arg("bias"), arg("scale"), arg("scores"),
        arg("indices"), arg("counts"), arg("part_values"), arg("part_categories"), arg("device"),
        arg("stream"), "As topk, on a device, without waiting. Contract: topk_cuda/topk_cuda.h.");
}

}  // namespace pvp_fast
