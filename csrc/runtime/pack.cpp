#include "runtime/pack.h"

#include <sys/mman.h>

#include <cstring>
#include <vector>

namespace kq {
namespace {

float widen(const uint8_t* p, Number number) {
  uint32_t u = 0;
  if (number == Number::f32) {
    std::memcpy(&u, p, 4);
  } else {
    uint16_t h;
    std::memcpy(&h, p, 2);
    if (number == Number::bf16) {
      u = (uint32_t)h << 16;
    } else {
      uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
      if (exponent == 0) {
        float f = (float)mantissa * 5.9604644775390625e-8f;  // mantissa * 2^-24
        return sign ? -f : f;
      }
      u = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | (mantissa << 13);
    }
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

void release_range(const void* begin, const void* end) {
  // Whole pages inside the range only: neighbors may still be needed, and would merely be read again.
  uintptr_t b = ((uintptr_t)begin + 4095) & ~(uintptr_t)4095, e = (uintptr_t)end & ~(uintptr_t)4095;
  if (b < e) madvise((void*)b, e - b, MADV_DONTNEED);
}

Panels shape_of(int rows, int inputs, bool gated) {
  Panels p;
  p.rows = rows;
  p.inputs = inputs;
  p.interleaved = gated;
  p.num_panels = gated ? 2 * ((rows / 2 + kPanelRows - 1) / kPanelRows) : (rows + kPanelRows - 1) / kPanelRows;
  return p;
}

// First source row and number of rows of a panel.
void panel_rows(const Panels& p, int panel, int* first, int* count) {
  int limit = p.rows;
  if (p.interleaved) {
    int half = p.rows / 2;
    *first = panel % 2 * half + panel / 2 * kPanelRows;
    limit = panel % 2 * half + half;
  } else {
    *first = panel * kPanelRows;
  }
  *count = limit - *first < kPanelRows ? limit - *first : kPanelRows;
}

// Word of eight codes (first in the low bits) -> four bytes, code j below code j + 4.
inline uint32_t spread(uint32_t half) {
  half = (half | (half << 8)) & 0x00FF00FFu;
  return (half | (half << 4)) & 0x0F0F0F0Fu;
}
inline uint32_t to_line(uint32_t word) { return spread(word & 0xFFFFu) | (spread(word >> 16) << 4); }

void pack_panel(const QuantizedRows& s, int first, int count, size_t number_size, uint8_t* panel, uint32_t* lines) {
  const size_t block = 512 + 2 * kPanelRows * number_size;
  const int groups = s.words / 4;
  for (int r = 0; r < count; r++) {
    const uint32_t* words = s.codes + (size_t)(first + r) * s.words;
    for (int w = 0; w < s.words; w++) {
      uint32_t word;
      std::memcpy(&word, words + w, 4);  // records need not be aligned
      lines[w] = to_line(word);
    }
    for (int w = 0; w < s.words; w++)
      std::memcpy(panel + (size_t)(w / 8) * block + (w % 8) * 64 + r * 4, lines + w, 4);
    const uint8_t* scales = s.scales + (size_t)(first + r) * groups * number_size;
    for (int g = 0; g < groups; g++)
      std::memcpy(panel + (size_t)(g / 2) * block + 512 + ((g % 2) * kPanelRows + r) * number_size, scales + g * number_size,
                  number_size);
  }
}

template <class T>
void pack_plain_panel(const PlainRows& s, int first, int count, uint8_t* panel) {
  constexpr int kTile = 32;  // inputs at a time, so that both sides stay in the first-level cache
  for (int k0 = 0; k0 < s.inputs; k0 += kTile) {
    int k1 = k0 + kTile < s.inputs ? k0 + kTile : s.inputs;
    for (int r = 0; r < count; r++) {
      const uint8_t* row = s.values + (size_t)(first + r) * s.inputs * sizeof(T);
      for (int k = k0; k < k1; k++)
        std::memcpy(panel + ((size_t)k * kPanelRows + r) * sizeof(T), row + k * sizeof(T), sizeof(T));
    }
  }
}

// Runs body(panel) over all panels on the pool, then lets go of the source behind each claimed run.
template <class Body, class Release>
void over_panels(const Panels& p, ThreadPool& pool, Body body, Release release) {
  Claims claims;
  const int chunk = 1 + (int)((1 << 20) / (p.panel_bytes + 1));
  pool.run([&](int) {
    int begin, end;
    while (claims.take(p.num_panels, chunk, &begin, &end)) {
      for (int i = begin; i < end; i++) body(i);
      release(begin, end);
    }
  });
}
}  // namespace

Panels pack(const QuantizedRows& s, bool gated, bool release, Arena& arena, ThreadPool& pool) {
  Panels p = shape_of(s.rows, s.inputs, gated);
  const size_t number_size = size_of(s.scale_number);
  p.quantized = true;
  p.number = s.scale_number;
  p.groups = (s.words / 4 + 1) / 2 * 2;
  p.panel_bytes = (size_t)(p.groups / 2) * (512 + 2 * kPanelRows * number_size);
  uint8_t* base = arena.allocate(p.panel_bytes * p.num_panels);
  p.data = base;
  const size_t row_bytes = (size_t)s.words * 4, scale_bytes = (size_t)(s.words / 4) * number_size;
  over_panels(
      p, pool,
      [&](int i) {
        thread_local std::vector<uint32_t> lines;
        lines.resize(s.words);
        int first, count;
        panel_rows(p, i, &first, &count);
        pack_panel(s, first, count, number_size, base + (size_t)i * p.panel_bytes, lines.data());
      },
      [&](int begin, int end) {
        if (!release) return;
        for (int half = 0; half < (gated ? 2 : 1); half++) {
          int first, last, count;
          panel_rows(p, gated ? begin / 2 * 2 + half : begin, &first, &count);
          panel_rows(p, gated ? (end - 1) / 2 * 2 + half : end - 1, &last, &count);
          last += count;
          release_range((const uint8_t*)s.codes + first * row_bytes, (const uint8_t*)s.codes + last * row_bytes);
          release_range(s.scales + first * scale_bytes, s.scales + last * scale_bytes);
        }
      });
  return p;
}

Panels pack(const PlainRows& s, bool gated, bool release, Arena& arena, ThreadPool& pool) {
  Panels p = shape_of(s.rows, s.inputs, gated);
  const size_t size = size_of(s.number);
  p.number = s.number;
  p.groups = ((s.inputs + kGroup - 1) / kGroup + 1) / 2 * 2;
  p.panel_bytes = (size_t)((s.inputs + 3) / 4 * 4) * kPanelRows * size;
  uint8_t* base = arena.allocate(p.panel_bytes * p.num_panels);
  p.data = base;
  over_panels(
      p, pool,
      [&](int i) {
        int first, count;
        panel_rows(p, i, &first, &count);
        if (size == 4)
          pack_plain_panel<uint32_t>(s, first, count, base + (size_t)i * p.panel_bytes);
        else
          pack_plain_panel<uint16_t>(s, first, count, base + (size_t)i * p.panel_bytes);
      },
      [&](int begin, int end) {
        if (!release) return;
        for (int half = 0; half < (gated ? 2 : 1); half++) {
          int first, last, count;
          panel_rows(p, gated ? begin / 2 * 2 + half : begin, &first, &count);
          panel_rows(p, gated ? (end - 1) / 2 * 2 + half : end - 1, &last, &count);
          release_range(s.values + (size_t)first * s.inputs * size, s.values + (size_t)(last + count) * s.inputs * size);
        }
      });
  return p;
}

void read_row(const Panels& p, int row, float* y) {
  const uint8_t* panel = p.data + (size_t)(row / kPanelRows) * p.panel_bytes;
  const int r = row % kPanelRows;
  const size_t size = size_of(p.number);
  if (!p.quantized) {
    for (int k = 0; k < p.inputs; k++) y[k] = widen(panel + ((size_t)k * kPanelRows + r) * size, p.number);
    return;
  }
  const size_t block = 512 + 2 * kPanelRows * size;
  for (int k = 0; k < p.inputs; k++) {
    int g = k / kGroup, in = k % kGroup;
    const uint8_t* b = panel + (size_t)(g / 2) * block;
    int byte = b[(g % 2) * 256 + (in / 8) * 64 + r * 4 + in % 4];
    int code = in % 8 < 4 ? byte & 15 : byte >> 4;
    y[k] = (float)(code - 7) * widen(b + 512 + ((g % 2) * kPanelRows + r) * size, p.number);
  }
}

void read_row(const QuantizedRows& s, int row, float* y) {
  const size_t size = size_of(s.scale_number);
  for (int k = 0; k < s.inputs; k++) {
    uint32_t word;
    std::memcpy(&word, s.codes + (size_t)row * s.words + k / 8, 4);
    int code = (word >> (4 * (k % 8))) & 15;
    y[k] = (float)(code - 7) * widen(s.scales + ((size_t)row * (s.words / 4) + k / kGroup) * size, s.scale_number);
  }
}

void read_row(const PlainRows& s, int row, float* y) {
  const size_t size = size_of(s.number);
  for (int k = 0; k < s.inputs; k++) y[k] = widen(s.values + ((size_t)row * s.inputs + k) * size, s.number);
}
}  // namespace kq
