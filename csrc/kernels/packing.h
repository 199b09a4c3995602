// Sixteen rows of 4-bit words into the lines of a panel (kernels.h): a bit permutation of every word and a transpose.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

// Word of eight 4-bit codes (first in the low bits) -> four bytes, code j below code j + 4.
static inline uint32_t spread(uint32_t half) {
  half = (half | (half << 8)) & 0x00FF00FFu;
  return (half | (half << 4)) & 0x0F0F0F0Fu;
}
static inline uint32_t to_line(uint32_t word) { return spread(word & 0xFFFFu) | (spread(word >> 16) << 4); }

#if defined(KQ_ISA_AVX512)
static inline __m512i spread16(__m512i half) {
  half = _mm512_and_si512(_mm512_or_si512(half, _mm512_slli_epi32(half, 8)), _mm512_set1_epi32(0x00FF00FF));
  return _mm512_and_si512(_mm512_or_si512(half, _mm512_slli_epi32(half, 4)), _mm512_set1_epi32(0x0F0F0F0F));
}
static inline __m512i to_lines(__m512i words) {
  return _mm512_or_si512(spread16(_mm512_and_si512(words, _mm512_set1_epi32(0xFFFF))),
                         _mm512_slli_epi32(spread16(_mm512_srli_epi32(words, 16)), 4));
}
static inline void transpose16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // r[4b + i]: words i, 4 + i, 8 + i, 12 + i of rows 4b .. 4b + 3
    __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xDD), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xDD);
    t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xDD);
    t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xDD);
  }
  for (int i = 0; i < 16; i++) r[i] = t[i];
}
static inline void pack_words(const uint8_t* const* rows, int words, size_t block, uint8_t* panel) {
  for (int w = 0; w < words; w += 16) {
    const __mmask16 mask = (__mmask16)((1u << min_int(16, words - w)) - 1);
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = rows[i] ? to_lines(_mm512_maskz_loadu_epi32(mask, rows[i] + 4 * (size_t)w)) : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < 16 && w + i < words; i++) _mm512_storeu_si512(panel + (size_t)((w + i) / 8) * block + (w + i) % 8 * 64, r[i]);
  }
}
#else
static inline void pack_words(const uint8_t* const* rows, int words, size_t block, uint8_t* panel) {
  for (int w = 0; w < words; w++) {
    uint32_t line[16];
    for (int i = 0; i < 16; i++) {
      uint32_t word = 0;
      if (rows[i]) __builtin_memcpy(&word, rows[i] + 4 * (size_t)w, 4);  // records need not be aligned
      line[i] = rows[i] ? to_line(word) : 0;
    }
    __builtin_memcpy(panel + (size_t)(w / 8) * block + w % 8 * 64, line, 64);
  }
}
#endif

static void pack_rows(const uint8_t* const* codes, const uint8_t* const* scales, int words, int scale_size, size_t block, uint8_t* panel) {
  pack_words(codes, words, block, panel);
  for (int r = 0; r < kPanelRows; r++) {
    if (!scales[r]) continue;
    uint8_t* to = panel + 512 + (size_t)r * scale_size;
    const uint8_t* from = scales[r];
    for (int g = 0; g < words / 4; g++, from += scale_size) {
      uint8_t* at = to + (size_t)(g / 2) * block + (g % 2) * kPanelRows * scale_size;
      if (scale_size == 2)
        __builtin_memcpy(at, from, 2);
      else
        __builtin_memcpy(at, from, 4);
    }
  }
}
}  // namespace KQ_ISA
}  // namespace kq
