#include "runtime/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
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
void panel_rows(const Panels& p, const RowOrder& order, int panel, int* first, int* count) {
  if (order.kv_heads) {
    const int head = panel * kPanelRows / order.head_rows(), at = panel * kPanelRows % order.head_rows();
    *count = kPanelRows;
    if (at < order.q_rows)
      *first = head * order.q_rows + at;
    else if (at < order.q_rows + order.kv_rows)
      *first = order.kv_heads * order.q_rows + head * order.kv_rows + at - order.q_rows;
    else
      *first = order.kv_heads * (order.q_rows + order.kv_rows) + head * order.kv_rows + at - order.q_rows - order.kv_rows;
    return;
  }
  int limit = p.rows;
  if (p.interleaved) {
    int half = p.rows / 2;
    *first = panel % 2 * half + panel / 2 * kPanelRows;
    limit = panel % 2 * half + half;
  } else {
    *first = panel * kPanelRows;
  }
  *count = std::min(limit - *first, kPanelRows);
}

// Word of eight 4-bit codes (first in the low bits) -> four bytes, code j below code j + 4.
inline uint32_t spread(uint32_t half) {
  half = (half | (half << 8)) & 0x00FF00FFu;
  return (half | (half << 4)) & 0x0F0F0F0Fu;
}
inline uint32_t to_line(uint32_t word) { return spread(word & 0xFFFFu) | (spread(word >> 16) << 4); }

uint32_t word_at(const uint8_t* p, size_t i) {  // records need not be aligned
  uint32_t word;
  std::memcpy(&word, p + 4 * i, 4);
  return word;
}

// AWQ: output column j stands in 4-bit slot (j % 8) % 2 * 4 + (j % 8) / 2 of word j / 8.
int awq_slot(int column) { return column % 2 * 4 + column % 8 / 2; }

int code_at(const QuantizedRows& s, int row, int input) {
  if (s.layout == CodeLayout::awq)
    return word_at(s.codes, (size_t)input * (s.rows / 8) + row / 8) >> (4 * awq_slot(row)) & 15;
  const int per_word = s.codes_per_word(), word = input / per_word;
  const size_t at = s.layout == CodeLayout::rows ? (size_t)row * s.words() + word : (size_t)word * s.rows + row;
  return word_at(s.codes, at) >> (s.bits * (input % per_word)) & ((1 << s.bits) - 1);
}
const uint8_t* scale_at(const QuantizedRows& s, int row, int group) {
  const size_t at = s.layout == CodeLayout::rows ? (size_t)row * s.groups() + group : (size_t)group * s.rows + row;
  return s.scales + at * size_of(s.scale_number);
}
int zero_at(const QuantizedRows& s, int row, int group) {
  if (!s.zeros) return s.zero_point();
  return word_at(s.zeros, (size_t)group * (s.rows / 8) + row / 8) >> (4 * awq_slot(row)) & 15;
}

// Writes one row of a source into row r of a panel. The panel's groups may be finer than the source's (AWQ: 32 of 128).
void pack_row(const QuantizedRows& s, int row, const Panels& p, uint8_t* panel, int r) {
  const size_t block = p.block_bytes(), number_size = size_of(p.number);
  const int code_bytes = p.lines() * 64, inputs_per_line = p.code_bits == 8 ? 4 : 8;
  const int finer = s.group / p.group, groups = (s.inputs + p.group - 1) / p.group;
  // Where the line that holds a group's inputs from `in` on keeps row r.
  auto line = [&](int g, int in) {
    return panel + (size_t)(g / 2) * block + (size_t)(g % 2) * code_bytes + (size_t)(in / inputs_per_line) * 64 + r * 4;
  };
  if (s.layout != CodeLayout::awq && s.bits != 3) {  // a word is a line
    const size_t step = s.layout == CodeLayout::rows ? 1 : s.rows;
    size_t at = s.layout == CodeLayout::rows ? (size_t)row * s.words() : row;
    for (int g = 0; g < groups; g++)
      for (int in = 0; in < p.group; in += inputs_per_line, at += step) {
        const uint32_t word = word_at(s.codes, at), packed = s.bits == 8 ? word : to_line(word);
        std::memcpy(line(g, in), &packed, 4);
      }
  } else {
    for (int k = 0; k < s.inputs; k++) {
      uint8_t* byte = line(k / p.group, k % p.group) + k % 4;
      const int code = code_at(s, row, k);
      *byte = (uint8_t)(*byte | (k % p.group % 8 < 4 ? code : code << 4));
    }
  }
  for (int g = 0; g < groups; g++) {
    uint8_t* numbers = panel + (size_t)(g / 2) * block + 2 * code_bytes;
    std::memcpy(numbers + ((g % 2) * kPanelRows + r) * number_size, scale_at(s, row, g / finer), number_size);
    if (p.has_zeros) numbers[2 * p.scale_bytes() + (g % 2) * kPanelRows + r] = (uint8_t)zero_at(s, row, g / finer);
  }
}

