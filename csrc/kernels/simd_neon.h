// Sixteen lanes as four NEON registers, for every 64-bit ARM. KQ_NEON_DOTPROD adds the dot product instructions (Armv8.2,
// every Apple M), KQ_NEON_I8MM those of unsigned with signed bytes too. Included once, inside the instruction set's namespace.
#pragma once

struct F16 {
  float32x4_t a, b, c, d;  // lanes 0-3, 4-7, 8-11 and 12-15
};
struct I16 {
  int32x4_t a, b, c, d;
};
struct B64 {
  uint8x16_t a, b, c, d;
};

static inline F16 set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
static inline F16 zero() { return set1(0.0f); }
static inline F16 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
static inline void store(float* p, F16 x) {
  vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
static inline F16 load_n(const float* p, int n) {
  float t[16] = {};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return load(t);
}
static inline void store_n(float* p, F16 x, int n) {
  float t[16];
  store(t, x);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
static inline F16 add(F16 x, F16 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)}; }
static inline F16 sub(F16 x, F16 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)}; }
static inline F16 mul(F16 x, F16 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)}; }
static inline F16 div(F16 x, F16 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)}; }
static inline F16 fma(F16 x, F16 y, F16 z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
static inline F16 abs(F16 x) { return {vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)}; }
static inline float32x4_t select_lt4(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) {
  return vbslq_f32(vcltq_f32(a, b), x, y);
}
static inline F16 select_lt(F16 a, F16 b, F16 x, F16 y) {
  return {select_lt4(a.a, b.a, x.a, y.a), select_lt4(a.b, b.b, x.b, y.b), select_lt4(a.c, b.c, x.c, y.c),
          select_lt4(a.d, b.d, x.d, y.d)};
}
// As the x86 instructions: the second operand where the comparison is false or unordered. FMAX and FMIN give NaN and order zeros.
static inline F16 max(F16 x, F16 y) { return select_lt(y, x, x, y); }
static inline F16 min(F16 x, F16 y) { return select_lt(x, y, x, y); }

static inline float32x4_t widen_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline uint16x4_t narrow_f16(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
static inline F16 load_f16(const uint16_t* p) { return {widen_f16(p), widen_f16(p + 4), widen_f16(p + 8), widen_f16(p + 12)}; }
static inline void store_f16(uint16_t* p, F16 x) {
  vst1_u16(p, narrow_f16(x.a)), vst1_u16(p + 4, narrow_f16(x.b)), vst1_u16(p + 8, narrow_f16(x.c)), vst1_u16(p + 12, narrow_f16(x.d));
}
static inline float32x4_t widen_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline F16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 4), widen_bf16(p + 8), widen_bf16(p + 12)}; }

static inline I16 round_to_int(F16 x) { return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)}; }
static inline F16 to_float(I16 x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }
static inline I16 iset1(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
static inline I16 iadd(I16 x, I16 y) { return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)}; }
static inline I16 imul(I16 x, I16 y) { return {vmulq_s32(x.a, y.a), vmulq_s32(x.b, y.b), vmulq_s32(x.c, y.c), vmulq_s32(x.d, y.d)}; }
static inline float32x4_t add_to_exponent4(float32x4_t x, float32x4_t n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
}
static inline F16 add_to_exponent(F16 x, F16 ends_in_n) {
  return {add_to_exponent4(x.a, ends_in_n.a), add_to_exponent4(x.b, ends_in_n.b), add_to_exponent4(x.c, ends_in_n.c),
          add_to_exponent4(x.d, ends_in_n.d)};
}
static inline int8x16_t narrow_i8(I16 x) {
  const int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b)), high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}
static inline void store_i8(int8_t* p, I16 x) { vst1q_s8(p, narrow_i8(x)); }
static inline I16 load_u8(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))};
}

