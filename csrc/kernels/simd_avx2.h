// Sixteen lanes as two AVX2 registers (FMA and F16C too). Included once, inside the instruction set's namespace.
#pragma once

struct F16 {
  __m256 a, b;  // lanes 0-7 and 8-15
};
struct I16 {
  __m256i a, b;
};
struct B64 {
  __m256i a, b;
};

static inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
static inline F16 load_n(const float* p, int n) {
  alignas(32) float t[16] = {};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return load(t);
}
static inline void store_n(float* p, F16 x, int n) {
  alignas(32) float t[16];
  store(t, x);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
static inline F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F16 div(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F16 abs(F16 x) {
  __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
static inline F16 select_lt(F16 a, F16 b, F16 x, F16 y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
static inline F16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_f16(uint16_t* p, F16 x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
static inline F16 load_bf16(const uint16_t* p) {
  return {widen_bf16(_mm_loadu_si128((const __m128i*)p)), widen_bf16(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline I16 round_to_int(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I16 iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline __m256 add_to_exponent8(__m256 x, __m256 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
static inline F16 add_to_exponent(F16 x, F16 ends_in_n) { return {add_to_exponent8(x.a, ends_in_n.a), add_to_exponent8(x.b, ends_in_n.b)}; }
static inline void store_i8(int8_t* p, I16 x) {
  __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);  // sixteen int16 in order
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
static inline int32_t reduce_add(I16 x) {
  __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}
static inline float reduce_add(F16 x) {
  __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float reduce_max(F16 x) {
  __m256 h = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

static inline B64 load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
static inline void store_bytes(uint8_t* p, B64 x) {
  _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 32), x.b);
}
static inline B64 low_nibbles(B64 x) {
  __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline B64 high_nibbles(B64 x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
template <int J>
static inline F16 byte_to_float(B64 x) {
  __m256i m = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * J), m)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, 8 * J), m))};
}

// Pair sums stay in int16 for the whole group: 16 products of at most 15 * 127 make 30,480, so nothing saturates.
struct GroupDot {
  __m256i a, b;
  inline void start(int32_t) { a = b = _mm256_setzero_si256(); }
  inline void add(B64 codes, const int8_t* quad) {
    __m256i q = _mm256_set1_epi32(*(const int32_t*)quad);
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(codes.a, q));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(codes.b, q));
  }
  inline I16 sum(int32_t init) const {
    __m256i one = _mm256_set1_epi16(1), i = _mm256_set1_epi32(init);
    return {_mm256_add_epi32(i, _mm256_madd_epi16(a, one)), _mm256_add_epi32(i, _mm256_madd_epi16(b, one))};
  }
};

// The same for codes up to 255, whose pair sums do not fit int16: everything is widened first.
struct GroupDotWide {
  __m256i a, b;  // rows 0, 1, 4, 5 | 2, 3, 6, 7 of each half: the order that hadd leaves
  inline void start(int32_t) { a = b = _mm256_setzero_si256(); }
  static inline __m256i half(__m256i codes, __m256i quad) {
    __m256i lo = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes)), quad);
    __m256i hi = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(codes, 1)), quad);
    return _mm256_hadd_epi32(lo, hi);
  }
  inline void add(B64 codes, const int8_t* quad) {
    __m256i q = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(*(const int32_t*)quad)));
    a = _mm256_add_epi32(a, half(codes.a, q));
    b = _mm256_add_epi32(b, half(codes.b, q));
  }
  inline I16 sum(int32_t init) const {
    __m256i i = _mm256_set1_epi32(init);
    return {_mm256_add_epi32(i, _mm256_permute4x64_epi64(a, 0xD8)), _mm256_add_epi32(i, _mm256_permute4x64_epi64(b, 0xD8))};
  }
};

// Codes up to 255 by activations of magnitude at most 64: a pair makes at most 32,640, so it fits int16.
struct GroupDotSmall {
  __m256i a, b;
  inline void start(int32_t init) { a = b = _mm256_set1_epi32(init); }
  inline void add(B64 codes, const int8_t* quad) {
    __m256i q = _mm256_set1_epi32(*(const int32_t*)quad), one = _mm256_set1_epi16(1);
    a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.a, q), one));
    b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.b, q), one));
  }
  inline I16 sum(int32_t) const { return {a, b}; }
};

static inline I16 iadd(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I16 imul(I16 x, I16 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline I16 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}

static inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
static inline void prefetch_near(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // to the second cache
