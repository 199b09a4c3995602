// Memory for panels, handed out in order and freed all at once; huge pages where the system gives them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/panel_image.h"

namespace kq {
constexpr size_t kHuge = (size_t)2 << 20;
constexpr size_t kSlack = 4096;  // readable bytes behind every allocation: kernels prefetch past the end

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // 64-byte aligned; zeroed, or filled already when the arena is that of an image. Throws std::bad_alloc, and std::runtime_error
  // where the image ends.
  uint8_t* allocate(size_t bytes);

  // What another arena held (its runs, one after the other). Comes before the first allocation.
  void adopt(std::unique_ptr<PanelImage> image) { image_ = std::move(image); }
  bool filled() const { return image_ != nullptr; }
  bool lost() const { return image_ && image_->lost(); }
  // Everything handed out so far, in order.
  std::vector<std::pair<const uint8_t*, size_t>> runs() const;
  size_t used() const;
  // A digest of what was allocated for what: two arenas with the same one have the same layout.
  uint64_t layout() const { return layout_; }
  void note_layout(uint64_t fact);

 private:
  struct Chunk {
    uint8_t* base;
    size_t size, used;
  };
  std::vector<Chunk> chunks_;
  std::unique_ptr<PanelImage> image_;
  size_t image_used_ = 0;
  uint64_t layout_ = 0xCBF29CE484222325;
};

// A growing scratch buffer whose contents do not survive growth.
//
// Inside a job of the thread pool none may grow: a thread that finds no memory there would leave the others waiting at a
// barrier. Those that grow while a NoGrowth lives are counted (a test wants none).
class Scratch {
 public:
  struct NoGrowth {
    NoGrowth();
    ~NoGrowth();
  };
  static long late_growths();

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
