// The kernels of quantize.h in the vocabulary of simd.h; included once by each instruction set's translation unit.
#pragma once
#include "kernels/quantize.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

constexpr int kLanes = 16;
constexpr int kMaxVectors = 3;  // a group of 40, filled up

constexpr int vectors_of(int bits) { return (group_of(bits) + kLanes - 1) / kLanes; }
constexpr float zero_point_of(int bits) { return (float)((1 << (bits - 1)) - 1); }

#if defined(KQ_ISA_AVX512)
static inline F16 round_f16(F16 x) {
  return {_mm512_cvtph_ps(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
}
static inline __m512i bf16_rounded_bits(__m512i u) {
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
}
static inline F16 round_bf16(F16 x) {
  __m512i u = _mm512_castps_si512(x.v);
  __m512i r = _mm512_and_si512(bf16_rounded_bits(u), _mm512_set1_epi32((int)0xFFFF0000));
  return {_mm512_mask_mov_ps(_mm512_castsi512_ps(r), _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), x.v)};
}
static inline bool any_nan(F16 x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q) != 0; }
static inline __m256i code_bytes(I16 x, I16 y) {
  return _mm256_set_m128i(_mm512_cvtepi32_epi8(y.v), _mm512_cvtepi32_epi8(x.v));
}
#elif defined(KQ_ISA_AVX2)
static inline __m256 round_f16_8(__m256 x) { return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
static inline F16 round_f16(F16 x) { return {round_f16_8(x.a), round_f16_8(x.b)}; }
static inline __m256 round_bf16_8(__m256 x) {
  __m256i u = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  r = _mm256_and_si256(r, _mm256_set1_epi32((int)0xFFFF0000));
  return _mm256_blendv_ps(_mm256_castsi256_ps(r), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
static inline F16 round_bf16(F16 x) { return {round_bf16_8(x.a), round_bf16_8(x.b)}; }
static inline bool any_nan(F16 x) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))) != 0;
}
static inline __m256i code_bytes(I16 x, I16 y) {
  __m256i lo = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
  __m256i hi = _mm256_permute4x64_epi64(_mm256_packus_epi32(y.a, y.b), 0xD8);
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(lo, hi), 0xD8);
}
#elif defined(KQ_ISA_NEON)
static inline float32x4_t round_f16_4(float32x4_t x) { return vcvt_f32_f16(vcvt_f16_f32(x)); }
static inline F16 round_f16(F16 x) { return {round_f16_4(x.a), round_f16_4(x.b), round_f16_4(x.c), round_f16_4(x.d)}; }
static inline float32x4_t round_bf16_4(float32x4_t x) {
  const uint32x4_t u = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t r = vandq_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), vdupq_n_u32(0xFFFF0000));
  return vbslq_f32(vceqq_f32(x, x), vreinterpretq_f32_u32(r), x);
}
static inline F16 round_bf16(F16 x) { return {round_bf16_4(x.a), round_bf16_4(x.b), round_bf16_4(x.c), round_bf16_4(x.d)}; }
static inline bool any_nan(F16 x) {
  const uint32x4_t ab = vandq_u32(vceqq_f32(x.a, x.a), vceqq_f32(x.b, x.b));
  const uint32x4_t cd = vandq_u32(vceqq_f32(x.c, x.c), vceqq_f32(x.d, x.d));
  return vminvq_u32(vandq_u32(ab, cd)) == 0;
}
#else
static inline F16 round_f16(F16 x) {
  for (int i = 0; i < kLanes; i++) x.v[i] = widen_f16(narrow_f16(x.v[i]));
  return x;
}
static inline F16 round_bf16(F16 x) {
  for (int i = 0; i < kLanes; i++) {
    uint32_t u = float_to_bits(x.v[i]);
    if (x.v[i] == x.v[i]) x.v[i] = bits_to_float((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000);
  }
  return x;
}
static inline bool any_nan(F16 x) {
  bool found = false;
  for (int i = 0; i < kLanes; i++) found |= x.v[i] != x.v[i];
  return found;
}
#endif

// The codes of one group into its words, the first code in the low bits.
template <int Bits>
static inline void pack_words(const I16* codes, uint32_t* words) {
#if defined(KQ_ISA_AVX512) || defined(KQ_ISA_AVX2)
  if constexpr (Bits == 8) {
    _mm256_storeu_si256((__m256i*)words, code_bytes(codes[0], codes[1]));
    return;
  }
  if constexpr (Bits == 4) {
    // even code + 16 * odd code: one packed byte in each 16-bit lane
    __m256i pairs = _mm256_maddubs_epi16(code_bytes(codes[0], codes[1]), _mm256_set1_epi16(0x1001));
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0xD8);
    _mm_storeu_si128((__m128i*)words, _mm256_castsi256_si128(bytes));
    return;
  }
#elif defined(KQ_ISA_NEON)
  if constexpr (Bits == 8) {
    store_i8((int8_t*)words, codes[0]), store_i8((int8_t*)words + 16, codes[1]);
    return;
  }
  if constexpr (Bits == 4) {
    // even code + 16 * odd code
    const uint8x16x2_t pairs = vuzpq_u8(vreinterpretq_u8_s8(narrow_i8(codes[0])), vreinterpretq_u8_s8(narrow_i8(codes[1])));
    vst1q_u8((uint8_t*)words, vsliq_n_u8(pairs.val[0], pairs.val[1], 4));
    return;
  }
#endif
  constexpr int kPerWord = 32 / Bits;
  int32_t values[kMaxVectors * kLanes];
  for (int v = 0; v < vectors_of(Bits); v++) __builtin_memcpy(values + v * kLanes, &codes[v], sizeof(int32_t) * kLanes);
  for (int w = 0; w < words_of(Bits); w++) {
    uint32_t word = 0;
    for (int j = 0; j < kPerWord; j++) word |= (uint32_t)values[w * kPerWord + j] << (Bits * j);
    words[w] = word;
  }
}

