// Zeroed memory for panels, handed out in order and freed all at once; huge pages where the system gives them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kq {
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // 64-byte aligned, zeroed, with 4 KiB of readable bytes behind it (kernels prefetch past the end). Throws std::bad_alloc.
  uint8_t* allocate(size_t bytes);

 private:
  struct Chunk {
    uint8_t* base;
    size_t size, used;
  };
  std::vector<Chunk> chunks_;
};

// A growing scratch buffer whose contents do not survive growth.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* get(size_t count) {
    return static_cast<T*>(reserve(count * sizeof(T)));
  }

 private:
  void* reserve(size_t bytes);
  void* data_ = nullptr;
  size_t size_ = 0;
};
}  // namespace kq
