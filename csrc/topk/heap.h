// The k best of a row so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace pvp_fast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct entry {
  float value;
  int64_t category;
};

// A total order, so that the answer does not depend on how the work was cut. An object rather than a
// function, so that the standard heaps inline it.
struct better_entry {
  bool operator()(const entry& a, const entry& b) const {
    return a.value > b.value || (a.value == b.value && a.category < b.category);
  }
};
constexpr better_entry better{};

// A heap with the worst at the front once full.
struct row_state {
  entry* heap;
  int64_t count;
  int64_t capacity;

  bool full() const { return count == capacity; }

  // Candidates in ascending order of categories. True when the worst of the k best is another one.
  bool push(entry candidate) {
    if (count < capacity) {
      heap[count++] = candidate;
      if (!full()) return false;
      std::make_heap(heap, heap + count, better);
      return true;
    }
    // Categories come in ascending order: an equal value is always the worse one.
    if (!(candidate.value > heap[0].value)) return false;
    replace_worst(candidate);
    return true;
  }

  // Candidates in any order.
  void merge(entry candidate) {
    if (count < capacity) {
      heap[count++] = candidate;
      if (full()) std::make_heap(heap, heap + count, better);
    } else if (better(candidate, heap[0])) {
      replace_worst(candidate);
    }
  }

  void replace_worst(entry candidate) {
    int64_t hole = 0;
    for (;;) {
      int64_t child = 2 * hole + 1;
      if (child >= count) break;
      if (child + 1 < count && better(heap[child], heap[child + 1])) ++child;
      if (!better(candidate, heap[child])) break;
      heap[hole] = heap[child];
      hole = child;
    }
    heap[hole] = candidate;
  }
};

}  // namespace
}  // namespace pvp_fast
