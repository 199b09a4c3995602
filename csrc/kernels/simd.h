// One vocabulary of sixteen-lane operations, four spellings. A translation unit defines KQ_ISA as avx512, avx2, portable or one of
// neon, neon_dotprod and neon_i8mm, and includes this inside no namespace; everything lands in kq::KQ_ISA, so nothing compiled
// with wide instructions can be linked into code that runs on a machine without them. For the same reason kernels use no standard
// library templates.
//
// Every operation gives the same bits in all four: multiply-adds are fused, reductions use one tree, integer dots are exact.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(KQ_ISA_AVX512) || defined(KQ_ISA_AVX2)
#include <immintrin.h>
#elif defined(KQ_ISA_NEON)
#include <arm_neon.h>
#endif

namespace kq {
namespace KQ_ISA {
#if defined(KQ_ISA_AVX512)
#include "kernels/simd_avx512.h"
constexpr int kIntCols = 12;   // columns a pass of the int8 kernel keeps in registers
constexpr int kFloatCols = 4;  // the same for float32 activations
constexpr int kRows = 12;      // query rows a pass of attention keeps in registers
constexpr int kByteRows = 6;   // the same over an int8 cache, two sums each
#elif defined(KQ_ISA_AVX2)
#include "kernels/simd_avx2.h"
constexpr int kIntCols = 3;
constexpr int kFloatCols = 1;
constexpr int kRows = 4;
constexpr int kByteRows = 2;
#elif defined(KQ_ISA_NEON)
#include "kernels/simd_neon.h"
#if defined(KQ_NEON_DOTPROD) || defined(KQ_NEON_I8MM)
constexpr int kIntCols = 4;
#else
constexpr int kIntCols = 2;
#endif
constexpr int kFloatCols = 1;
constexpr int kRows = 4;
constexpr int kByteRows = 4;
#else
#include "kernels/simd_portable.h"
constexpr int kIntCols = 2;
constexpr int kFloatCols = 1;
constexpr int kRows = 2;
constexpr int kByteRows = 2;
#endif
static_assert(kIntCols % kFloatCols == 0, "threads share columns in whole tiles of either kind");

#if !defined(KQ_ISA_AVX512)
// The exact dot product of one group from lines of nibbles; init + sum of code * activation.
struct NibbleDot {
  GroupDot dot;
  inline void start(int32_t init) { dot.start(init); }
  inline void add(const B64& line, const int8_t* low_quad, const int8_t* high_quad) {
    dot.add(low_nibbles(line), low_quad);
    dot.add(high_nibbles(line), high_quad);
  }
  inline I16 sum(int32_t init) const { return dot.sum(init); }
};

// What reduce_max() and reduce_add() give for each of sixteen.
static inline void reduce_max_each(const F16* v, float* out) {
  for (int i = 0; i < 16; i++) out[i] = reduce_max(v[i]);
}
static inline void reduce_add_each(const F16* v, float* out) {
  for (int i = 0; i < 16; i++) out[i] = reduce_add(v[i]);
}
static inline void reduce_add_each(const I16* v, int32_t* out) {
  for (int i = 0; i < 16; i++) out[i] = reduce_add(v[i]);
}
#endif

constexpr int kTogether = 6;  // from so many vectors on one tree reduces sixteen, instead of each alone

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

#if !defined(KQ_ISA_NEON)
// dot[c] += codes times quads[c], for NC columns.
template <int NC, class Dot>
static inline void add_columns(Dot* dot, B64 codes, const int8_t* quads) {
#pragma GCC unroll 16
  for (int c = 0; c < NC; c++) dot[c].add(codes, quads + c * 4);
}
#endif

// Added to a number of magnitude below 2^21, it leaves the nearest integer in the lowest bits, and taking it away that integer.
constexpr float kToInteger = 12582912.0f;

// e^x to about 1 ulp for x in [-87.3, 88.3]; 0 below (so also for -inf), that of 88.3 above. exp(0) is exactly 1.
// r = x - n ln 2 in two steps (Cody and Waite); the polynomial is the minimax one of degree 6 on |r| <= ln 2 / 2.
static inline F16 exp(F16 x) {
  const F16 lo = set1(-87.3f);
  F16 c = min(max(x, lo), set1(88.3f));
  const F16 to_integer = set1(kToInteger), ends_in_n = fma(c, set1(1.44269504f), to_integer), n = sub(ends_in_n, to_integer);
  F16 r = fma(n, set1(-0.693359375f), c);
  r = fma(n, set1(2.12194440e-4f), r);
  F16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(r, r), p, r);
  p = add(p, set1(1.0f));
  return select_lt(x, lo, zero(), add_to_exponent(p, ends_in_n));
}

// 2^x to about 1 ulp for x <= 88; 0 below -126 (so also for -inf). The polynomial is the minimax one of degree 6 on
// |r| <= 1/2 with the constant term 1, so 2^0 is exactly 1. NaN stays NaN where its lowest nine bits are 0, as those that
// operations make and those of 16-bit numbers are.
static inline F16 exp2(F16 x) {
  const F16 to_integer = set1(kToInteger), ends_in_n = add(x, to_integer), r = sub(x, sub(ends_in_n, to_integer));
  F16 p = set1(1.5469732170e-4f);
  p = fma(p, r, set1(1.3410000829e-3f));
  p = fma(p, r, set1(9.6180308610e-3f));
  p = fma(p, r, set1(5.5502973497e-2f));
  p = fma(p, r, set1(2.4022650719e-1f));
  p = fma(p, r, set1(6.9314724207e-1f));
  p = fma(p, r, set1(1.0f));
  return select_lt(x, set1(-126.0f), zero(), add_to_exponent(p, ends_in_n));
}

static inline F16 tanh(F16 x) {  // 1 - 2 / (e^2x + 1)
  return sub(set1(1.0f), div(set1(2.0f), add(exp(add(x, x)), set1(1.0f))));
}
static inline F16 capped(F16 x, float cap) { return mul(tanh(div(x, set1(cap))), set1(cap)); }

// Rational approximation x P(x^2) / Q(x^2) on [-4, 4] (the coefficients that Eigen and XLA use), good to a few ulp.
static inline F16 erf(F16 x) {
  F16 c = min(max(x, set1(-4.0f)), set1(4.0f)), z = mul(c, c);
  F16 p = set1(-2.72614225801306e-10f);
  p = fma(p, z, set1(2.77068142495902e-08f));
  p = fma(p, z, set1(-2.10102402082508e-06f));
  p = fma(p, z, set1(-5.69250639462346e-05f));
  p = fma(p, z, set1(-7.34990630326855e-04f));
  p = fma(p, z, set1(-2.95459980854025e-03f));
  p = fma(p, z, set1(-1.60960333262415e-02f));
  F16 q = set1(-1.45660718464996e-05f);
  q = fma(q, z, set1(-2.13374055278905e-04f));
  q = fma(q, z, set1(-1.68282697438203e-03f));
  q = fma(q, z, set1(-7.37332916720468e-03f));
  q = fma(q, z, set1(-1.42647390514189e-02f));
  return div(mul(c, p), q);
}
static inline F16 silu(F16 x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }
static inline F16 gelu(F16 x) { return mul(mul(set1(0.5f), x), add(set1(1.0f), erf(mul(x, set1(0.70710678f))))); }
static inline F16 gelu_tanh(F16 x) {  // x / 2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  F16 u = mul(fma(mul(mul(x, x), x), set1(0.044715f), x), set1(-1.59576912f));
  return div(x, add(set1(1.0f), exp(u)));
}
static inline F16 relu(F16 x) { return max(x, zero()); }
}  // namespace KQ_ISA
}  // namespace kq