static inline int32_t reduce_add(I16 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
static inline float reduce_add(F16 x) {  // lanes i and i + 8, then + 4, + 2, + 1
  const float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t h = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}
static inline float32x4_t max4(float32x4_t x, float32x4_t y) { return select_lt4(y, x, x, y); }
static inline float reduce_max(F16 x) {
  const float32x4_t q = max4(max4(x.a, x.c), max4(x.b, x.d));
  const float32x4_t h = max4(q, vextq_f32(q, q, 2));
  const float l = vgetq_lane_f32(h, 0), r = vgetq_lane_f32(h, 1);
  return l > r ? l : r;
}

static inline B64 load_bytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
static inline void store_bytes(uint8_t* p, B64 x) {
  vst1q_u8(p, x.a), vst1q_u8(p + 16, x.b), vst1q_u8(p + 32, x.c), vst1q_u8(p + 48, x.d);
}
static inline B64 low_nibbles(B64 x) {
  const uint8x16_t m = vdupq_n_u8(15);
  return {vandq_u8(x.a, m), vandq_u8(x.b, m), vandq_u8(x.c, m), vandq_u8(x.d, m)};
}
static inline B64 high_nibbles(B64 x) { return {vshrq_n_u8(x.a, 4), vshrq_n_u8(x.b, 4), vshrq_n_u8(x.c, 4), vshrq_n_u8(x.d, 4)}; }
template <int J>
static inline float32x4_t byte_to_float4(uint8x16_t x) {
  const uint32x4_t lanes = vreinterpretq_u32_u8(x);
  if constexpr (J == 3)
    return vcvtq_f32_u32(vshrq_n_u32(lanes, 24));
  else
    return vcvtq_f32_u32(vshrq_n_u32(vshlq_n_u32(lanes, 24 - 8 * J), 24));
}
template <int J>
static inline F16 byte_to_float(B64 x) {
  return {byte_to_float4<J>(x.a), byte_to_float4<J>(x.b), byte_to_float4<J>(x.c), byte_to_float4<J>(x.d)};
}

static inline int8x16_t load_quad(const int8_t* p) { return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)p)); }

