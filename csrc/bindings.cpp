// The Python face of csrc/: argument checks and nothing else. Addresses come in as integers, so
// that the extension knows neither torch nor NumPy; pvp_fast/topk/index.py owns shapes and messages.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "loss/loss.h"
#include "topk/topk.h"
#if defined(PVP_FAST_HAS_CUDA)
#include "topk_cuda/topk_cuda.h"
#endif

namespace py = pybind11;
using namespace pvp_fast;

namespace {

template <class T>
T* pointer(std::uintptr_t address, const char* name, bool optional = false) {
  if (address == 0 && !optional) throw std::invalid_argument(std::string(name) + " is a null pointer");
  if (address % alignof(T) != 0) throw std::invalid_argument(std::string(name) + " is misaligned");
  return reinterpret_cast<T*>(address);
}

void check(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

matrix read_matrix(std::uintptr_t address, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride, const char* name) {
  check(rows >= 0, "rows must be >= 0");
  check(columns >= 1, "columns must be >= 1");
  return {pointer<const float>(address, name, rows == 0), rows, columns, row_stride, column_stride};
}

void pack(std::uintptr_t w, int64_t categories, int64_t width, int64_t row_stride,
          int64_t column_stride, std::uintptr_t packed) {
  check(categories >= 1, "categories must be >= 1");
  const matrix from = read_matrix(w, categories, width, row_stride, column_stride, "w");
  float* to = pointer<float>(packed, "packed");
  const py::gil_scoped_release unlocked;
  pack_cpu(from, to);
}

topk_query read_query(std::uintptr_t x, int64_t rows, int64_t width, int64_t row_stride,
                      int64_t column_stride, std::uintptr_t packed, int64_t categories, int64_t k,
                      double threshold, std::uintptr_t thresholds, std::uintptr_t bias,
                      double scale, int threads) {
  check(categories >= 1, "categories must be >= 1");
  check(k >= 1, "k must be >= 1");
  check(threads >= 1, "threads must be >= 1");
  check(!std::isnan(threshold), "threshold is NaN");
  check(std::isfinite(scale), "scale must be finite");
  return {read_matrix(x, rows, width, row_stride, column_stride, "x"),
          pointer<const float>(packed, "packed"),
          categories,
          k,
          static_cast<float>(threshold),
          pointer<const float>(thresholds, "thresholds", true),
          pointer<const float>(bias, "bias", true),
          static_cast<float>(scale),
          threads};
}

scalar read_type(const std::string& name) {
  if (name == "float32") return scalar::float32;
  if (name == "bfloat16") return scalar::bfloat16;
  if (name == "int8") return scalar::int8;
  throw std::invalid_argument("dtype must be float32, bfloat16 or int8");
}

topk_result read_result(std::uintptr_t scores, std::uintptr_t indices, std::uintptr_t counts,
                        bool empty) {
  return {pointer<float>(scores, "scores", empty), pointer<int64_t>(indices, "indices", empty),
          pointer<int64_t>(counts, "counts", empty)};
}

int64_t topk(std::uintptr_t x, int64_t rows, int64_t width, int64_t row_stride,
             int64_t column_stride, std::uintptr_t packed, int64_t categories, int64_t k,
             double threshold, std::uintptr_t thresholds, std::uintptr_t bias, double scale,
             int threads, const std::string& isa, std::uintptr_t scores, std::uintptr_t indices,
             std::uintptr_t counts, const std::string& dtype, std::uintptr_t vectors,
             std::uintptr_t centre) {
  topk_query query = read_query(x, rows, width, row_stride, column_stride, packed, categories, k,
                                threshold, thresholds, bias, scale, threads);
  query.type = read_type(dtype);
  query.vectors = pointer<const float>(vectors, "vectors", query.type != scalar::int8);
  query.centre = pointer<const float>(centre, "centre", true);
  check(query.type != scalar::int8 || width <= kInt8Width, "width is too large for int8");
  const topk_result result = read_result(scores, indices, counts, rows == 0);
  const py::gil_scoped_release unlocked;
  return topk_cpu(query, result, isa);
}

loss_kind read_kind(const std::string& name) {
  if (name == "asl") return loss_kind::asl;
  if (name == "bce") return loss_kind::bce;
  if (name == "focal") return loss_kind::focal;
  if (name == "ranking") return loss_kind::ranking;
  throw std::invalid_argument("kind must be asl, bce, focal or ranking");
}

void loss(std::uintptr_t products, int64_t rows, int64_t columns, std::uintptr_t row_factor,
          std::uintptr_t column_factor, double scale, double bias, std::uintptr_t dense,
          int64_t label_stride, bool partial, std::uintptr_t offsets, std::uintptr_t indices,
          int64_t first, std::uintptr_t weight, const std::string& kind, double gamma_pos,
          double gamma_neg, double clip, double eps, bool detach, double alpha, double gamma,
          double margin, int threads, const std::string& isa, std::uintptr_t sums,
          std::uintptr_t scratch) {
  check(rows >= 0 && columns >= 0, "rows and columns must be >= 0");
  check(threads >= 1, "threads must be >= 1");
  const bool empty = rows == 0 || columns == 0;
  check(empty || (dense == 0) != (offsets == 0), "give either dense labels or offsets");
  const loss_tile tile{pointer<float>(products, "products", empty),
                       rows,
                       columns,
                       pointer<const float>(row_factor, "row_factor", true),
                       pointer<const float>(column_factor, "column_factor", true),
                       static_cast<float>(scale),
                       static_cast<float>(bias),
                       pointer<const int8_t>(dense, "dense", true),
                       label_stride,
                       partial,
                       pointer<const int64_t>(offsets, "offsets", true),
                       pointer<const int64_t>(indices, "indices", true),
                       first,
                       pointer<const float>(weight, "weight", true)};
  const loss_settings settings{read_kind(kind), static_cast<float>(gamma_pos),
                               static_cast<float>(gamma_neg), static_cast<float>(clip),
                               static_cast<float>(eps), detach, static_cast<float>(alpha),
                               static_cast<float>(gamma), static_cast<float>(margin)};
  const bool ranks = settings.kind == loss_kind::ranking;
  check(!ranks || (first == 0 && columns < (int64_t{1} << 31)), "ranking takes all categories at once");
  uint32_t* words = pointer<uint32_t>(scratch, "scratch", !ranks || empty);
  loss_sums* of_rows = pointer<loss_sums>(sums, "sums", rows == 0);
  const py::gil_scoped_release unlocked;
  loss_cpu(tile, settings, threads, isa, of_rows, words);
}

// float, or bfloat16 bits, which need only two-byte alignment.
void* read_half(std::uintptr_t address, bool half, const char* name, bool optional) {
  if (half) return pointer<uint16_t>(address, name, optional);
  return pointer<float>(address, name, optional);
}

void project(std::uintptr_t gradients, bool gradients_half, std::uintptr_t rows_of, bool rows_half,
             std::uintptr_t inverse, int64_t rows, int64_t width, double factor, int threads,
             const std::string& isa) {
  check(rows >= 0 && width >= 0, "rows and width must be >= 0");
  check(threads >= 1, "threads must be >= 1");
  const bool empty = rows == 0 || width == 0;
  const projection task{read_half(gradients, gradients_half, "gradients", empty),
                        gradients_half,
                        read_half(rows_of, rows_half, "rows_of", empty),
                        rows_half,
                        pointer<const float>(inverse, "inverse", true),
                        rows,
                        width,
                        static_cast<float>(factor)};
  const py::gil_scoped_release unlocked;
  project_cpu(task, threads, isa);
}

#if defined(PVP_FAST_HAS_CUDA)

std::string cuda_reason() { return cuda_status(); }

int64_t cuda_parts(const std::string& dtype, int64_t rows, int64_t categories) {
  return topk_cuda_parts(read_type(dtype), rows, categories);
}

void topk_device(std::uintptr_t x, int64_t rows, int64_t width, int64_t row_stride,
                 int64_t column_stride, std::uintptr_t packed, int64_t categories, int64_t k,
                 double threshold, std::uintptr_t thresholds, std::uintptr_t bias, double scale,
                 std::uintptr_t scores, std::uintptr_t indices, std::uintptr_t counts,
                 std::uintptr_t part_values, std::uintptr_t part_categories,
                 int device, std::uintptr_t stream, const std::string& dtype) {
  topk_query query = read_query(x, rows, width, row_stride, column_stride, packed, categories, k,
                                threshold, thresholds, bias, scale, 1);
  query.type = read_type(dtype);
  const topk_result result = read_result(scores, indices, counts, rows == 0);
  const cuda_workspace workspace{pointer<float>(part_values, "part_values", rows == 0),
                                 pointer<int>(part_categories, "part_categories", rows == 0),
                                 static_cast<int>(topk_cuda_parts(query.type, rows, categories)),
                                 device, stream};
  const py::gil_scoped_release unlocked;
  topk_cuda(query, result, workspace);
}

#else

std::string cuda_reason() { return "pvp_fast was built without CUDA (PVP_FAST_CUDA, see CMakeLists.txt)"; }

#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = PVP_FAST_COMPILER;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["isas"] = available_isas();
  info["cuda"] = PVP_FAST_CUDA_NOTE;  // compiler and architectures, or why there is none
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled top-k tagging and losses; use them through pvp_fast.topk and pvp_fast.losses.";
  m.attr("LANES") = kLanes;
  m.attr("INT8_STATS") = kInt8Stats;
  m.attr("INT8_WIDTH") = kInt8Width;
  m.def("pack", &pack, py::arg("w"), py::arg("categories"), py::arg("width"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("packed"),
        "Write ceil(categories / LANES) panels of [width][LANES] float32 to the address `packed`.");
  m.def("topk", &topk, py::arg("x"), py::arg("rows"), py::arg("width"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("packed"), py::arg("categories"), py::arg("k"),
        py::arg("threshold"), py::arg("thresholds"), py::arg("bias"), py::arg("scale"),
        py::arg("threads"), py::arg("isa"), py::arg("scores"), py::arg("indices"),
        py::arg("counts"), py::arg("dtype") = "float32", py::arg("vectors") = 0,
        py::arg("centre") = 0,
        "Fill scores, indices and counts; return -1, or the first row with a NaN. Contract: topk/topk.h.");
  m.def("loss", &loss, py::arg("products"), py::arg("rows"), py::arg("columns"),
        py::arg("row_factor"), py::arg("column_factor"), py::arg("scale"), py::arg("bias"),
        py::arg("dense"), py::arg("label_stride"), py::arg("partial"), py::arg("offsets"),
        py::arg("indices"), py::arg("first"), py::arg("weight"), py::arg("kind"),
        py::arg("gamma_pos"), py::arg("gamma_neg"), py::arg("clip"), py::arg("eps"),
        py::arg("detach"), py::arg("alpha"), py::arg("gamma"), py::arg("margin"), py::arg("threads"),
        py::arg("isa"), py::arg("sums"), py::arg("scratch"),
        "Overwrite products by their gradient; fill (rows, 3) float64 sums. Contract: loss/loss.h.");
  m.def("project", &project, py::arg("gradients"), py::arg("gradients_half"), py::arg("rows_of"),
        py::arg("rows_half"), py::arg("inverse"), py::arg("rows"), py::arg("width"),
        py::arg("factor"), py::arg("threads"), py::arg("isa"),
        "Take out of each gradient what is along its row. Contract: loss/loss.h.");
  m.def("isas", &available_isas, "Instruction sets this build has and this processor runs, best first.");
  m.def("cuda_status", &cuda_reason, "Empty when the CUDA kernel can be launched, else why not.");
#if defined(PVP_FAST_HAS_CUDA)
  m.attr("CUDA_MAX_K") = kCudaMaxK;
  m.def("topk_cuda_parts", &cuda_parts, py::arg("dtype"), py::arg("rows"), py::arg("categories"),
        "Parts of the categories: the workspaces hold rows * parts * k entries each.");
  m.def("topk_cuda", &topk_device, py::arg("x"), py::arg("rows"), py::arg("width"),
        py::arg("row_stride"), py::arg("column_stride"), py::arg("packed"), py::arg("categories"),
        py::arg("k"), py::arg("threshold"), py::arg("thresholds"), py::arg("bias"),
        py::arg("scale"), py::arg("scores"), py::arg("indices"), py::arg("counts"),
        py::arg("part_values"), py::arg("part_categories"), py::arg("device"), py::arg("stream"),
        py::arg("dtype"), "As topk, on a device, without waiting. Contract: topk_cuda/topk_cuda.h.");
#endif
  m.def("build_info", &build_info, "Compiler, OpenMP, instruction sets and the state of CUDA.");
}
