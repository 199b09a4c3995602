#include "convert/ggml_blocks.h"

#include <string.h>

namespace kq {
namespace {

template <typename T>
inline T read(const uint8_t* p) {
  T value;
  memcpy(&value, p, sizeof value);
  return value;
}

inline float half(const uint8_t* p) {
  const uint32_t bits = read<uint16_t>(p), sign = (bits & 0x8000) << 16, rest = bits & 0x7FFF;
  uint32_t wide = (rest << 13) + 0x38000000;       // the exponent's bias is 127 instead of 15
  if (rest >= 0x7C00) wide = (rest << 13) | 0x7F800000;  // infinity, NaN
  float value;
  if (rest < 0x0400) {  // zero, subnormal: rest * 2^-24
    value = (float)rest * 0x1p-24f;
    memcpy(&wide, &value, 4);
  }
  wide |= sign;
  memcpy(&value, &wide, 4);
  return value;
}

// The low halves of eight bytes, side by side in 32 bits.
inline uint32_t squeezed(uint64_t bytes) {
  bytes &= 0x0F0F0F0F0F0F0F0F;
  bytes = (bytes | bytes >> 4) & 0x00FF00FF00FF00FF;
  bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFF;
  return (uint32_t)(bytes | bytes >> 16);
}

// Low halves of n bytes, then the high ones.
template <int n>
inline void half_bytes(const uint8_t* packed, uint8_t* codes) {
  for (int i = 0; i < n; i++) codes[i] = packed[i] & 15;
  for (int i = 0; i < n; i++) codes[n + i] = packed[i] >> 4;
}

// Codes of 5 bits in a group of 32: the fifth ones are the bits of a word.
inline void five_bits(const uint8_t* high, const uint8_t* packed, uint8_t* codes) {
  const uint32_t word = read<uint32_t>(high);
  half_bytes<16>(packed, codes);
  for (int i = 0; i < 32; i++) codes[i] |= (uint8_t)((word >> i & 1) << 4);
}

template <int n>
inline void scaled(const uint8_t* codes, int zero_point, float scale, float* out) {
  for (int i = 0; i < n; i++) out[i] = scale * (float)(codes[i] - zero_point);
}

template <int n>
inline void scaled_plus(const uint8_t* codes, float scale, float plus, float* out) {
  for (int i = 0; i < n; i++) out[i] = scale * (float)codes[i] + plus;
}

struct Q4_0 {
  static constexpr size_t kValues = 32, kBytes = 18;
  static void values(const uint8_t* block, float* out) {
    uint8_t codes[32];
    half_bytes<16>(block + 2, codes);
    scaled<32>(codes, 8, half(block), out);
  }
};

struct Q4_1 {
  static constexpr size_t kValues = 32, kBytes = 20;
  static void values(const uint8_t* block, float* out) {
    uint8_t codes[32];
    half_bytes<16>(block + 4, codes);
    scaled_plus<32>(codes, half(block), half(block + 2), out);
  }
};

struct Q5_0 {
  static constexpr size_t kValues = 32, kBytes = 22;
  static void values(const uint8_t* block, float* out) {
    uint8_t codes[32];
    five_bits(block + 2, block + 6, codes);
    scaled<32>(codes, 16, half(block), out);
  }
};

struct Q5_1 {
  static constexpr size_t kValues = 32, kBytes = 24;
  static void values(const uint8_t* block, float* out) {
    uint8_t codes[32];
    five_bits(block + 4, block + 8, codes);
    scaled_plus<32>(codes, half(block), half(block + 2), out);
  }
};

struct Q8_0 {
  static constexpr size_t kValues = 32, kBytes = 34;
  static void values(const uint8_t* block, float* out) {
    const float scale = half(block);
    for (int i = 0; i < 32; i++) out[i] = scale * (float)(int8_t)block[2 + i];
  }
};

// Scale and minimum of group i in the 12 bytes of a K block: 6 bits each, the top 2 of the last four kept with the first four.
inline void k_scales(const uint8_t* packed, int i, uint8_t* scale, uint8_t* minimum) {
  if (i < 4) {
    *scale = packed[i] & 63;
    *minimum = packed[i + 4] & 63;
  } else {
    *scale = (uint8_t)((packed[i + 4] & 15) | (packed[i - 4] >> 2 & 48));
    *minimum = (uint8_t)(packed[i + 4] >> 4 | (packed[i] >> 2 & 48));
  }
}

// Eight groups of 32 with 4-bit codes, and a fifth bit each in `high` if there is one (bit i of byte j: code j of group i).
inline void k_values(const uint8_t* block, const uint8_t* high, const uint8_t* packed, float* out) {
  const float all = half(block), all_minimum = half(block + 2);
  for (int pair = 0; pair < 4; pair++) {
    uint8_t codes[64];
    half_bytes<32>(packed + 32 * pair, codes);
    for (int g = 0; g < 2; g++) {
      const int group = 2 * pair + g;
      if (high)
        for (int i = 0; i < 32; i++) codes[32 * g + i] |= (uint8_t)((high[i] >> group & 1) << 4);
      uint8_t scale, minimum;
      k_scales(block + 4, group, &scale, &minimum);
      scaled_plus<32>(codes + 32 * g, all * (float)scale, -(all_minimum * (float)minimum), out + 32 * group);
    }
  }
}

struct Q4_K {
  static constexpr size_t kValues = 256, kBytes = 144;
  static void values(const uint8_t* block, float* out) { k_values(block, nullptr, block + 16, out); }
};

struct Q5_K {
  static constexpr size_t kValues = 256, kBytes = 176;
  static void values(const uint8_t* block, float* out) { k_values(block, block + 16, block + 48, out); }
};

struct Q6_K {
  static constexpr size_t kValues = 256, kBytes = 210;
  static void values(const uint8_t* block, float* out) {
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    const float all = half(block + 208);
    for (int part = 0; part < 2; part++) {
      uint8_t codes[128];
      half_bytes<64>(low + 64 * part, codes);
      for (int i = 0; i < 32; i++) {  // two bits for each of four codes
        const uint8_t bits = high[32 * part + i];
        codes[i] |= (uint8_t)(bits << 4 & 48);
        codes[32 + i] |= (uint8_t)(bits << 2 & 48);
        codes[64 + i] |= bits & 48;
        codes[96 + i] |= bits >> 2 & 48;
      }
      float factors[128];
      for (int g = 0; g < 8; g++) {
        const float scale = all * (float)(int8_t)scales[8 * part + g];
        for (int i = 0; i < 16; i++) factors[16 * g + i] = scale;
      }
      for (int i = 0; i < 128; i++) out[128 * part + i] = factors[i] * (float)(codes[i] - 32);
    }
  }
};

template <typename Type>
void values_of(const uint8_t* blocks, size_t count, float* out) {
  for (size_t i = 0; i < count; i++) Type::values(blocks + i * Type::kBytes, out + i * Type::kValues);
}

template <typename Type>
constexpr GgmlType described(const char* name) {
  return {name, Type::kValues, Type::kBytes, values_of<Type>};
}

const GgmlType kTypes[] = {described<Q4_0>("Q4_0"), described<Q4_1>("Q4_1"), described<Q5_0>("Q5_0"), described<Q5_1>("Q5_1"),
                           described<Q8_0>("Q8_0"), described<Q4_K>("Q4_K"), described<Q5_K>("Q5_K"), described<Q6_K>("Q6_K")};
}  // namespace

void q4_0_codes(const uint8_t* blocks, const int64_t* order, size_t rows, size_t groups, uint32_t* codes, uint16_t* scales) {
  for (size_t row = 0; row < rows; row++) {
    const uint8_t* block = blocks + (order ? (size_t)order[row] : row) * groups * Q4_0::kBytes;
    for (size_t g = 0; g < groups; g++, block += Q4_0::kBytes, codes += 4) {
      const uint64_t first = ~read<uint64_t>(block + 2), second = ~read<uint64_t>(block + 10);  // 15 - q in every half byte
      codes[0] = squeezed(first);
      codes[1] = squeezed(second);
      codes[2] = squeezed(first >> 4);
      codes[3] = squeezed(second >> 4);
      *scales++ = read<uint16_t>(block) ^ 0x8000;
    }
  }
}

const GgmlType* ggml_type_named(const char* name) {
  for (const GgmlType& type : kTypes)
    if (strcmp(type.name, name) == 0) return &type;
  return nullptr;
}
}  // namespace kq
