// Losses for Python: what arrays and settings must look like.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "loss/loss.h"

namespace py = pybind11;

namespace pvp_fast {
namespace {

// Takes the settings of one loss out of a mapping, each by its name, and wants no others.
class named_settings {
 public:
  named_settings(const std::string& kind, const py::dict& from) : kind_(kind), from_(from) {}

  template <class T>
  void take(const char* name, T& to) {
    if (!from_.contains(name)) throw std::invalid_argument("settings of " + kind_ + " lack " + name);
    ++taken_;
    if constexpr (std::is_same_v<T, bool>) {
      to = from_[name].cast<bool>();
    } else {
      to = static_cast<T>(from_[name].cast<double>());
    }
  }

  void finish() const {
    if (taken_ == from_.size()) return;
    throw std::invalid_argument(kind_ + " takes " + std::to_string(taken_) + " settings, not " +
                                py::str(from_).cast<std::string>());
  }

 private:
  const std::string& kind_;
  const py::dict& from_;
  size_t taken_ = 0;
};

loss_settings read_settings(const std::string& kind, const py::dict& from) {
  loss_settings to{};
  named_settings settings(kind, from);
  if (kind == "asl") {
    to.kind = loss_kind::asl;
    settings.take("gamma_pos", to.asl.gamma_pos);
    settings.take("gamma_neg", to.asl.gamma_neg);
    settings.take("clip", to.asl.clip);
    settings.take("eps", to.asl.eps);
    settings.take("detach_focal_weight", to.asl.detach_focal_weight);
  } else if (kind == "focal") {
    to.kind = loss_kind::focal;
    settings.take("alpha", to.focal.alpha);
    settings.take("gamma", to.focal.gamma);
  } else if (kind == "ranking") {
    to.kind = loss_kind::ranking;
    settings.take("margin", to.ranking.margin);
  } else if (kind == "bce" || kind == "siglip") {
    to.kind = loss_kind::bce;
  } else {
    throw std::invalid_argument("kind is '" + kind + "'; give asl, bce, focal, ranking or siglip");
  }
  settings.finish();
  return to;
}

// Bytes that are bool, uint8 or, for partial labels, int8; their rows may lie apart.
void read_labels(const buffer& labels, loss_tile& tile) {
  tile.partial = labels.holds<int8_t>();
  const auto shape = {tile.rows, tile.columns};
  const void* bytes = nullptr;
  if (tile.partial) {
    bytes = labels.strided<const int8_t>(shape);
  } else if (labels.holds<bool>()) {
    bytes = labels.strided<const bool>(shape);
  } else {
    bytes = labels.strided<const uint8_t>(shape);
  }
  tile.labels = static_cast<const int8_t*>(bytes);
  tile.label_stride = labels.stride(0);
  if (tile.columns > 1 && labels.stride(1) != 1) labels.refuse("has gaps within a row; copy it first");
}

struct list_range {
  int64_t begin, end;
};

// Where a row's list lies in indices.
list_range list_of(const buffer& from, const int64_t* offsets, int64_t row, const buffer& indices) {
  const list_range at{offsets[row], offsets[row + 1]};
  if (at.begin < 0 || at.begin > at.end || at.end > indices.size(0)) {
    from.refuse("must ascend from 0 to the length of indices");
  }
  return at;
}

// Whether every list ascends strictly within [0, categories).
bool ascends(py::handle offsets, py::handle indices, int64_t categories) {
  const buffer offsets_(offsets, "offsets"), indices_(indices, "indices");
  const auto* ends = offsets_.contiguous<const int64_t>({kAnySize});
  const auto* found = indices_.contiguous<const int64_t>({kAnySize});
  for (int64_t b = 0; b + 1 < offsets_.size(0); ++b) {
    const list_range at = list_of(offsets_, ends, b, indices_);
    int64_t before = -1;
    for (int64_t i = at.begin; i < at.end; before = found[i++]) {
      if (found[i] <= before || found[i] >= categories) return false;
    }
  }
  return true;
}

// Offsets (rows + 1) into indices, which ascend strictly in a row and, of ranking, are columns.
void read_lists(const buffer& offsets, const buffer& indices, bool ranks, loss_tile& tile) {
  tile.offsets = offsets.contiguous<const int64_t>({tile.rows + 1});
  tile.indices = indices.contiguous<const int64_t>({kAnySize});
  for (int64_t b = 0; b < tile.rows; ++b) {
    const list_range range = list_of(offsets, tile.offsets, b, indices);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t at = tile.indices[i];
      if (i > range.begin && at <= tile.indices[i - 1]) indices.refuse("must ascend strictly within a row");
      if (ranks && (at < 0 || at >= tile.columns)) {
        indices.refuse("must be below " + std::to_string(tile.columns));
      }
    }
  }
}

py::tuple loss(py::handle products, const std::string& kind, const py::dict& settings, double scale,
               double bias, int threads, py::handle labels, py::handle offsets, py::handle indices,
               int64_t first, py::handle x_inverse_norm, py::handle w_inverse_norm,
               py::handle weight) {
  const buffer products_(products, "products"), labels_(labels, "labels", true),
      offsets_(offsets, "offsets", true), indices_(indices, "indices", true),
      x_inverse(x_inverse_norm, "x_inverse_norm", true),
      w_inverse(w_inverse_norm, "w_inverse_norm", true), weight_(weight, "weight", true);
  check_threads(threads);
  if (labels_.given() == offsets_.given() || offsets_.given() != indices_.given()) {
    throw std::invalid_argument("give either labels, or offsets and indices");
  }
  const loss_settings set = read_settings(kind, settings);
  loss_tile tile{};
  tile.products = products_.contiguous<float>({kAnySize, kAnySize});
  tile.rows = products_.size(0);
  tile.columns = products_.size(1);
  tile.x_inverse_norm = x_inverse.contiguous<const float>({tile.rows});
  tile.w_inverse_norm = w_inverse.contiguous<const float>({tile.columns});
  tile.scale = static_cast<float>(scale);
  tile.bias = static_cast<float>(bias);
  const bool ranks = set.kind == loss_kind::ranking;
  if (labels_.given()) {
    read_labels(labels_, tile);
  } else {
    read_lists(offsets_, indices_, ranks, tile);
  }
  tile.first = first;
  tile.weight = weight_.contiguous<const float>({tile.columns});
  if (ranks && (first != 0 || tile.columns >= (int64_t{1} << 31))) {
    throw std::invalid_argument("ranking takes all categories at once: first = 0, fewer than 2^31");
  }
  const loss_functions& by = *best(kLosses, most_isa()).use;
  loss_sums total{0, 0, 0};
  {
    const py::gil_scoped_release unlocked;
    std::vector<loss_sums> of_rows(static_cast<size_t>(tile.rows));
    by.loss(tile, set, threads, of_rows.data());
    for (const loss_sums& row : of_rows) {
      total.loss += row.loss;
      total.dbias += row.dbias;
      total.dscale += row.dscale;
    }
  }
  return py::make_tuple(total.loss, total.dbias, total.dscale);
}

void project(py::handle gradients, py::handle t, py::handle inverse_norm, double factor, int threads) {
  const buffer gradients_(gradients, "gradients"), t_(t, "t"),
      inverse(inverse_norm, "inverse_norm", true);
  check_threads(threads);
  projection task{};
  task.gradients_half = gradients_.holds<uint16_t>();
  task.t_half = t_.holds<uint16_t>();
  task.gradients = task.gradients_half
                       ? static_cast<void*>(gradients_.contiguous<uint16_t>({kAnySize, kAnySize}))
                       : gradients_.contiguous<float>({kAnySize, kAnySize});
  task.rows = gradients_.size(0);
  task.width = gradients_.size(1);
  task.t = task.t_half ? static_cast<const void*>(t_.contiguous<const uint16_t>({task.rows, task.width}))
                       : t_.contiguous<const float>({task.rows, task.width});
  task.inverse_norm = inverse.contiguous<const float>({task.rows});
  task.factor = static_cast<float>(factor);
  const loss_functions& by = *best(kLosses, most_isa()).use;
  const py::gil_scoped_release unlocked;
  by.project(task, threads);
}

// Whether every norm is in [least, most], which NaN is not.
bool norms(py::handle t, py::handle norms, py::handle inverse, double least, double most, bool known,
           int threads) {
  const buffer t_(t, "t"), norms_(norms, "norms"), inverse_(inverse, "inverse");
  check_threads(threads);
  norm_task task{};
  task.half = t_.holds<uint16_t>();
  task.t = task.half ? static_cast<const void*>(t_.contiguous<const uint16_t>({kAnySize, kAnySize}))
                     : t_.contiguous<const float>({kAnySize, kAnySize});
  task.rows = t_.size(0);
  task.width = t_.size(1);
  task.least = static_cast<float>(least);
  task.known = known;
  task.norms = norms_.contiguous<float>({task.rows});
  task.inverse = inverse_.contiguous<float>({task.rows});
  const loss_functions& by = *best(kLosses, most_isa()).use;
  const py::gil_scoped_release unlocked;
  by.norms(task, threads);
  bool usual = true;
  for (int64_t b = 0; b < task.rows; ++b) {
    usual = usual && task.norms[b] >= task.least && task.norms[b] <= static_cast<float>(most);
  }
  return usual;
}

}  // namespace

void bind_loss(py::module_& m) {
  using py::arg;
  m.def("loss", &loss, py::kw_only(), arg("products"), arg("kind"), arg("settings"), arg("scale"),
        arg("bias"), arg("threads"), arg("labels") = py::none(),
        arg("offsets") = py::none(), arg("indices") = py::none(), arg("first") = 0,
        arg("x_inverse_norm") = py::none(), arg("w_inverse_norm") = py::none(),
        arg("weight") = py::none(),
        "Overwrite products by their gradient; returns the loss, dbias and dscale. Contract: loss/loss.h.");
  m.def("ascends", &ascends, py::kw_only(), arg("offsets"), arg("indices"), arg("categories"),
        "Whether each list of indices ascends strictly within [0, categories).");
  m.def("project", &project, py::kw_only(), arg("gradients"), arg("t"), arg("inverse_norm"),
        arg("factor"), arg("threads"),
        "Take out of each gradient what is along its row of t. Contract: loss/loss.h.");
  m.def("norms", &norms, py::kw_only(), arg("t"), arg("norms"), arg("inverse"), arg("least"),
        arg("most"), arg("known"), arg("threads"),
        "Norms, unless known, and their inverses; returns whether all are in [least, most].");
}

}  // namespace pvp_fast
