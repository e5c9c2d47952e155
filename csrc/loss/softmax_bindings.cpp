// InfoNCE and pooling for Python: what arrays must look like.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "buffers.h"
#include "loss/softmax.h"

namespace py = pybind11;

namespace pvp_fast {
namespace {

// The arrays of a panel, kept while it is used.
struct panel_arrays {
  const buffer products, x_inverse, w_inverse, targets, row_share, column_share;

  panel_arrays(py::handle products, py::handle x_inverse_norm, py::handle w_inverse_norm,
               py::handle targets, py::handle row_share, py::handle column_share)
      : products(products, "products"),
        x_inverse(x_inverse_norm, "x_inverse_norm", true),
        w_inverse(w_inverse_norm, "w_inverse_norm", true),
        targets(targets, "targets", true),
        row_share(row_share, "row_share", !this->targets.given()),
        column_share(column_share, "column_share", !this->targets.given()) {}

  pairs_panel panel(double scale, int64_t first, int threads) const {
    check_threads(threads);
    pairs_panel to{};
    to.products = products.contiguous<const float>({kAnySize, kAnySize});
    to.rows = products.size(0);
    to.columns = products.size(1);
    to.first = first;
    to.x_inverse_norm = x_inverse.contiguous<const float>({to.rows});
    to.w_inverse_norm = w_inverse.contiguous<const float>({to.columns});
    to.scale = static_cast<float>(scale);
    to.targets = targets.contiguous<const float>({to.rows, to.columns});
    to.row_share = row_share.contiguous<const float>({to.rows});
    to.column_share = column_share.contiguous<const float>({to.columns});
    return to;
  }
};

void infonce(py::handle products, double scale, int64_t first, int threads, py::handle row_top,
             py::handle row_total, py::handle column_top, py::handle column_total, py::handle aimed,
             py::handle x_inverse_norm, py::handle w_inverse_norm, py::handle targets,
             py::handle row_share, py::handle column_share) {
  const panel_arrays arrays(products, x_inverse_norm, w_inverse_norm, targets, row_share, column_share);
  const buffer row_top_(row_top, "row_top"), row_total_(row_total, "row_total"),
      column_top_(column_top, "column_top"), column_total_(column_total, "column_total"),
      aimed_(aimed, "aimed");
  const pairs_panel panel = arrays.panel(scale, first, threads);
  const pairs_sums to{row_top_.contiguous<float>({panel.rows}), row_total_.contiguous<float>({panel.rows}),
                      column_top_.contiguous<float>({panel.columns}),
                      column_total_.contiguous<float>({panel.columns}),
                      aimed_.contiguous<float>({panel.rows})};
  const softmax_functions& by = *best(kSoftmaxes, most_isa()).use;
  const py::gil_scoped_release unlocked;
  by.pairs(panel, threads, to);
}

double infonce_gradient(py::handle products, double scale, int64_t first, int threads, py::handle row_top,
                        py::handle row_inverse, py::handle column_top, py::handle column_inverse,
                        py::handle gradients, py::handle x_inverse_norm, py::handle w_inverse_norm,
                        py::handle targets, py::handle row_share, py::handle column_share) {
  const panel_arrays arrays(products, x_inverse_norm, w_inverse_norm, targets, row_share, column_share);
  const buffer row_top_(row_top, "row_top"), row_inverse_(row_inverse, "row_inverse"),
      column_top_(column_top, "column_top"), column_inverse_(column_inverse, "column_inverse"),
      gradients_(gradients, "gradients");
  const pairs_panel panel = arrays.panel(scale, first, threads);
  const pairs_softmax softmax{row_top_.contiguous<const float>({panel.rows}),
                              row_inverse_.contiguous<const float>({panel.rows}),
                              column_top_.contiguous<const float>({panel.columns}),
                              column_inverse_.contiguous<const float>({panel.columns})};
  float* to = gradients_.contiguous<float>({panel.rows, panel.columns});
  const softmax_functions& by = *best(kSoftmaxes, most_isa()).use;
  const py::gil_scoped_release unlocked;
  return by.pairs_gradient(panel, softmax, threads, to);
}

// The arrays of pooling, kept while they are used.
struct pool_arrays {
  const buffer products, offsets, pooled, top, inverse_total, z_inverse, w_inverse;

  pool_arrays(py::handle products, py::handle offsets, py::handle pooled, py::handle top,
              py::handle inverse_total, py::handle z_inverse_norm, py::handle w_inverse_norm)
      : products(products, "products"),
        offsets(offsets, "offsets"),
        pooled(pooled, "pooled"),
        top(top, "top"),
        inverse_total(inverse_total, "inverse_total"),
        z_inverse(z_inverse_norm, "z_inverse_norm", true),
        w_inverse(w_inverse_norm, "w_inverse_norm", true) {}

