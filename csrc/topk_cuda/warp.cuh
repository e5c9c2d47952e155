// The k best entries of a row, held by one warp.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>

namespace pvp_fast {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kAbsent = INT_MAX;  // category of an entry that is not there
constexpr int kNanRow = -2;       // category of the first entry of a part that met a NaN
constexpr int kFewOffers = 6;     // offers of a warp that are cheaper to insert than to sort

__device__ inline bool better(float value, int category, float other_value, int other_category) {
  return value > other_value || (value == other_value && category < other_category);
}

// Best first, in the last k of 32 * S positions; position i * 32 + lane is entry i of a lane.
// Positions before them hold (inf, -1), better than every real entry, so that the k-th best is
// always in the last one: registers cannot be indexed by a variable. Absent entries are
// (-inf, kAbsent): worse than every real one, a score of -inf included.
template <int S>
struct warp_list {
  float values[S];
  int categories[S];

  // Of entry i of this lane: 0 is the best; negative before the list.
  static __device__ int rank(int i, int k, int lane) { return i * 32 + lane - (32 * S - k); }

  __device__ void clear(int k, int lane) {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const bool used = rank(i, k, lane) >= 0;
      values[i] = used ? -INFINITY : INFINITY;
      categories[i] = used ? kAbsent : -1;
    }
  }

  __device__ void read(const float* from_values, const int* from_categories, int k, int lane) {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const int at = rank(i, k, lane);
      values[i] = at >= 0 ? from_values[at] : INFINITY;
      categories[i] = at >= 0 ? from_categories[at] : -1;
    }
  }

  __device__ void write(float* to_values, int* to_categories, int k, int lane) const {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      const int at = rank(i, k, lane);
      if (at >= 0) {
        to_values[at] = values[i];
        to_categories[at] = categories[i];
      }
    }
  }

  // The k-th best, in every lane.
  __device__ float cut_value() const { return __shfl_sync(kAll, values[S - 1], 31); }
  __device__ int cut_category() const { return __shfl_sync(kAll, categories[S - 1], 31); }

  // Takes at most one candidate of each lane.
  __device__ void take(float value, int category, bool offered, int lane) {
    const float last_value = cut_value();  // outside of &&: all lanes take part
    const int last_category = cut_category();
    const bool enters = offered && better(value, category, last_value, last_category);
    unsigned waiting = __ballot_sync(kAll, enters);
    if (__popc(waiting) > kFewOffers) {
      merge(enters ? value : -INFINITY, enters ? category : kAbsent, lane);
      return;
    }
    for (; waiting != 0; waiting &= waiting - 1) {
      const int from = __ffs(static_cast<int>(waiting)) - 1;
      insert(__shfl_sync(kAll, value, from), __shfl_sync(kAll, category, from), lane);
    }
  }

 private:
  // The same candidate in all lanes. Entries after it move back by one position.
  __device__ void insert(float value, int category, int lane) {
    float end_value = INFINITY;  // of position i * 32 - 1, in lane 0
    int end_category = -1;
#pragma unroll
    for (int i = 0; i < S; ++i) {
      // Lane 0 gets what its neighbour in the next entry needs.
      const float turned_value = __shfl_sync(kAll, values[i], (lane + 31) & 31);
      const int turned_category = __shfl_sync(kAll, categories[i], (lane + 31) & 31);
      const float before_value = lane == 0 ? end_value : turned_value;
      const int before_category = lane == 0 ? end_category : turned_category;
      if (better(value, category, values[i], categories[i])) {
        const bool before_moves = better(value, category, before_value, before_category);
        values[i] = before_moves ? before_value : value;
        categories[i] = before_moves ? before_category : category;
      }
      end_value = turned_value;
      end_category = turned_category;
    }
  }

  // One entry with that of another lane: the better one stays where `first`.
  static __device__ void exchange(float& value, int& category, int distance, bool first) {
    const float other_value = __shfl_xor_sync(kAll, value, distance);
    const int other_category = __shfl_xor_sync(kAll, category, distance);
    if (better(other_value, other_category, value, category) == first) {
      value = other_value;
      category = other_category;
    }
  }

  // Sorts 32 entries that first improve and then worsen, or the other way round.
  static __device__ void sort_bitonic(float& value, int& category, int lane) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      exchange(value, category, distance, (lane & distance) == 0);
    }
  }

  // 32 candidates, one a lane: sorted, then the better half of them and the last 32 entries stays
  // and rises through the entries before.
  __device__ void merge(float value, int category, int lane) {
#pragma unroll
    for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
      for (int distance = size / 2; distance > 0; distance /= 2) {
        const bool best_first = (lane & size) == 0 || size == 32;
        exchange(value, category, distance, ((lane & distance) == 0) == best_first);
      }
    }
    value = __shfl_sync(kAll, value, 31 - lane);
    category = __shfl_sync(kAll, category, 31 - lane);
    if (better(value, category, values[S - 1], categories[S - 1])) {
      values[S - 1] = value;
      categories[S - 1] = category;
    }
    sort_bitonic(values[S - 1], categories[S - 1], lane);
#pragma unroll
    for (int i = S - 1; i > 0; --i) {
      value = __shfl_sync(kAll, values[i], 31 - lane);
      category = __shfl_sync(kAll, categories[i], 31 - lane);
      if (better(value, category, values[i - 1], categories[i - 1])) {
        values[i] = values[i - 1];
        categories[i] = categories[i - 1];
        values[i - 1] = value;
        categories[i - 1] = category;
      } else {
        values[i] = value;
        categories[i] = category;
      }
      sort_bitonic(values[i - 1], categories[i - 1], lane);
      sort_bitonic(values[i], categories[i], lane);
    }
  }
};

}  // namespace
}  // namespace pvp_fast
