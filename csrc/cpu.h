// The instruction sets: which there are, which run here, and which one answers.
//
// Every engine keeps a table of its functions by instruction set and asks best() for the entry.
#pragma once

#include <string>
#include <vector>

namespace pvp_fast {

// Worst first: a higher place can run everything before it that the processor has.
enum class isa {
  portable,
#if defined(PVP_FAST_X86)
  avx2,
  avxvnni,
  avx512,
  avx512vnni,
  avx512bf16,
  amxint8,
#elif defined(PVP_FAST_ARM)
  neon,
  neondot,
  neoni8mm,
  neonbf16,
#endif
  count
};
constexpr int kIsas = static_cast<int>(isa::count);

const char* isa_name(isa set);

// Whether this processor has it.
bool runs_here(isa set);

// Those that run here, best first.
std::vector<std::string> available_isas();

// The best that may be used: what the environment variable PVP_FAST_ISA names, or the best there is.
// Throws std::runtime_error where that one is unknown or does not run here.
isa most_isa();

// An engine's entry for one instruction set.
template <class T>
struct isa_entry {
  isa set;
  T use;
};

// The last entry up to `most` that runs here; null entries are no better than those before them.
template <class T>
isa_entry<T> best(const T (&table)[kIsas], isa most) {
  int at = static_cast<int>(most);
  while (at > 0 && (!table[at] || !runs_here(static_cast<isa>(at)))) --at;
  return {static_cast<isa>(at), table[at]};
}

}  // namespace pvp_fast
