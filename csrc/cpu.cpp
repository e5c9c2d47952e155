#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

namespace pvp_fast {
namespace {

struct description {
  const char* name;
  bool (*runs_here)();
};

const description kDescriptions[kIsas] = {
    {"portable", [] { return true; }},
#if defined(PVP_FAST_X86)
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; }},
    {"avx512", [] { return __builtin_cpu_supports("avx512f") != 0; }},
    {"avx512vnni",
     [] { return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vnni") != 0; }},
    {"avx512bf16",
     [] { return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bf16") != 0; }},
#endif
};

}  // namespace

const char* isa_name(isa set) { return kDescriptions[static_cast<int>(set)].name; }

bool runs_here(isa set) { return kDescriptions[static_cast<int>(set)].runs_here(); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = kIsas - 1; i >= 0; --i) {
    if (runs_here(static_cast<isa>(i))) names.push_back(isa_name(static_cast<isa>(i)));
  }
  return names;
}

isa most_isa() {
  const char* wanted = std::getenv("PVP_FAST_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (int i = kIsas - 1; i >= 0; --i) {
    const isa set = static_cast<isa>(i);
    if (runs_here(set) && (any || std::string(wanted) == isa_name(set))) return set;
  }
  std::string names;
  for (const std::string& name : available_isas()) names += (names.empty() ? "" : ", ") + name;
  throw std::runtime_error("instruction set '" + std::string(wanted) +
                           "' is not available here; choose one of: " + names +
                           " (environment variable PVP_FAST_ISA)");
}

}  // namespace pvp_fast
