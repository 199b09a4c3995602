// The kernels of quantize.h in the vocabulary of simd.h; included once by each instruction set's translation unit.
#pragma once
#include "kernels/quantize.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

constexpr float kZeroPoint = 7.0f;
constexpr float kMaxCode = 14.0f;  // code 15 is never written
constexpr int kLanes = 16;

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
static inline bool any_nan(F16 x, F16 y) { return _mm512_cmp_ps_mask(x.v, y.v, _CMP_UNORD_Q) != 0; }
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
static inline bool any_nan(F16 x, F16 y) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, y.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, y.b, _CMP_UNORD_Q))) != 0;
}
static inline __m256i code_bytes(I16 x, I16 y) {
  __m256i lo = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
  __m256i hi = _mm256_permute4x64_epi64(_mm256_packus_epi32(y.a, y.b), 0xD8);
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(lo, hi), 0xD8);
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
static inline bool any_nan(F16 x, F16 y) {
  bool found = false;
  for (int i = 0; i < kLanes; i++) found |= x.v[i] != x.v[i] || y.v[i] != y.v[i];
  return found;
}
#endif

// 32 codes of 0..14 into four words, the first in the low bits.
static inline void pack_words(I16 x, I16 y, uint32_t* words) {
#if defined(KQ_ISA_AVX512) || defined(KQ_ISA_AVX2)
  // even code + 16 * odd code: one packed byte in each 16-bit lane
  __m256i pairs = _mm256_maddubs_epi16(code_bytes(x, y), _mm256_set1_epi16(0x1001));
  __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0xD8);
  _mm_storeu_si128((__m128i*)words, _mm256_castsi256_si128(bytes));
#else
  for (int w = 0; w < 4; w++) {
    const int32_t* codes = (w < 2 ? x.v : y.v) + 8 * (w & 1);
    uint32_t word = 0;
    for (int j = 0; j < 8; j++) word |= (uint32_t)codes[j] << (4 * j);
    words[w] = word;
  }
#endif
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
static inline float magnitude_with_nan(F16 x, F16 y, int n, float lowest) {
  float values[2 * kLanes];
  store(values, abs(x));
  store(values + kLanes, abs(y));
  float m = lowest;
  for (int i = 0; i < 2 * kLanes; i++) {
    float a = i < n ? values[i] : lowest;
    m = m > a ? m : a;
  }
  return m;
}

// One group of n <= 32 values, the rest of x and y being zeros. Returns the scale, exact in the model dtype.
template <Number T>
static inline float quantize_group(F16 x, F16 y, int n, uint32_t* words) {
  float m = any_nan(x, y) ? magnitude_with_nan(x, y, n, lowest_finite<T>()) : reduce_max(max(abs(x), abs(y)));
  float scale = m / kZeroPoint;
  if constexpr (T == Number::bf16) scale = widened_bf16(scale_bf16(scale));
  F16 divisor = set1(scale);
  if constexpr (T == Number::f16) {
    divisor = round_f16(divisor);
    float lanes[kLanes];
    store(lanes, divisor);
    scale = lanes[0];
  }
  const F16 zero_point = set1(kZeroPoint), top = set1(kMaxCode);
  F16 qx = div(x, divisor), qy = div(y, divisor);
  if constexpr (T == Number::f16) qx = round_f16(qx), qy = round_f16(qy);
  qx = add(qx, zero_point), qy = add(qy, zero_point);
  if constexpr (T == Number::f16) qx = round_f16(qx), qy = round_f16(qy);
  // max gives its second operand for NaN, so NaN becomes 0; clamping first leaves the rounding unchanged.
  pack_words(round_to_int(min(max(qx, zero()), top)), round_to_int(min(max(qy, zero()), top)), words);
  return scale;
}

// The last group of a row, cut short: n < 32 values.
template <Number S, Number T>
static float quantize_short_group(const void* source, size_t i, int n, uint32_t* words) {
  const size_t size = S == Number::f32 ? 4 : 2;
  alignas(64) uint8_t padded[kGroup * 4] = {};
  __builtin_memcpy(padded, (const uint8_t*)source + i * size, n * size);
  float scale = quantize_group<T>(load_as_model<S, T>(padded, 0), load_as_model<S, T>(padded, kLanes), n, words);
  for (int w = 0; w < 4; w++) {
    int kept = min_int(max_int(n - 8 * w, 0), 8);
    words[w] &= kept == 8 ? 0xFFFFFFFFu : (1u << (4 * kept)) - 1;
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

template <Number S, Number T>
static void quantize_rows_as(const void* source, size_t rows, size_t width, uint32_t* codes, void* scales) {
  const size_t groups = (width + kGroup - 1) / kGroup;
  alignas(64) float pending[kLanes] = {};
  for (size_t row = 0; row < rows; row++) {
    const size_t start = row * width;
    for (size_t first = 0; first < groups; first += kLanes) {
      const int count = (int)(groups - first < kLanes ? groups - first : kLanes);
      for (int g = 0; g < count; g++) {
        const size_t k = (first + g) * kGroup;
        uint32_t* words = codes + 4 * (row * groups + first + g);
        if (k + kGroup <= width)
          pending[g] = quantize_group<T>(load_as_model<S, T>(source, start + k),
                                         load_as_model<S, T>(source, start + k + kLanes), kGroup, words);
        else
          pending[g] = quantize_short_group<S, T>(source, start + k, (int)(width - k), words);
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

static void quantize_rows(const void* source, Number source_number, Number model, size_t rows, size_t width, uint32_t* codes,
                          void* scales) {
  with_numbers(source_number, model, [&]<Number S, Number T>() {
    quantize_rows_as<S, T>(source, rows, width, codes, scales);
  });
}

static void cast_values(const void* source, Number source_number, Number model, size_t n, void* out) {
  with_numbers(source_number, model, [&]<Number S, Number T>() { cast_values_as<S, T>(source, n, out); });
}

extern const QuantizeKernels quantize_table;
const QuantizeKernels quantize_table = {quantize_rows, cast_values};
}  // namespace KQ_ISA
}  // namespace kq
