// Every NEON tile against the portable one: the same masks, and the same bits where a mask has one.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu.h"
#include "topk/tile.h"

using namespace pvp_fast;

namespace {

// Denormal: queries of which half are, against large class vectors, so that nothing else is.
enum class numbers { plain, tiny, denormal, special };

struct path {
  isa set;
  tile_function tile, portable;
  bool half, bytes;
};

const path kPaths[] = {
    {isa::neon, tile_neon, tile_portable, false, false},
    {isa::neon, tile_neon_bf16, tile_portable_bf16, true, false},
    {isa::neonbf16, tile_neonbf16, tile_portable_bf16, true, false},
    {isa::neon, tile_neon_int8, tile_portable_int8, false, true},
    {isa::neondot, tile_neondot, tile_portable_int8, false, true},
    {isa::neoni8mm, tile_neoni8mm, tile_portable_int8, false, true},
};

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float draw(random_numbers& random, numbers kind) {
  const float value = random.value();
  if (kind == numbers::tiny) return std::ldexp(value, -static_cast<int>(random.below(140)));
  if (kind == numbers::special && random.below(40) == 0) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float values[] = {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), -0.0f, 3e38f};
    return values[random.below(5)];
  }
  return value;
}

uint32_t draw_word(random_numbers& random, const path& by, numbers kind, float size) {
  const uint32_t bits = bits_of(size * draw(random, kind));
  return by.half ? (bits & 0xffff0000u) | bits_of(size * draw(random, kind)) >> 16 : bits;
}

// Four bytes in [-127, 127], plus `bias`.
uint32_t draw_bytes(random_numbers& random, int bias) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int value = static_cast<int>(random.below(255)) - 127 + bias;
    word |= (static_cast<uint32_t>(value) & 0xff) << 8 * i;
  }
  return word;
}

struct outcome {
  uint32_t any;
  std::vector<uint32_t> masks;
  std::vector<float> values;
};

void compare(const path& by, int rows, int64_t steps, numbers kind) {
  random_numbers random(static_cast<uint32_t>(rows * 1000 + steps * 10) + static_cast<uint32_t>(kind));
  const size_t lanes = kTileLanes, count = static_cast<size_t>(rows), words = static_cast<size_t>(steps);
  const size_t odd = rows % 2;  // an odd count of words before the wall
  walled<uint32_t> x(words * count), panel((words + (by.bytes ? 5 : 0)) * lanes + odd);
  walled<float> bias(lanes + odd), thresholds(lanes + odd), cut(count), scale(count), shift(count), reach(count);
  const bool denormal = kind == numbers::denormal;
  for (uint32_t& word : x) {
    word = by.bytes ? draw_bytes(random, 128) : draw_word(random, by, kind, denormal ? 0x1p-125f : 1.0f);
  }
  for (size_t i = 0; i < words * lanes; ++i) {
    panel[i] = by.bytes ? draw_bytes(random, 0) : draw_word(random, by, kind, denormal ? 0x1p110f : 1.0f);
  }
  if (by.bytes) {
    uint32_t* stats = panel.data() + words * lanes;
    for (size_t lane = 0; lane < lanes; ++lane) {
      int sum = 0;
      for (size_t s = 0; s < words; ++s) {
        for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(panel[s * lanes + lane] >> i & 0xff);
      }
      stats[lane] = static_cast<uint32_t>(128 * sum);
      for (size_t k = 1; k < 5; ++k) stats[k * lanes + lane] = bits_of(1e-2f * random.value());
    }
  }
  for (walled<float>* values : {&bias, &thresholds, &cut, &scale, &shift, &reach}) {
    for (float& value : *values) value = 0.3f * draw(random, kind);
  }
  const float tile_scale = kind == numbers::tiny ? 0x1p30f : 0.7f;
  const auto run = [&](tile_function tile) {
    walled<float> values(count * lanes);
    walled<uint32_t> masks(count);
    std::fill(values.begin(), values.end(), 0.0f);
    std::fill(masks.begin(), masks.end(), 0u);
    const tile_args args{x.data(),          panel.data(), steps,         rows,         tile_scale,
                         bias.data(),       thresholds.data(), cut.data(), values.data(), masks.data(),
                         scale.data(), shift.data(), reach.data()};
    outcome out{tile(args), {}, {}};
    out.masks.assign(masks.begin(), masks.end());
    out.values.assign(values.begin(), values.end());
    return out;
  };
  const outcome expected = run(by.portable), got = run(by.tile);
  const char* name = isa_name(by.set);
  REQUIRE(got.masks == expected.masks && got.any == expected.any, "%s, %d rows, %ld steps, kind %d", name, rows,
          static_cast<long>(steps), static_cast<int>(kind));
  for (size_t i = 0; i < got.values.size(); ++i) {
    const float a = got.values[i], b = expected.values[i];
    const bool wanted = by.bytes || (got.masks[i / lanes] >> i % lanes & 1) != 0;
    REQUIRE(!wanted || bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)),
            "%s, %d rows, %ld steps, kind %d: %a, portable %a", name, rows, static_cast<long>(steps),
            static_cast<int>(kind), static_cast<double>(a), static_cast<double>(b));
  }
}

}  // namespace

int check_tiles() {
  int tiles = 0;
  for (const path& by : kPaths) {
    if (!runs_here(by.set)) continue;
    for (int rows = 1; rows <= kTileRows; ++rows) {
      for (const int64_t steps : {1, 2, 3, 8, 33}) {
        for (const numbers kind : {numbers::plain, numbers::tiny, numbers::denormal, numbers::special}) {
          compare(by, rows, steps, kind);
          ++tiles;
        }
      }
    }
  }
  return tiles;
}
