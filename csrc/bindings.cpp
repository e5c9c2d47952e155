// The module pvp_fast._C: arrays by the buffer protocol, everything by keyword. It knows neither torch
// nor NumPy; pvp_fast/native.py alone calls it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu.h"

namespace py = pybind11;

namespace pvp_fast {

void bind_topk(py::module_& m);  // topk/bindings.cpp
void bind_loss(py::module_& m);  // loss/bindings.cpp
void bind_softmax(py::module_& m);  // loss/softmax_bindings.cpp

static py::dict build_info() {
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

}  // namespace pvp_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled top-k tagging and losses; use them through pvp_fast.topk and pvp_fast.losses.";
  pvp_fast::bind_topk(m);
  pvp_fast::bind_loss(m);
  pvp_fast::bind_softmax(m);
  m.def("isas", &pvp_fast::available_isas,
        "Instruction sets this build has and this processor runs, best first.");
  m.def("build_info", &pvp_fast::build_info, "Compiler, OpenMP, instruction sets and the state of CUDA.");
}