// Rows [from, to) of a part into rows r, r + 1, … of a panel, a few inputs at a time so that both sides stay in the first-level cache.
template <class T>
void pack_plain_rows(const PlainRows& s, int from, int to, uint8_t* panel, int r) {
  constexpr int kTile = 64;
  for (int k0 = 0; k0 < s.inputs; k0 += kTile) {
    const int k1 = std::min(s.inputs, k0 + kTile);
    for (int row = from; row < to; row++) {
      const uint8_t* source = s.values + (size_t)row * s.inputs * sizeof(T);
      uint8_t* target = panel + (size_t)(r + row - from) * sizeof(T);
      for (int k = k0; k < k1; k++) std::memcpy(target + (size_t)k * kPanelRows * sizeof(T), source + k * sizeof(T), sizeof(T));
    }
  }
}

// Lets go of rows [first, last) of one part.
void release_rows(const QuantizedRows& s, int first, int last) {
  if (s.layout != CodeLayout::rows) return;  // a transposed record is needed until its last row
  const size_t row_bytes = (size_t)s.words() * 4, scale_bytes = (size_t)s.groups() * size_of(s.scale_number);
  release_range(s.codes + first * row_bytes, s.codes + last * row_bytes);
  release_range(s.scales + first * scale_bytes, s.scales + last * scale_bytes);
}
void release_rows(const PlainRows& s, int first, int last) {
  const size_t row_bytes = (size_t)s.inputs * size_of(s.number);
  release_range(s.values + first * row_bytes, s.values + last * row_bytes);
}

// Lets go of what release_rows leaves: transposed records, once every row has been packed.
void release_rest(const QuantizedRows& s) {
  if (s.layout == CodeLayout::rows) return;
  const size_t word_rows = s.layout == CodeLayout::awq ? s.inputs : s.words(), row_words = s.layout == CodeLayout::awq ? s.rows / 8 : s.rows;
  release_range(s.codes, s.codes + word_rows * row_words * 4);
  release_range(s.scales, s.scales + (size_t)s.groups() * s.rows * size_of(s.scale_number));
  if (s.zeros) release_range(s.zeros, s.zeros + (size_t)s.groups() * row_words * 4);
}
void release_rest(const PlainRows&) {}

// Calls visit(part, first row in it, last row in it, offset in the run) for every part that rows [first, first + count) touch.
template <class Part, class Visit>
void over_parts(const std::vector<Part>& parts, int first, int count, Visit visit) {
  int start = 0;
  for (const Part& part : parts) {
    const int from = std::max(first, start), to = std::min(first + count, start + part.rows);
    if (from < to) visit(part, from - start, to - start, from - first);
    start += part.rows;
  }
}