// Dot products take the quad of a column straight from lane L of a register that holds four of them.
#if defined(KQ_NEON_DOTPROD) || defined(KQ_NEON_I8MM)
struct GroupDot {
  int32x4_t a, b, c, d;
  inline void start(int32_t init) { a = b = c = d = vdupq_n_s32(init); }
  inline void add(B64 codes, const int8_t* quad) { add_lane<0>(codes, load_quad(quad)); }
  template <int L>
  inline void add_lane(B64 codes, int8x16_t quads) {
#if defined(KQ_NEON_I8MM)
    a = vusdotq_laneq_s32(a, codes.a, quads, L), b = vusdotq_laneq_s32(b, codes.b, quads, L);
    c = vusdotq_laneq_s32(c, codes.c, quads, L), d = vusdotq_laneq_s32(d, codes.d, quads, L);
#else  // codes of up to seven bits are the same signed
    a = vdotq_laneq_s32(a, vreinterpretq_s8_u8(codes.a), quads, L), b = vdotq_laneq_s32(b, vreinterpretq_s8_u8(codes.b), quads, L);
    c = vdotq_laneq_s32(c, vreinterpretq_s8_u8(codes.c), quads, L), d = vdotq_laneq_s32(d, vreinterpretq_s8_u8(codes.d), quads, L);
#endif
  }
  inline I16 sum(int32_t) const { return {a, b, c, d}; }
};
#if defined(KQ_NEON_I8MM)
using GroupDotWide = GroupDot;
#else
// The same for codes up to 255: of code - 128, and 128 times the sum of the activations is added in the end.
struct GroupDotWide {
  GroupDot signed_codes;
  int32x4_t activations;
  inline void start(int32_t init) { signed_codes.start(init), activations = vdupq_n_s32(0); }
  inline void add(B64 codes, const int8_t* quad) { add_lane<0>(codes, load_quad(quad)); }
  template <int L>
  inline void add_lane(B64 codes, int8x16_t quads) {
    const uint8x16_t top = vdupq_n_u8(128);
    signed_codes.template add_lane<L>({veorq_u8(codes.a, top), veorq_u8(codes.b, top), veorq_u8(codes.c, top), veorq_u8(codes.d, top)},
                                      quads);
    activations = vdotq_laneq_s32(activations, vdupq_n_s8(1), quads, L);
  }
  inline I16 sum(int32_t) const {
    const int32x4_t more = vshlq_n_s32(activations, 7);
    return iadd(signed_codes.sum(0), {more, more, more, more});
  }
};
#endif
#else
// Without dot product instructions: products in int16, where a group's stay. Eight of at most 15 * 127 make 15,240 (ten in
// 3-bit modes make 8,890), so nothing overflows. Register i holds rows 2i and 2i + 1, four sums each.
struct GroupDot {
  int16x8_t s0, s1, s2, s3, s4, s5, s6, s7;
  inline void start(int32_t) { s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = vdupq_n_s16(0); }
  inline void add(B64 codes, const int8_t* quad) { add_lane<0>(codes, load_quad(quad)); }
  static inline void add_rows(int16x8_t& low, int16x8_t& high, uint8x16_t codes, int8x16_t quad) {
    low = vmlal_s8(low, vget_low_s8(vreinterpretq_s8_u8(codes)), vget_low_s8(quad));
    high = vmlal_high_s8(high, vreinterpretq_s8_u8(codes), quad);
  }
  template <int L>
  inline void add_lane(B64 codes, int8x16_t quads) {
    const int8x16_t quad = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(quads), L));
    add_rows(s0, s1, codes.a, quad), add_rows(s2, s3, codes.b, quad);
    add_rows(s4, s5, codes.c, quad), add_rows(s6, s7, codes.d, quad);
  }
  static inline int32x4_t rows(int16x8_t low, int16x8_t high) { return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)); }
  inline I16 sum(int32_t init) const { return iadd(iset1(init), {rows(s0, s1), rows(s2, s3), rows(s4, s5), rows(s6, s7)}); }
};
// The same for codes up to 255: products of code - 128, added in int32, and 128 times the sum of the activations in the end.
struct GroupDotWide {
  int32x4_t s0, s1, s2, s3, s4, s5, s6, s7;
  int16x8_t activations;
  inline void start(int32_t) { s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = vdupq_n_s32(0), activations = vdupq_n_s16(0); }
  inline void add(B64 codes, const int8_t* quad) { add_lane<0>(codes, load_quad(quad)); }
  static inline void add_rows(int32x4_t& low, int32x4_t& high, uint8x16_t codes, int8x16_t quad) {
    const int8x16_t signed_codes = vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128)));
    low = vpadalq_s16(low, vmull_s8(vget_low_s8(signed_codes), vget_low_s8(quad)));
    high = vpadalq_s16(high, vmull_high_s8(signed_codes, quad));
  }
  template <int L>
  inline void add_lane(B64 codes, int8x16_t quads) {
    const int8x16_t quad = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(quads), L));
    add_rows(s0, s1, codes.a, quad), add_rows(s2, s3, codes.b, quad);
    add_rows(s4, s5, codes.c, quad), add_rows(s6, s7, codes.d, quad);
    activations = vaddw_s8(activations, vget_low_s8(quad));
  }
  inline I16 sum(int32_t init) const {
    const int32_t twice = vaddlvq_s16(activations);  // the quad stands twice in a half register
    return iadd(iset1(init + 64 * twice), {vpaddq_s32(s0, s1), vpaddq_s32(s2, s3), vpaddq_s32(s4, s5), vpaddq_s32(s6, s7)});
  }
};
#endif

using GroupDotSmall = GroupDotWide;  // codes up to 255, activations of magnitude up to 64

// dot[c] += codes times quads[c], for NC columns.
template <int NC, class Dot>
static inline void add_columns(Dot* dot, B64 codes, const int8_t* quads) {
  if constexpr (NC >= 4) {
    const int8x16_t q = vld1q_s8(quads);
    dot[0].template add_lane<0>(codes, q), dot[1].template add_lane<1>(codes, q);
    dot[2].template add_lane<2>(codes, q), dot[3].template add_lane<3>(codes, q);
    add_columns<NC - 4>(dot + 4, codes, quads + 16);
  } else if constexpr (NC >= 2) {
    const int8x8_t q = vld1_s8(quads);
    dot[0].template add_lane<0>(codes, vcombine_s8(q, q)), dot[1].template add_lane<1>(codes, vcombine_s8(q, q));
    add_columns<NC - 2>(dot + 2, codes, quads + 8);
  } else if constexpr (NC == 1) {
    dot[0].add(codes, quads);
  }
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }
static inline void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 2); }  // to the second cache
