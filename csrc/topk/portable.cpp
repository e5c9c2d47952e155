// The tiles for any processor. Fast where the compiler has a fused multiply-add instruction for its
// baseline target (aarch64, POWER, RISC-V); exact but slow where fmaf is a library call.
#include <cmath>

#include "topk/round.h"
#include "topk/tile.h"

namespace pvp_fast {
namespace {

struct portable {
  static constexpr int lanes = 4;
  struct type {
    float lane[lanes];
  };
  static type load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static type load_words(const uint32_t* from) {
    return {{as_float(from[0]), as_float(from[1]), as_float(from[2]), as_float(from[3])}};
  }
  static type broadcast(float value) { return {{value, value, value, value}}; }
  static type fma(const type& a, const type& b, const type& c) {
    type sum;
    for (int i = 0; i < lanes; ++i) sum.lane[i] = ::fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return sum;
  }
  static type mul(const type& a, const type& b) {
    type product;
    for (int i = 0; i < lanes; ++i) product.lane[i] = a.lane[i] * b.lane[i];
    return product;
  }
  static void store(float* to, const type& value) {
    for (int i = 0; i < lanes; ++i) to[i] = value.lane[i];
  }
  static uint32_t not_below(const type& a, const type& b) {
    uint32_t mask = 0;
    for (int i = 0; i < lanes; ++i) mask |= uint32_t{!(a.lane[i] < b.lane[i])} << i;
    return mask;
  }
};

struct float32 : portable, exact_finish {
  using sum = type;
  using columns = type;
  using query = float;
  static sum zero() { return {}; }
  static columns load_columns(const uint32_t* from) { return load_words(from); }
  static query load_query(uint32_t bits) { return as_float(bits); }
  static sum step(query x, const columns& w, const sum& s) { return fma(broadcast(x), w, s); }
};

constexpr float kSmallestNormal = 0x1p-126f;

float flushed(float value) {
  return ::fabsf(value) < kSmallestNormal ? ::copysignf(0.0f, value) : value;
}

// A multiply-add as vdpbf16ps and flush-to-zero have it: denormals are zero on the way in and out,
// and a result is denormal when it is so after rounding to 24 bits with an unbounded exponent.
float flushing_fma(float a, float b, float c) {
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float sum = ::fmaf(a, b, c);
  if (::fabsf(sum) == kSmallestNormal) {
    // float32 denormals are coarser than 24 bits: ask in float64 what was rounded up to this.
    const double exact = ::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
    if (::fabs(exact) < 0x1p-126 - 0x1p-151) return ::copysignf(0.0f, sum);
  }
  return flushed(sum);
}

struct flushing : portable {
  static type fma(const type& a, const type& b, const type& c) {
    type sum;
    for (int i = 0; i < lanes; ++i) sum.lane[i] = flushing_fma(a.lane[i], b.lane[i], c.lane[i]);
    return sum;
  }
  static uint32_t not_below(const type& a, const type& b) {
    uint32_t mask = 0;
    for (int i = 0; i < lanes; ++i) {
      mask |= uint32_t{!(flushed(a.lane[i]) < flushed(b.lane[i]))} << i;
    }
    return mask;
  }
};

// As vdpbf16ps: the odd member of the pair first.
struct bfloat16 : flushing, exact_finish {
  using flushing::fma;
  struct pair {
    type odd, even;
  };
  using sum = type;
  using columns = pair;
  using query = uint32_t;
  static sum zero() { return {}; }
  static columns load_columns(const uint32_t* from) {
    pair both;
    for (int i = 0; i < lanes; ++i) {
      both.odd.lane[i] = as_float(from[i] & 0xffff0000u);
      both.even.lane[i] = as_float(from[i] << 16);
    }
    return both;
  }
  static query load_query(uint32_t bits) { return bits; }
  static sum step(query x, const columns& w, const sum& s) {
    return fma(broadcast(as_float(x << 16)), w.even,
               fma(broadcast(as_float(x & 0xffff0000u)), w.odd, s));
  }
};

struct int8 : portable, bound_finish {
  struct words {  // unsigned: a damaged file must not overflow a signed sum
    uint32_t lane[lanes];
  };
  struct columns {
    uint32_t lane[lanes];
  };
  using sum = words;
  using query = uint32_t;
  static sum minus_words(const uint32_t* from) {
    return {{0u - from[0], 0u - from[1], 0u - from[2], 0u - from[3]}};
  }
  static columns load_columns(const uint32_t* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static query load_query(uint32_t bits) { return bits; }
  static sum step(query x, const columns& w, sum s) {
    for (int i = 0; i < lanes; ++i) {
      for (int byte = 0; byte < 32; byte += 8) {
        s.lane[i] += static_cast<uint32_t>(static_cast<int32_t>((x >> byte) & 0xff) *
                                           static_cast<int8_t>((w.lane[i] >> byte) & 0xff));
      }
    }
    return s;
  }
  static type to_float(const sum& s) {
    type value;
    for (int i = 0; i < lanes; ++i) {
      value.lane[i] = static_cast<float>(static_cast<int32_t>(s.lane[i]));
    }
    return value;
  }
};

template <class V>
uint32_t by_rows(const tile_args& tile) {
  uint32_t any = 0;
  int row = 0;
  for (; row + 4 <= tile.rows; row += 4) any |= tile_rows<V, 4, 4>(tile, row);
  for (; row < tile.rows; ++row) any |= tile_rows<V, 1, 8>(tile, row);
  return any;
}

}  // namespace

uint32_t tile_portable(const tile_args& tile) { return by_rows<float32>(tile); }
uint32_t tile_portable_bf16(const tile_args& tile) { return by_rows<bfloat16>(tile); }
uint32_t tile_portable_int8(const tile_args& tile) { return by_rows<int8>(tile); }

void rescore_portable(const float* x, const float* const* w, int count, int64_t width, float* dots) {
  for (int i = 0; i < count; ++i) {
    float sum = 0.0f;
    for (int64_t d = 0; d < width; ++d) sum = ::fmaf(x[d], w[i][d], sum);
    dots[i] = sum;
  }
}

rounded_row round_portable(const round_args& args) { return round_row(args); }

}  // namespace pvp_fast
