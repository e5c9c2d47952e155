// What the checks of the Arm build share: random numbers, memory with a wall behind it, failures.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define REQUIRE(condition, ...)                                            \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);          \
      std::printf(__VA_ARGS__);                                            \
      std::puts("");                                                       \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

class random_numbers {
 public:
  explicit random_numbers(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  uint32_t below(uint32_t n) { return bits() % n; }
  // In [-1, 1).
  float value() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }

 private:
  uint64_t state_;
};

// n elements that end where a page without access begins: reading or writing past them is a fault. They
// are aligned to no more than their own size where n is odd.
template <class T>
class walled {
 public:
  explicit walled(size_t n) : size_(n) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    whole_ = (n * sizeof(T) + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED, "no memory");
    REQUIRE(mprotect(base_ + whole_ - page, page, PROT_NONE) == 0, "no wall");
    data_ = reinterpret_cast<T*>(base_ + whole_ - page) - n;
  }
  ~walled() { munmap(base_, whole_); }
  walled(const walled&) = delete;
  walled& operator=(const walled&) = delete;

  T* data() { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }

 private:
  size_t size_, whole_;
  char* base_;
  T* data_;
};

int check_tiles();   // returns how many tiles were compared
int check_topk();    // ... searches
int check_losses();  // ... losses
