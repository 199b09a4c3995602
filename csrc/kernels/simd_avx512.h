// Sixteen lanes on AVX-512 VNNI. Included once, inside the instruction set's namespace, by simd.h.
#pragma once
// GCC's own headers start results from undefined registers and then warn about it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

struct F16 {  // sixteen float32 lanes
  __m512 v;
};
struct I16 {  // sixteen int32 lanes
  __m512i v;
};
struct B64 {  // sixteen lanes of four unsigned bytes
  __m512i v;
};

static inline F16 zero() { return {_mm512_setzero_ps()}; }
static inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
static inline F16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}; }
static inline void store_n(float* p, F16 a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
static inline F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
// a < b ? x : y, lane by lane; an unordered comparison chooses y.
static inline F16 select_lt(F16 a, F16 b, F16 x, F16 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
static inline F16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline void store_f16(uint16_t* p, F16 a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline F16 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
static inline I16 round_to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I16 iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
// a * 2^n, where the lowest nine bits of ends_in_n are those of the integer n. a and the result have to be normal numbers.
static inline F16 add_to_exponent(F16 a, F16 ends_in_n) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_castps_si512(ends_in_n.v), 23)))};
}
static inline void store_i8(int8_t* p, I16 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
static inline int32_t reduce_add(I16 a) { return _mm512_reduce_add_epi32(a.v); }  // exact, so in any order

static inline float reduce_add(F16 a) {  // lanes i and i + 8, then + 4, + 2, + 1
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float reduce_max(F16 a) {
  __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

// Transposes while it reduces, in the order of reduce_max(): two shuffles and one operation for two vectors, where each alone
// takes four times that.
template <class V, class Op>
static inline V reduce_each(const V* v, Op op) {
  __m512 part[4];  // in quarter q of part[j]: what the lanes of v[4 q + j] that are four apart give
  for (int j = 0; j < 4; j++) {
    const __m512 a = op.in(v[j]), b = op.in(v[4 + j]), c = op.in(v[8 + j]), d = op.in(v[12 + j]);
    const __m512 ab = op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const __m512 cd = op(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    part[j] = op(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  }
  const __m512 low = op(_mm512_shuffle_ps(part[0], part[1], 0x44), _mm512_shuffle_ps(part[0], part[1], 0xEE));
  const __m512 high = op(_mm512_shuffle_ps(part[2], part[3], 0x44), _mm512_shuffle_ps(part[2], part[3], 0xEE));
  return op.out(op(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xDD)));
}
struct LargerOf {
  static inline __m512 in(F16 a) { return a.v; }
  static inline F16 out(__m512 a) { return {a}; }
  inline __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct SumOf {
  static inline __m512 in(I16 a) { return _mm512_castsi512_ps(a.v); }
  static inline I16 out(__m512 a) { return {_mm512_castps_si512(a)}; }
  inline __m512 operator()(__m512 a, __m512 b) const {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
struct FloatSumOf {
  static inline __m512 in(F16 a) { return a.v; }
  static inline F16 out(__m512 a) { return {a}; }
  inline __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};
// What reduce_max() and reduce_add() give for each of sixteen.
static inline void reduce_max_each(const F16* v, float* out) { store(out, reduce_each(v, LargerOf{})); }
static inline void reduce_add_each(const F16* v, float* out) { store(out, reduce_each(v, FloatSumOf{})); }
static inline void reduce_add_each(const I16* v, int32_t* out) { _mm512_storeu_si512(out, reduce_each(v, SumOf{}).v); }

// Codes of sixteen rows: 64 bytes, byte j of lane r is input j of row r; nibbles hold two such quads.
static inline B64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_bytes(uint8_t* p, B64 a) { _mm512_storeu_si512(p, a.v); }
static inline B64 low_nibbles(B64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline B64 high_nibbles(B64 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// Byte j of every lane, as a float.
template <int J>
static inline F16 byte_to_float(B64 a) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * J), _mm512_set1_epi32(255)))};
}

// The exact integer dot product of one group: init + sum of code * activation.
struct GroupDot {
  __m512i acc;
  inline void start(int32_t init) { acc = _mm512_set1_epi32(init); }
  inline void add(B64 codes, const int8_t* quad) {
    acc = _mm512_dpbusd_epi32(acc, codes.v, _mm512_set1_epi32(*(const int32_t*)quad));
  }
  inline I16 sum(int32_t) const { return {acc}; }
};
using GroupDotWide = GroupDot;   // codes up to 255
using GroupDotSmall = GroupDot;  // codes up to 255, activations of magnitude up to 64

// The same from lines of nibbles, in two sums. High nibbles stay where they are, as codes times 16: one operation less.
struct NibbleDot {
  __m512i low, high;
  inline void start(int32_t init) { low = _mm512_set1_epi32(init), high = _mm512_setzero_si512(); }
  inline void add(B64 line, const int8_t* low_quad, const int8_t* high_quad) {
    low = _mm512_dpbusd_epi32(low, _mm512_and_si512(line.v, _mm512_set1_epi8(15)), _mm512_set1_epi32(*(const int32_t*)low_quad));
    high = _mm512_dpbusd_epi32(high, _mm512_and_si512(line.v, _mm512_set1_epi8((char)0xF0)), _mm512_set1_epi32(*(const int32_t*)high_quad));
  }
  inline I16 sum(int32_t) const { return {_mm512_add_epi32(low, _mm512_srai_epi32(high, 4))}; }
};

static inline I16 iadd(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I16 imul(I16 a, I16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I16 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }

static inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
static inline void prefetch_near(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // to the second cache