  // A value of every image and category, whose images may lie apart as those of pooled do.
  template <class T>
  T* of_images(const buffer& from) const {
    T* data = from.strided<T>({kAnySize, products.size(1)});
    if (from.size(0) != pooled.size(0) || from.stride(0) != pooled.stride(0) ||
        (from.size(1) > 1 && from.stride(1) != 1)) {
      from.refuse("must lie in memory as pooled does, without gaps within a row");
    }
    return data;
  }

  pool_task task(double temperature, int threads) const {
    check_threads(threads);
    pool_task to{};
    to.products = products.contiguous<const float>({kAnySize, kAnySize});
    to.columns = products.size(1);
    to.pooled = of_images<float>(pooled);
    to.top = of_images<float>(top);
    to.inverse_total = of_images<float>(inverse_total);
    to.images = pooled.size(0);
    to.stride = pooled.stride(0);
    to.offsets = offsets.contiguous<const int64_t>({to.images + 1});
    bool ascend = to.offsets[0] == 0 && to.offsets[to.images] == products.size(0);
    for (int64_t i = 0; i < to.images; ++i) ascend = ascend && to.offsets[i] <= to.offsets[i + 1];
    if (!ascend) offsets.refuse("must ascend from 0 to the number of regions");
    to.z_inverse_norm = z_inverse.contiguous<const float>({products.size(0)});
    to.w_inverse_norm = w_inverse.contiguous<const float>({to.columns});
    to.temperature = static_cast<float>(temperature);
    return to;
  }
};

void pool(py::handle products, py::handle offsets, double temperature, int threads, py::handle pooled,
          py::handle top, py::handle inverse_total, py::handle z_inverse_norm, py::handle w_inverse_norm) {
  const pool_arrays arrays(products, offsets, pooled, top, inverse_total, z_inverse_norm, w_inverse_norm);
  const pool_task task = arrays.task(temperature, threads);
  const softmax_functions& by = *best(kSoftmaxes, most_isa()).use;
  const py::gil_scoped_release unlocked;
  by.pool(task, threads);
}

double pool_gradient(py::handle products, py::handle offsets, double temperature, int threads,
                     py::handle pooled, py::handle top, py::handle inverse_total, py::handle g,
                     py::handle gradients, py::handle z_inverse_norm, py::handle w_inverse_norm) {
  const pool_arrays arrays(products, offsets, pooled, top, inverse_total, z_inverse_norm, w_inverse_norm);
  const buffer g_(g, "g"), gradients_(gradients, "gradients");
  const pool_task task = arrays.task(temperature, threads);
  const float* from = arrays.of_images<const float>(g_);
  float* to = gradients_.contiguous<float>({arrays.products.size(0), task.columns});
  const softmax_functions& by = *best(kSoftmaxes, most_isa()).use;
  const py::gil_scoped_release unlocked;
  return by.pool_gradient(task, from, threads, to);
}

}  // namespace

void bind_softmax(py::module_& m) {
  using py::arg;
  m.def("infonce", &infonce, py::kw_only(), arg("products"), arg("scale"), arg("first"), arg("threads"),
        arg("row_top"), arg("row_total"), arg("column_top"), arg("column_total"), arg("aimed"),
        arg("x_inverse_norm") = py::none(), arg("w_inverse_norm") = py::none(),
        arg("targets") = py::none(), arg("row_share") = py::none(), arg("column_share") = py::none(),
        "Softmaxes of rows and columns of pairs' products. Contract: loss/softmax.h.");
  m.def("infonce_gradient", &infonce_gradient, py::kw_only(), arg("products"), arg("scale"),
        arg("first"), arg("threads"), arg("row_top"), arg("row_inverse"), arg("column_top"),
        arg("column_inverse"), arg("gradients"), arg("x_inverse_norm") = py::none(),
        arg("w_inverse_norm") = py::none(), arg("targets") = py::none(), arg("row_share") = py::none(),
        arg("column_share") = py::none(),
        "Gradients of pairs' products; returns that of the scale. Contract: loss/softmax.h.");
  m.def("pool", &pool, py::kw_only(), arg("products"), arg("offsets"), arg("temperature"),
        arg("threads"), arg("pooled"), arg("top"), arg("inverse_total"), arg("z_inverse_norm") = py::none(),
        arg("w_inverse_norm") = py::none(),
        "Pool products over regions, with their softmax. Contract: loss/softmax.h.");
  m.def("pool_gradient", &pool_gradient, py::kw_only(), arg("products"), arg("offsets"),
        arg("temperature"), arg("threads"), arg("pooled"), arg("top"), arg("inverse_total"), arg("g"), arg("gradients"),
        arg("z_inverse_norm") = py::none(), arg("w_inverse_norm") = py::none(),
        "Gradients of pooled products; returns that of the temperature. Contract: loss/softmax.h.");
}

}  // namespace pvp_fast
