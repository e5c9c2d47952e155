#include "buffers.h"

#include <string>
#include <vector>

namespace py = pybind11;

namespace pvp_fast {
namespace {

std::string name_of(const element& type) {
  if (type.kind == 'b') return "bool";
  const char* kind = type.kind == 'f'   ? "float"
                     : type.kind == 'i' ? "int"
                     : type.kind == 'u' ? "uint"
                                        : "other";
  return kind + std::to_string(8 * type.bytes);
}

// The numbers of a buffer in native byte order; '?' for all else.
element element_in(const Py_buffer& view) {
  const char* format = view.format != nullptr ? view.format : "B";
  if (*format == '@' || *format == '=') ++format;
  const char code = format[0] == '\0' || format[1] != '\0' ? '\0' : *format;
  const auto is_one_of = [code](const char* codes) {
    return code != '\0' && std::string(codes).find(code) != std::string::npos;
  };
  const char kind = is_one_of("efd")      ? 'f'
                    : is_one_of("bhilqn") ? 'i'
                    : is_one_of("BHILQN") ? 'u'
                    : is_one_of("?")      ? 'b'
                                          : '?';
  return {kind, view.itemsize};
}

std::string shown(const int64_t* sizes, size_t count) {
  std::string text = "(";
  for (size_t i = 0; i < count; ++i) {
    text += (i ? ", " : "") + (sizes[i] == kAnySize ? "any" : std::to_string(sizes[i]));
  }
  return text + (count == 1 ? ",)" : ")");
}

}  // namespace

buffer::buffer(py::handle from, const char* name, bool optional) : name_(name) {
  if (optional && from.is_none()) return;
  if (PyObject_GetBuffer(from.ptr(), &view_, PyBUF_RECORDS_RO) == 0) return;
  PyErr_Clear();
  throw std::invalid_argument(std::string(name) + " is a " + Py_TYPE(from.ptr())->tp_name +
                              "; give an array, such as a NumPy array or tensor.numpy()");
}

bool buffer::holds(const element& wanted) const {
  const element type = element_in(view_);
  return type.kind == wanted.kind && type.bytes == wanted.bytes;
}

void buffer::refuse(const std::string& what) const {
  const std::vector<int64_t> sizes(view_.shape, view_.shape + view_.ndim);
  throw std::invalid_argument(std::string(name_) + ", " + name_of(element_in(view_)) + " " +
                              shown(sizes.data(), sizes.size()) + ", " + what);
}

void buffer::check(const element& wanted, std::initializer_list<int64_t> shape, bool writable) const {
  bool good = holds(wanted) && static_cast<size_t>(view_.ndim) == shape.size();
  for (size_t i = 0; good && i < shape.size(); ++i) {
    const int64_t size = shape.begin()[i];
    good = size == kAnySize || size == view_.shape[i];
  }
  if (!good) refuse("must be " + name_of(wanted) + " " + shown(shape.begin(), shape.size()));
  if (writable && view_.readonly) refuse("is read-only; give memory to write to");
  bool aligned = reinterpret_cast<std::uintptr_t>(view_.buf) % static_cast<size_t>(wanted.bytes) == 0;
  for (int i = 0; i < view_.ndim; ++i) aligned = aligned && view_.strides[i] % wanted.bytes == 0;
  if (!aligned) refuse("is misaligned; copy it first");
}

}  // namespace pvp_fast
