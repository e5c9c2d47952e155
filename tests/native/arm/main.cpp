// The Arm build, checked on the processor it runs on or one that QEMU shows: tests/native/arm/run.
// Arguments: the instruction sets that must be found here, best first.
#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "cpu.h"

int main(int count, char** arguments) {
  const std::vector<std::string> expected(arguments + 1, arguments + count);
  std::string found;
  for (const std::string& name : pvp_fast::available_isas()) found += " " + name;
  REQUIRE(pvp_fast::available_isas() == expected, "found%s", found.c_str());
  const int tiles = check_tiles(), searches = check_topk(), losses = check_losses();
  std::printf("%s: %d tiles, %d searches and %d losses agree\n", found.c_str() + 1, tiles, searches, losses);
}