// Fills all panels from the stacked parts on the pool: write(panel memory, first row, number of rows).
template <class Part, class Write>
void fill_panels(const std::vector<Part>& parts, const Panels& p, const RowOrder& order, uint8_t* base, bool release, ThreadPool& pool,
                 Write write) {
  Claims claims(pool.size());
  const int chunk = (1 + (int)((1 << 20) / (p.panel_bytes + 1)) + 1) / 2 * 2;  // pairs of gated panels stay together
  pool.run([&](int thread) {
    int begin, end;
    while (claims.take(thread, p.num_panels, chunk, &begin, &end)) {
      for (int i = begin; i < end; i++) {
        int first, count;
        panel_rows(p, order, i, &first, &count);
        write(base + (size_t)i * p.panel_bytes, first, count);
      }
      if (!release || order.kv_heads) continue;
      for (int half = 0; half < (p.interleaved ? 2 : 1); half++) {
        int first, count, last, last_count;
        const int low = p.interleaved ? begin + half : begin, high = p.interleaved ? end - 2 + half : end - 1;
        panel_rows(p, order, low, &first, &count);
        panel_rows(p, order, high, &last, &last_count);
        over_parts(parts, first, last + last_count - first, [&](const Part& part, int from, int to, int) { release_rows(part, from, to); });
      }
    }
  });
  if (release)
    for (const Part& part : parts) {
      if (order.kv_heads) release_rows(part, 0, part.rows);
      release_rest(part);
    }
}

template <class Part>
int stacked_rows(const std::vector<Part>& parts, const RowOrder& order) {
  if (parts.empty()) throw std::invalid_argument("no parts to stack");
  int rows = 0;
  for (const Part& part : parts) {
    if (part.inputs != parts[0].inputs) throw std::invalid_argument("stacked parts differ in their inputs");
    rows += part.rows;
  }
  if (order.kv_heads && rows != order.kv_heads * order.head_rows()) throw std::invalid_argument("rows are not those of all heads");
  if (order.gated && rows % 2) throw std::invalid_argument("a gated matrix has an odd number of rows");
  return rows;
}

// Memory for the panels, which is filled already when the arena is.
uint8_t* take_memory(Panels& p, const RowOrder& order, Arena& arena) {
  for (size_t fact : {p.panel_bytes, (size_t)p.num_panels, (size_t)p.rows, (size_t)p.inputs, (size_t)p.groups, (size_t)p.group,
                      (size_t)p.code_bits, (size_t)p.zero_point, (size_t)p.has_zeros, (size_t)p.number, (size_t)p.quantized,
                      (size_t)p.interleaved, (size_t)order.kv_heads, (size_t)order.q_rows, (size_t)order.kv_rows})
    arena.note_layout(fact);
  uint8_t* base = arena.allocate(p.panel_bytes * p.num_panels);
  p.data = base;
  return base;
}

// The layouts that matmul.h's with_format knows.
void check_layout(const Panels& p) {
  const bool half = p.number != Number::f32;
  if (p.has_zeros ? p.number == Number::f16 && p.code_bits == 4 && p.group == 32
                  : (p.code_bits == 4 && p.group == 32) || (p.code_bits == 4 && p.group == 40 && p.number == Number::f16) ||
                        (p.code_bits == 8 && p.group == 32 && half))
    return;
  throw std::invalid_argument("no kernel runs " + std::to_string(p.code_bits) + "-bit codes in groups of " + std::to_string(p.group) +
                              " with scales of this dtype");
}
}  // namespace

Panels pack(const std::vector<QuantizedRows>& parts, const RowOrder& order, bool release, Arena& arena, ThreadPool& pool,
            const Kernels& kernels) {
  Panels p = shape_of(stacked_rows(parts, order), parts[0].inputs, order.gated);
  const QuantizedRows& first = parts[0];
  for (const QuantizedRows& part : parts)
    if (part.bits != first.bits || part.group != first.group || part.scale_number != first.scale_number ||
        (part.zeros != nullptr) != (first.zeros != nullptr))
      throw std::invalid_argument("stacked parts differ in their quantization");
  p.quantized = true;
  p.number = first.scale_number;
  p.has_zeros = first.zeros != nullptr;
  p.code_bits = first.bits == 8 ? 8 : 4;
  p.zero_point = p.has_zeros ? 1 : first.zero_point();  // with zeros the sums of codes are wanted as they are
  p.group = first.group % kGroup == 0 ? kGroup : first.group;
  p.groups = ((p.inputs + p.group - 1) / p.group + 1) / 2 * 2;
  check_layout(p);
  p.panel_bytes = (size_t)(p.groups / 2) * p.block_bytes();
  uint8_t* base = take_memory(p, order, arena);
  if (arena.filled()) return p;
  bool common = true;  // the layout that a kernel packs
  for (const QuantizedRows& part : parts) common = common && part.bits == 4 && part.group == kGroup && part.layout == CodeLayout::rows;
  fill_panels(parts, p, order, base, release, pool, [&](uint8_t* panel, int first_row, int count) {
    const uint8_t *codes[kPanelRows] = {}, *scales[kPanelRows] = {};
    over_parts(parts, first_row, count, [&](const QuantizedRows& part, int from, int to, int at) {
      for (int row = from; row < to; row++, at++) {
        if (!common) {
          pack_row(part, row, p, panel, at);
          continue;
        }
        codes[at] = part.codes + (size_t)row * part.words() * 4;
        scales[at] = scale_at(part, row, 0);
      }
    });
    if (common) kernels.pack_rows(codes, scales, first.words(), (int)size_of(p.number), p.block_bytes(), panel);
  });
  return p;
}

