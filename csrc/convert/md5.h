// MD5 (RFC 1321) of several streams at once. One stream waits for itself at every step; eight of them fill the processor.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace kq {

constexpr size_t kMd5Lanes = 8, kMd5Block = 64;

// Takes `blocks` blocks of 64 bytes into each of `count` (1 to kMd5Lanes) states; data[i]: those of stream i. The start and the
// padding at the end are the caller's. state: (count, 4) words.
void md5_update(uint32_t* state, const uint8_t* const* data, size_t count, size_t blocks);
}  // namespace kq