template <Number S>
static inline F16 load_source(const void* source, size_t i) {
  if constexpr (S == Number::f32) return load((const float*)source + i);
  if constexpr (S == Number::f16) return load_f16((const uint16_t*)source + i);
  return load_bf16((const uint16_t*)source + i);
}

template <Number S, Number T>
static inline F16 load_as_model(const void* source, size_t i) {
  F16 x = load_source<S>(source, i);
  if constexpr (S == T) return x;
  if constexpr (T == Number::f16) return round_f16(x);
  if constexpr (T == Number::bf16) return round_bf16(x);
  return x;
}

// Nearest even on the bits, without special cases: how the bfloat16 modes round a scale.
static inline uint16_t scale_bf16(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
static inline uint16_t model_bf16(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  if (x != x) return (uint16_t)(0x7FC0 | ((u >> 16) & 0x8000));
  return (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
static inline float widened_bf16(uint16_t bits) {
  uint32_t u = (uint32_t)bits << 16;
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

template <Number T>
static inline float lowest_finite() {
  if constexpr (T == Number::f16) return -65504.0f;
  if constexpr (T == Number::bf16) return widened_bf16(0xFF7F);
  return -3.40282346638528859812e38f;
}

// The group's magnitude by the letter: a NaN is forgotten at the next element, and positions from n on count as `lowest`.
template <int Bits>
static inline float magnitude_with_nan(const F16* x, int n, float lowest) {
  float values[kMaxVectors * kLanes];
  for (int v = 0; v < vectors_of(Bits); v++) store(values + v * kLanes, abs(x[v]));
  float m = lowest;
  for (int i = 0; i < group_of(Bits); i++) {
    float a = i < n ? values[i] : lowest;
    m = m > a ? m : a;
  }
  return m;
}

// The group's largest magnitude; positions from n on are zeros.
template <Number T, int Bits>
static inline float magnitude(const F16* x, int n) {
  bool has_nan = false;
  F16 most = abs(x[0]);
  for (int v = 0; v < vectors_of(Bits); v++) {
    has_nan |= any_nan(x[v]);
    most = max(most, abs(x[v]));
  }
  return has_nan ? magnitude_with_nan<Bits>(x, n, lowest_finite<T>()) : reduce_max(most);
}

// One group of n values, the rest of x being zeros. Returns the scale; for bfloat16 it may still have to be rounded.
template <Number T, int Bits>
static inline float quantize_group(const F16* x, int n, bool unrounded_divisor, uint32_t* words) {
  float scale = magnitude<T, Bits>(x, n) / zero_point_of(Bits);
  if constexpr (T == Number::bf16)
    if (!unrounded_divisor) scale = widened_bf16(scale_bf16(scale));
  F16 divisor = set1(scale);
  if constexpr (T == Number::f16) {
    divisor = round_f16(divisor);
    float lanes[kLanes];
    store(lanes, divisor);
    scale = lanes[0];
  }
  const F16 zero_point = set1(zero_point_of(Bits)), top = set1(2 * zero_point_of(Bits));  // all ones is never written
  I16 codes[kMaxVectors];
  for (int v = 0; v < vectors_of(Bits); v++) {
    F16 q = div(x[v], divisor);
    if constexpr (T == Number::f16) q = round_f16(q);
    q = add(q, zero_point);
    if constexpr (T == Number::f16) q = round_f16(q);
    // max gives its second operand for NaN, so NaN becomes 0; clamping first leaves the rounding unchanged.
    codes[v] = round_to_int(min(max(q, zero()), top));
  }
  pack_words<Bits>(codes, words);
  return scale;
}

// A group of n values that is cut short, or does not fill its vectors: copied so that nothing behind it is read.
template <Number S, Number T, int Bits>
static float quantize_copied_group(const void* source, size_t i, int n, bool unrounded_divisor, uint32_t* words) {
  const size_t size = S == Number::f32 ? 4 : 2;
  alignas(64) uint8_t padded[kMaxVectors * kLanes * 4] = {};
  __builtin_memcpy(padded, (const uint8_t*)source + i * size, n * size);
  F16 x[kMaxVectors];
  for (int v = 0; v < vectors_of(Bits); v++) x[v] = load_as_model<S, T>(padded, v * kLanes);
  float scale = quantize_group<T, Bits>(x, n, unrounded_divisor, words);
  constexpr int kPerWord = 32 / Bits;
  for (int w = 0; w < words_of(Bits); w++) {
    int kept = min_int(max_int(n - kPerWord * w, 0), kPerWord);
    if (kept < kPerWord) words[w] &= (1u << (Bits * kept)) - 1;
  }
  return scale;
}

template <Number T>
static inline void store_scales(const float* scales, int n, void* out, size_t i) {
  if constexpr (T == Number::f16) {
    uint16_t bits[kLanes];
    store_f16(bits, load(scales));
    __builtin_memcpy((uint16_t*)out + i, bits, 2 * (size_t)n);
  } else if constexpr (T == Number::bf16) {
    for (int j = 0; j < n; j++) ((uint16_t*)out)[i + j] = scale_bf16(scales[j]);
  } else {
    __builtin_memcpy((float*)out + i, scales, 4 * (size_t)n);
  }
}

template <Number S, Number T, int Bits>
static void quantize_rows_as(const void* source, bool unrounded_divisor, size_t rows, size_t width, uint32_t* codes, void* scales) {
  constexpr size_t kSize = group_of(Bits), kWords = words_of(Bits);
  constexpr bool kFills = kSize % kLanes == 0;
  const size_t groups = (width + kSize - 1) / kSize;
  alignas(64) float pending[kLanes] = {};
  for (size_t row = 0; row < rows; row++) {
    const size_t start = row * width;
    for (size_t first = 0; first < groups; first += kLanes) {
      const int count = (int)(groups - first < kLanes ? groups - first : kLanes);
      for (int g = 0; g < count; g++) {
        const size_t k = (first + g) * kSize;
        uint32_t* words = codes + kWords * (row * groups + first + g);
        if (kFills && k + kSize <= width) {
          F16 x[kMaxVectors];
          for (int v = 0; v < vectors_of(Bits); v++) x[v] = load_as_model<S, T>(source, start + k + v * kLanes);
          pending[g] = quantize_group<T, Bits>(x, (int)kSize, unrounded_divisor, words);
        } else {
          const int n = (int)(k + kSize <= width ? kSize : width - k);
          pending[g] = quantize_copied_group<S, T, Bits>(source, start + k, n, unrounded_divisor, words);
        }
      }
      store_scales<T>(pending, count, scales, row * groups + first);
    }
  }
}

template <Number T>
static inline void store_model(F16 x, void* out, size_t i) {
  if constexpr (T == Number::f16) {
    store_f16((uint16_t*)out + i, x);
  } else if constexpr (T == Number::f32) {
    store((float*)out + i, x);
  } else {
    float lanes[kLanes];
    store(lanes, x);
    for (int j = 0; j < kLanes; j++) ((uint16_t*)out)[i + j] = model_bf16(lanes[j]);
  }
}

template <Number S, Number T>
static void cast_values_as(const void* source, size_t n, void* out) {
  if constexpr (S == T) {  // bit for bit, NaN payloads included
    __builtin_memcpy(out, source, n * (S == Number::f32 ? 4 : 2));
    return;
  }
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_model<T>(load_source<S>(source, i), out, i);
  if (i == n) return;
  const size_t size = S == Number::f32 ? 4 : 2;
  const size_t out_size = T == Number::f32 ? 4 : 2;
  alignas(64) uint8_t padded[kLanes * 4] = {}, result[kLanes * 4];
  __builtin_memcpy(padded, (const uint8_t*)source + i * size, (n - i) * size);
  store_model<T>(load_source<S>(padded, 0), result, 0);
  __builtin_memcpy((uint8_t*)out + i * out_size, result, (n - i) * out_size);
}

template <Number N>
struct Constant {
  static constexpr Number value = N;
};

// Calls f with the two dtypes as template arguments: f.operator()<S, T>().
template <typename F>
static inline void with_numbers(Number source, Number model, F f) {
  auto with_model = [&](auto s) {
    constexpr Number S = decltype(s)::value;
    if (model == Number::f32) return f.template operator()<S, Number::f32>();
    if (model == Number::f16) return f.template operator()<S, Number::f16>();
    return f.template operator()<S, Number::bf16>();
  };
  if (source == Number::f32) return with_model(Constant<Number::f32>{});
  if (source == Number::f16) return with_model(Constant<Number::f16>{});
  return with_model(Constant<Number::bf16>{});
}

static void quantize_rows(const void* source, Number source_number, Number model, int bits, bool unrounded_divisor, size_t rows,
                          size_t width, uint32_t* codes, void* scales) {
  with_numbers(source_number, model, [&]<Number S, Number T>() {
    if (bits == 3) return quantize_rows_as<S, T, 3>(source, unrounded_divisor, rows, width, codes, scales);
    if (bits == 8) return quantize_rows_as<S, T, 8>(source, unrounded_divisor, rows, width, codes, scales);
    quantize_rows_as<S, T, 4>(source, unrounded_divisor, rows, width, codes, scales);
  });
}

static void cast_values(const void* source, Number source_number, Number model, size_t n, void* out) {
  with_numbers(source_number, model, [&]<Number S, Number T>() { cast_values_as<S, T>(source, n, out); });
}

extern const QuantizeKernels quantize_table;
const QuantizeKernels quantize_table = {quantize_rows, cast_values};
}  // namespace KQ_ISA
}  // namespace kq