Panels pack(const std::vector<PlainRows>& parts, const RowOrder& order, bool release, Arena& arena, ThreadPool& pool) {
  Panels p = shape_of(stacked_rows(parts, order), parts[0].inputs, order.gated);
  for (const PlainRows& part : parts)
    if (part.number != parts[0].number) throw std::invalid_argument("stacked parts differ in their dtype");
  p.number = parts[0].number;
  p.groups = ((p.inputs + kGroup - 1) / kGroup + 1) / 2 * 2;
  p.panel_bytes = (size_t)((p.inputs + 3) / 4 * 4) * kPanelRows * size_of(p.number);
  uint8_t* base = take_memory(p, order, arena);
  if (arena.filled()) return p;
  const bool wide = size_of(p.number) == 4;
  fill_panels(parts, p, order, base, release, pool, [&](uint8_t* panel, int first, int count) {
    over_parts(parts, first, count, [&](const PlainRows& part, int from, int to, int at) {
      wide ? pack_plain_rows<uint32_t>(part, from, to, panel, at) : pack_plain_rows<uint16_t>(part, from, to, panel, at);
    });
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
  const size_t block = p.block_bytes(), code_bytes = (size_t)p.lines() * 64;
  for (int g = 0; g * p.group < p.inputs; g++) {
    const uint8_t* b = panel + (size_t)(g / 2) * block;
    const float scale = widen(b + 2 * code_bytes + ((g % 2) * kPanelRows + r) * size, p.number);
    const int zero = p.has_zeros ? b[2 * code_bytes + 2 * p.scale_bytes() + (g % 2) * kPanelRows + r] : p.zero_point;
    const uint8_t* codes = b + (g % 2) * code_bytes + r * 4;
    for (int in = 0, n = std::min(p.group, p.inputs - g * p.group); in < n; in++) {
      int code;
      if (p.code_bits == 8)
        code = codes[(in / 4) * 64 + in % 4];
      else
        code = in % 8 < 4 ? codes[(in / 8) * 64 + in % 4] & 15 : codes[(in / 8) * 64 + in % 4] >> 4;
      y[g * p.group + in] = (float)(code - zero) * scale;
    }
  }
}

void read_row(const QuantizedRows& s, int row, float* y) {
  for (int g = 0; g < s.groups(); g++) {
    const float scale = widen(scale_at(s, row, g), s.scale_number);
    const int zero = zero_at(s, row, g), end = std::min(s.inputs, (g + 1) * s.group);
    if (s.layout == CodeLayout::rows && s.bits == 4 && end == (g + 1) * s.group) {  // what every token's embedding is read from
      const size_t first = (size_t)row * s.words() + g * s.group / 8;
      for (int i = 0; i < s.group / 8; i++) {
        const uint32_t word = word_at(s.codes, first + i);
        for (int j = 0; j < 8; j++) y[g * s.group + 8 * i + j] = (float)((int)(word >> (4 * j) & 15) - zero) * scale;
      }
      continue;
    }
    for (int k = g * s.group; k < end; k++) y[k] = (float)(code_at(s, row, k) - zero) * scale;
  }
}

void read_row(const PlainRows& s, int row, float* y) {
  const size_t size = size_of(s.number);
  for (int k = 0; k < s.inputs; k++) y[k] = widen(s.values + ((size_t)row * s.inputs + k) * size, s.number);
}
}  // namespace kq
