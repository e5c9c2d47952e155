#include "cpu.h"

#include <array>
#include <cstdlib>
#include <stdexcept>

#if defined(PVP_FAST_AVXVNNI) || defined(PVP_FAST_AMX)
#include <cpuid.h>
#endif
#if defined(PVP_FAST_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(PVP_FAST_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(PVP_FAST_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pvp_fast {
namespace {

#if defined(PVP_FAST_X86)
// Asked of the processor itself: __builtin_cpu_supports knows the name in new compilers only. That the
// system keeps the registers is known with "avx2".
bool has_avxvnni() {
#if defined(PVP_FAST_AVXVNNI)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
#else
  return false;  // the compiler cannot write it
#endif
}

// Linux gives a process the tile registers when it asks, once for all of its threads.
bool has_amxint8() {
#if defined(PVP_FAST_AMX) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool there = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vnni") != 0 &&
                     __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 3) == 3;
  return there && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(PVP_FAST_ARM)
// Whether the processor has an extension of NEON: its bit in a word of Linux's auxiliary vector, its
// name elsewhere.
bool has([[maybe_unused]] unsigned long word, [[maybe_unused]] int bit, [[maybe_unused]] const char* name) {
#if defined(__linux__)
  return (getauxval(word) >> bit & 1) != 0;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
constexpr unsigned long kFirst = 16, kSecond = 26;  // AT_HWCAP and AT_HWCAP2
#endif

struct description {
  const char* name;
  bool (*runs_here)();
};

const description kDescriptions[kIsas] = {
    {"portable", [] { return true; }},
#if defined(PVP_FAST_X86)
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; }},
    {"avxvnni", has_avxvnni},
    {"avx512", [] { return __builtin_cpu_supports("avx512f") != 0; }},
    {"avx512vnni",
     [] { return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vnni") != 0; }},
    {"avx512bf16",
     [] { return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bf16") != 0; }},
    {"amxint8", has_amxint8},
#elif defined(PVP_FAST_ARM)
    {"neon", [] { return true; }},
    {"neondot", [] { return has(kFirst, 20, "hw.optional.arm.FEAT_DotProd"); }},
    {"neoni8mm", [] { return has(kSecond, 13, "hw.optional.arm.FEAT_I8MM"); }},
    {"neonbf16", [] { return has(kSecond, 14, "hw.optional.arm.FEAT_BF16"); }},
#endif
};

}  // namespace

const char* isa_name(isa set) { return kDescriptions[static_cast<int>(set)].name; }

// Asked once: under a hypervisor cpuid leaves the guest, which takes microseconds.
bool runs_here(isa set) {
  static const std::array<bool, kIsas> here = [] {
    std::array<bool, kIsas> answers{};
    for (std::size_t i = 0; i < answers.size(); ++i) answers[i] = kDescriptions[i].runs_here();
    return answers;
  }();
  return here[static_cast<std::size_t>(set)];
}

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
