// Sixteen lanes as plain loops: the slow twin of the other two, and what runs on any other machine.
#pragma once

#define KQ_EACH for (int i = 0; i < 16; i++)

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};
struct B64 {
  uint8_t v[64];
};

static inline F16 set1(float x) { F16 r; KQ_EACH r.v[i] = x; return r; }
static inline F16 zero() { return set1(0.0f); }
static inline F16 load(const float* p) { F16 r; KQ_EACH r.v[i] = p[i]; return r; }
static inline void store(float* p, F16 x) { KQ_EACH p[i] = x.v[i]; }
static inline F16 load_n(const float* p, int n) { F16 r; KQ_EACH r.v[i] = i < n ? p[i] : 0.0f; return r; }
static inline void store_n(float* p, F16 x, int n) { for (int i = 0; i < n; i++) p[i] = x.v[i]; }
static inline F16 add(F16 x, F16 y) { KQ_EACH x.v[i] += y.v[i]; return x; }
static inline F16 sub(F16 x, F16 y) { KQ_EACH x.v[i] -= y.v[i]; return x; }
static inline F16 mul(F16 x, F16 y) { KQ_EACH x.v[i] *= y.v[i]; return x; }
static inline F16 div(F16 x, F16 y) { KQ_EACH x.v[i] /= y.v[i]; return x; }
// As the x86 instructions: the second operand where the comparison is false or unordered.
static inline F16 max(F16 x, F16 y) { KQ_EACH x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]; return x; }
static inline F16 min(F16 x, F16 y) { KQ_EACH x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]; return x; }
static inline F16 fma(F16 x, F16 y, F16 z) { KQ_EACH z.v[i] = __builtin_fmaf(x.v[i], y.v[i], z.v[i]); return z; }
static inline F16 abs(F16 x) { KQ_EACH x.v[i] = __builtin_fabsf(x.v[i]); return x; }
static inline F16 select_lt(F16 a, F16 b, F16 x, F16 y) { KQ_EACH y.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i]; return y; }

static inline float bits_to_float(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
static inline uint32_t float_to_bits(float f) { uint32_t u; __builtin_memcpy(&u, &f, 4); return u; }
static inline float widen_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000 | (mantissa << 13) | (mantissa ? 0x400000 : 0));
  if (exponent) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  float f = (float)mantissa * 5.9604644775390625e-8f;  // subnormal: mantissa * 2^-24, exact
  return bits_to_float(sign | float_to_bits(f));
}
static inline uint16_t narrow_f16(float f) {  // nearest, ties to even
  uint32_t u = float_to_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7FFFFFFF;
  if (a > 0x7F800000) return (uint16_t)(sign | 0x7E00 | ((a >> 13) & 0x3FF));
  if (a >= 0x477FF000) return (uint16_t)(sign | 0x7C00);  // from 65,520 on
  if (a < 0x38800000) {                                   // subnormal result: let the float adder round
    float r = bits_to_float(a) + 0.5f;                    // the last place of 0.5 is 2^-24
    return (uint16_t)(sign | (float_to_bits(r) - 0x3F000000));
  }
  a += 0xC8000FFF + ((a >> 13) & 1);
  return (uint16_t)(sign | (a >> 13));
}
static inline F16 load_f16(const uint16_t* p) { F16 r; KQ_EACH r.v[i] = widen_f16(p[i]); return r; }
static inline void store_f16(uint16_t* p, F16 x) { KQ_EACH p[i] = narrow_f16(x.v[i]); }
static inline F16 load_bf16(const uint16_t* p) { F16 r; KQ_EACH r.v[i] = bits_to_float((uint32_t)p[i] << 16); return r; }
static inline I16 round_to_int(F16 x) {  // |x| < 2^31; the default rounding mode is nearest even
  I16 r;
  KQ_EACH r.v[i] = (int32_t)__builtin_lrintf(x.v[i]);
  return r;
}
static inline F16 to_float(I16 x) { F16 r; KQ_EACH r.v[i] = (float)x.v[i]; return r; }
static inline I16 iset1(int32_t x) { I16 r; KQ_EACH r.v[i] = x; return r; }
static inline F16 add_to_exponent(F16 x, F16 ends_in_n) {
  KQ_EACH x.v[i] = bits_to_float(float_to_bits(x.v[i]) + (float_to_bits(ends_in_n.v[i]) << 23));
  return x;
}
static inline void store_i8(int8_t* p, I16 x) { KQ_EACH p[i] = (int8_t)x.v[i]; }
static inline int32_t reduce_add(I16 x) { int32_t s = 0; KQ_EACH s += x.v[i]; return s; }
static inline float reduce_add(F16 x) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) x.v[i] += x.v[i + step];
  return x.v[0];
}
static inline float reduce_max(F16 x) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) x.v[i] = x.v[i] > x.v[i + step] ? x.v[i] : x.v[i + step];
  return x.v[0];
}

static inline B64 load_bytes(const uint8_t* p) { B64 r; __builtin_memcpy(r.v, p, 64); return r; }
static inline void store_bytes(uint8_t* p, B64 x) { __builtin_memcpy(p, x.v, 64); }
static inline B64 low_nibbles(B64 x) { for (int i = 0; i < 64; i++) x.v[i] &= 15; return x; }
static inline B64 high_nibbles(B64 x) { for (int i = 0; i < 64; i++) x.v[i] >>= 4; return x; }
template <int J>
static inline F16 byte_to_float(const B64& x) { F16 r; KQ_EACH r.v[i] = (float)x.v[4 * i + J]; return r; }

struct GroupDot {
  int32_t acc[16];
  inline void start(int32_t init) { KQ_EACH acc[i] = init; }
  inline void add(const B64& codes, const int8_t* quad) {
    KQ_EACH for (int j = 0; j < 4; j++) acc[i] += (int32_t)codes.v[4 * i + j] * quad[j];
  }
  inline I16 sum(int32_t) const { I16 r; KQ_EACH r.v[i] = acc[i]; return r; }
};
using GroupDotWide = GroupDot;
using GroupDotSmall = GroupDot;

static inline I16 iadd(I16 x, I16 y) { KQ_EACH x.v[i] += y.v[i]; return x; }
static inline I16 imul(I16 x, I16 y) { KQ_EACH x.v[i] *= y.v[i]; return x; }
static inline I16 load_u8(const uint8_t* p) { I16 r; KQ_EACH r.v[i] = p[i]; return r; }

static inline void prefetch(const void*) {}
static inline void prefetch_near(const void*) {}
#undef KQ_EACH
