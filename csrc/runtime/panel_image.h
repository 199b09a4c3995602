// The panels of a whole model as a file keeps them (runtime/panels.py), in memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

#include "cpu/thread_pool.h"
#include "runtime/lost_pages.h"

namespace kq {

class PanelImage {
 public:
  // The file's bytes [offset, offset + bytes), with kSlack more behind them. copy: into huge pages of this process; else mapped, and
  // shared with every other process that does so. The caller may close `file`. Throws std::runtime_error.
  PanelImage(int file, size_t offset, size_t bytes, bool copy, ThreadPool& pool);
  ~PanelImage();
  PanelImage(const PanelImage&) = delete;
  PanelImage& operator=(const PanelImage&) = delete;

  const uint8_t* data() const { return base_ + offset_; }
  size_t size() const { return bytes_; }
  // Whether the file was cut short, or could not be read, while it was in use.
  bool lost() const { return watched_ && watched_->lost(); }

 private:
  void read(int file, size_t total, ThreadPool& pool);
  void map(int file, size_t total, ThreadPool& pool);

  void* reserved_ = nullptr;
  size_t reserved_bytes_ = 0;
  uint8_t* base_ = nullptr;  // of the file's first byte
  size_t offset_, bytes_;
  std::optional<WatchedRange> watched_;
};
}  // namespace kq
