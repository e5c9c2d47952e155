// Arguments that are arrays, by Python's buffer protocol: nothing is copied, everything is checked.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace pvp_fast {

// A type of numbers, as a buffer's format spells it.
struct element {
  char kind;  // f: float, i: int, u: uint, b: bool
  int64_t bytes;
};

template <class T>
constexpr element element_of() {
  constexpr char kind = std::is_same_v<T, bool>       ? 'b'
                        : std::is_floating_point_v<T> ? 'f'
                        : std::is_signed_v<T>         ? 'i'
                                                      : 'u';
  return {kind, sizeof(T)};
}

constexpr int64_t kAnySize = -1;

// What an argument shows of its memory, which stays until this is gone (with the GIL held).
// Everything here throws std::invalid_argument: the argument's name, what was given, what would work.
class buffer {
 public:
  // None is an argument that was not given, if it may be left out.
  buffer(pybind11::handle from, const char* name, bool optional = false);
  ~buffer() { PyBuffer_Release(&view_); }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;

  bool given() const { return view_.obj != nullptr; }
  template <class T>
  bool holds() const {
    return given() && holds(element_of<T>());
  }
  int64_t size(int axis) const { return axis < view_.ndim ? view_.shape[axis] : kAnySize; }
  int64_t stride(int axis) const { return view_.strides[axis] / view_.itemsize; }  // in elements

  // The memory, its elements being T (writable where T is not const) and its shape this one, where
  // kAnySize takes any; null where the argument was not given.
  template <class T>
  T* strided(std::initializer_list<int64_t> shape) const {
    if (!given()) return nullptr;
    check(element_of<std::remove_const_t<T>>(), shape, !std::is_const_v<T>);
    return static_cast<T*>(view_.buf);
  }

  // As strided, and in C order without gaps.
  template <class T>
  T* contiguous(std::initializer_list<int64_t> shape) const {
    T* data = strided<T>(shape);
    if (given() && !PyBuffer_IsContiguous(&view_, 'C')) refuse("is not contiguous; copy it first");
    return data;
  }

  // Throws: the name, what was given and `what`.
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  bool holds(const element& wanted) const;
  void check(const element& wanted, std::initializer_list<int64_t> shape, bool writable) const;

  Py_buffer view_{};
  const char* name_;
};

inline void check_threads(int threads) {
  if (threads >= 1) return;
  throw std::invalid_argument("threads is " + std::to_string(threads) + "; give at least 1");
}

}  // namespace pvp_fast
