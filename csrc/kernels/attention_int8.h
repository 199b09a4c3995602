// Keys and values as int8 codes with a bfloat16 scale per token and head, and exact integer sums over them.
//
// code = 128 + round(x / scale), scale = max|x| / 127 rounded up to bfloat16. A page keeps keys as [16-token lane][4-dim
// quad][16 tokens][4 dims] and values as [4-token quad][dim][4 tokens], so that one lane of a dot product is a token, or a
// dimension, and nothing is shuffled; then the 64 scales of the keys and the 64 of the values.
//
// Keys and queries are rotated by the same Hadamard matrix first. Their dot products stay what they were, but the few
// large dimensions that keys have are spread over all, so that one scale fits a whole key (QuaRot, arXiv:2404.00456).
//
// What multiplies the codes, queries and weights, is rounded to a step of its largest magnitude / 8,192 and split into two
// signed bytes, 128 * high + low, both of magnitude up to 64. That error is far below the codes' own. The values' scales
// are part of the weights.
#pragma once
#include "kernels/attention_float.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

static inline uint8_t* key_codes(const KvHead& kv, int token) {
  const size_t lane = (size_t)(token % kPageTokens) / kLaneTokens;
  return page_of(kv, token) + kv.key_offset + lane * kLaneTokens * quad_dim(kv.head_dim);
}
static inline uint8_t* value_codes(const KvHead& kv, int token) {
  return page_of(kv, token) + kv.value_offset + (size_t)(token % kPageTokens) / 4 * 4 * kv.padded_dim;
}
static inline uint16_t* key_scale(const KvHead& kv, int token) {
  return (uint16_t*)(page_of(kv, token) + kv.scale_offset) + token % kPageTokens;
}
static inline uint16_t* value_scale(const KvHead& kv, int token) { return key_scale(kv, token) + kPageTokens; }

// x times the Hadamard matrix of the largest power of two that divides dim (128 at most), block by block, normalized.
static inline void hadamard(float* x, int dim) {
  const int block = min_int(dim & -dim, 128);
  for (int step = 1; step < block; step *= 2)
    for (int i = 0; i < dim; i += 2 * step)
      for (int j = i; j < i + step; j++) {
        const float a = x[j], b = x[j + step];
        x[j] = a + b;
        x[j + step] = a - b;
      }
  const float scale = 1.0f / __builtin_sqrtf((float)block);
  for (int i = 0; i < dim; i++) x[i] *= scale;
}

// Sixteen numbers of magnitude up to 64, given in steps of 1 / 128, as pairs of bytes: high + low / 128.
static inline void split(F16 x, int8_t* high, int8_t* low, I16* high_sum, I16* low_sum) {
  const I16 h = round_to_int(x), l = round_to_int(mul(sub(x, to_float(h)), set1(128.0f)));
  store_i8(high, h);
  store_i8(low, l);
  *high_sum = iadd(*high_sum, h);
  *low_sum = iadd(*low_sum, l);
}
static inline F16 joined(I16 high, I16 low) { return fma(to_float(high), set1(128.0f), to_float(low)); }

// One row of queries or weights in pieces: what cancels the codes' offset of 128, and the value of a step.
struct PieceRow {
  int32_t high_init, low_init;
  float step;
};

constexpr float kTiny = 1e-30f;           // numbers below count as 0: their inverses would overflow
constexpr int kBytePieces = kChunkTokens;  // bytes of a row's high or low weights

// Scores of R rows against L lanes of 16 tokens. q: [quad][row][high, low][4 dims].
template <int R, int L>
static inline void score_byte_lanes(const KvHead& kv, int token, int end, const int8_t* q, const PieceRow* rows, float* scores) {
  const bool ahead = R <= kFewRows && token + kTokensAhead + L * kLaneTokens <= end;
  const uint8_t *next_keys[L], *next_values[L];
  for (int l = 0; l < L; l++) {
    const int t = token + l * kLaneTokens + (ahead ? kTokensAhead : 0);
    next_keys[l] = key_codes(kv, t), next_values[l] = value_codes(kv, t);
    if (ahead) prefetch_near(key_scale(kv, t)), prefetch_near(value_scale(kv, t));
  }
  GroupDotSmall high[R][L], low[R][L];
  const uint8_t* keys[L];
#pragma GCC unroll 4
  for (int l = 0; l < L; l++) keys[l] = key_codes(kv, token + l * kLaneTokens);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) high[r][l].start(rows[r].high_init), low[r][l].start(rows[r].low_init);
  const uint8_t* values[L];  // as many lines as the keys; their turn comes next
#pragma GCC unroll 4
  for (int l = 0; l < L; l++) values[l] = value_codes(kv, token + l * kLaneTokens);
  for (int d = 0; d < kv.head_dim; d += 4, q += 8 * R) {
    B64 codes[L];
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) {
      codes[l] = load_bytes(keys[l] + d * kLaneTokens);
      prefetch(values[l] + d * kLaneTokens);
      if (R <= kFewRows && ahead) prefetch_near(next_keys[l] + d * kLaneTokens), prefetch_near(next_values[l] + d * kLaneTokens);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) high[r][l].add(codes[l], q + 8 * r), low[r][l].add(codes[l], q + 8 * r + 4);
  }
#pragma GCC unroll 4
  for (int l = 0; l < L; l++) {
    const F16 scale = load_bf16(key_scale(kv, token + l * kLaneTokens));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const F16 dot = joined(high[r][l].sum(rows[r].high_init), low[r][l].sum(rows[r].low_init));
      store(scores + (size_t)r * kChunkTokens + l * kLaneTokens, mul(dot, mul(scale, set1(rows[r].step))));
    }
  }
}

// out[r][16 V dims] = step * sum over tokens of weight * value code. pieces: [row][high, low][256 tokens].
// next: fetch the keys of the chunk that comes after.
template <int R, int V>
static inline void weigh_bytes(const KvHead& kv, int from, int stop, const int8_t* pieces, const PieceRow* rows, int dim, float* out,
                               bool next) {
  GroupDotSmall high[R][V], low[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) high[r][v].start(rows[r].high_init), low[r][v].start(rows[r].low_init);
  for (int t = from; t < stop;) {
    const int page_end = min_int(stop, (t / kPageTokens + 1) * kPageTokens);
    const uint8_t* quad = value_codes(kv, t) + 4 * dim;
    const uint8_t* keys = next ? key_codes(kv, t + kChunkTokens) : quad;
    const int key_step = next ? 4 * quad_dim(kv.head_dim) : 0;
    for (; t < page_end; t += 4, quad += (size_t)4 * kv.padded_dim) {
      for (int i = 0; i < key_step; i += 64) prefetch(keys + i);
      keys += key_step;
      B64 codes[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) codes[v] = load_bytes(quad + 64 * v);
      const int8_t* piece = pieces + t % kChunkTokens;
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
          high[r][v].add(codes[v], piece + 2 * r * kBytePieces);
          low[r][v].add(codes[v], piece + (2 * r + 1) * kBytePieces);
        }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++)
      store(out + (size_t)r * kv.padded_dim + dim + 16 * v,
            mul(joined(high[r][v].sum(rows[r].high_init), low[r][v].sum(rows[r].low_init)), set1(rows[r].step)));
}

struct ByteCells {
  static constexpr int rows = kByteRows;
  static constexpr int sums = kByteRows;  // pairs of sums that a pass keeps in registers
  const KvHead& kv;
  const AttentionRows& a;
  PieceRow* query_rows;
  int8_t* queries;  // (blocks of rows)[quad][row][high, low][4 dims]
  int end_of_all;   // tokens that any row sees

  ByteCells(const KvHead& head, const AttentionRows& attention, int end, float* memory)
      : kv(head), a(attention), query_rows((PieceRow*)(memory + head.padded_dim)), queries((int8_t*)(query_rows + a.rows)), end_of_all(end) {
    for (int r = 0; r < a.rows; r++) split_query(r, memory);
  }

  inline int8_t* queries_of(int r0) const { return queries + (size_t)2 * r0 * quad_dim(kv.head_dim); }

  inline void split_query(int r, float* q) const {
    __builtin_memcpy(q, a.q + r * a.q_stride, kv.head_dim * sizeof(float));
    hadamard(q, kv.head_dim);
    const int block = r / rows * rows, width = min_int(rows, a.rows - block);
    int8_t* to = queries_of(block) + 8 * (r - block);
    F16 high16 = zero();
    for (int d = 0; d < kv.head_dim; d += 16) high16 = max(high16, abs(load_n(q + d, min_int(16, kv.head_dim - d))));
    const float top = reduce_max(high16);
    const F16 inverse = set1(top > kTiny ? 64.0f / top : 0.0f), limit = set1(64.0f), minus = set1(-64.0f);
    I16 sums[2] = {iset1(0), iset1(0)};
    for (int d = 0; d < kv.head_dim; d += 16) {
      const int n = min_int(16, kv.head_dim - d);
      int8_t pieces[2][16];
      split(min(max(mul(load_n(q + d, n), inverse), minus), limit), pieces[0], pieces[1], &sums[0], &sums[1]);
      for (int i = 0; i < n; i += 4)
        for (int p = 0; p < 2; p++) __builtin_memcpy(to + (size_t)(d + i) / 4 * 8 * width + 4 * p, pieces[p] + i, 4);
    }
    query_rows[r] = {-128 * reduce_add(sums[0]), -128 * reduce_add(sums[1]), top * (1.0f / 8192.0f)};
  }

  template <int R>
  inline void score(int r0, int from, int to, float* scores) const {
    const int8_t* q = queries_of(r0);
    constexpr int L = 4 * R <= sums ? 4 : 2 * R <= sums ? 2 : 1;
    int t = from;
    for (; t + (L - 1) * kLaneTokens < to; t += L * kLaneTokens)
      score_byte_lanes<R, L>(kv, t, end_of_all, q, query_rows + r0, scores + t % kChunkTokens);
    for (; t < to; t += kLaneTokens) score_byte_lanes<R, 1>(kv, t, end_of_all, q, query_rows + r0, scores + t % kChunkTokens);
  }

  // A row's weights times the values' scales, split.
  static inline PieceRow split_weights(const KvHead& kv, int from, int stop, float* weights, int8_t* pieces) {
    F16 high16 = zero();
    for (int t = from; t < stop; t += kLaneTokens) {
      const F16 w = mul(load(weights + t % kChunkTokens), load_bf16(value_scale(kv, t)));
      store(weights + t % kChunkTokens, w);
      high16 = max(high16, w);
    }
    const float top = reduce_max(high16);
    const F16 inverse = set1(top > kTiny ? 64.0f / top : 0.0f), limit = set1(64.0f);
    I16 sums[2] = {iset1(0), iset1(0)};
    for (int t = from; t < stop; t += kLaneTokens) {
      const int i = t % kChunkTokens;
      split(min(mul(load(weights + i), inverse), limit), pieces + i, pieces + kBytePieces + i, &sums[0], &sums[1]);
    }
    return {-128 * reduce_add(sums[0]), -128 * reduce_add(sums[1]), top * (1.0f / 8192.0f)};
  }

  template <int R>
  inline void weigh(int, int begin, int end, float* weights, float* out) const {
    alignas(64) int8_t pieces[R * 2 * kBytePieces];
    PieceRow weight_rows[R];
    const int from = begin / kLaneTokens * kLaneTokens, stop = (end + kLaneTokens - 1) / kLaneTokens * kLaneTokens;
    for (int r = 0; r < R; r++)
      weight_rows[r] = split_weights(kv, from, stop, weights + (size_t)r * kChunkTokens, pieces + 2 * r * kBytePieces);
    int dim = 0;
    const int padded = kv.padded_dim;
    const bool next = stop % kChunkTokens == 0 && stop + kChunkTokens <= end_of_all;
    if constexpr (4 * R <= sums)
      for (; dim + 64 <= padded; dim += 64) weigh_bytes<R, 4>(kv, from, stop, pieces, weight_rows, dim, out, next && !dim);
    if constexpr (2 * R <= sums)
      for (; dim + 32 <= padded; dim += 32) weigh_bytes<R, 2>(kv, from, stop, pieces, weight_rows, dim, out, next && !dim);
    for (; dim < padded; dim += 16) weigh_bytes<R, 1>(kv, from, stop, pieces, weight_rows, dim, out, next && !dim);
  }
};

// The scale of one token's key or value.
static inline uint16_t token_scale(const float* x, int head_dim) {
  F16 high = zero();
  for (int d = 0; d < head_dim; d += 16) high = max(high, abs(to_f16_range(load_n(x + d, min_int(16, head_dim - d)))));
  const float exact = reduce_max(high) / 127.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &exact, 4);
  return (uint16_t)((bits + 0xFFFF) >> 16);  // rounded up, so that no code exceeds 127
}

// Calls put(dim, codes): sixteen codes of one token's key or value; those past its end stand for 0.
template <class Put>
static inline void each_codes(const float* x, int head_dim, uint16_t scale_bits, Put put) {
  const uint32_t widened = (uint32_t)scale_bits << 16;
  float scale;
  __builtin_memcpy(&scale, &widened, 4);
  const F16 inverse = set1(scale > kTiny ? 1.0f / scale : 0.0f), limit = set1(127.0f), minus = set1(-127.0f);
  for (int d = 0; d < head_dim; d += 16) {
    const F16 v = mul(to_f16_range(load_n(x + d, min_int(16, head_dim - d))), inverse);
    uint8_t codes[16];
    store_i8((int8_t*)codes, round_to_int(min(max(v, minus), limit)));
    for (int i = 0; i < 16; i++) codes[i] ^= 0x80;
    put(d, codes);
  }
}

// Rotates the key in place.
static inline void write_bytes(const KvHead& kv, int token, float* key, const float* value) {
  hadamard(key, kv.head_dim);
  *key_scale(kv, token) = token_scale(key, kv.head_dim);
  uint8_t* k = key_codes(kv, token) + 4 * (token % kLaneTokens);
  each_codes(key, kv.head_dim, *key_scale(kv, token), [&](int dim, const uint8_t* codes) {
    for (int d = dim; d < min_int(dim + 16, kv.head_dim); d += 4) __builtin_memcpy(k + d * kLaneTokens, codes + d - dim, 4);
  });
  *value_scale(kv, token) = token_scale(value, kv.head_dim);
  uint8_t* v = value_codes(kv, token) + token % 4;
  each_codes(value, kv.head_dim, *value_scale(kv, token), [&](int dim, const uint8_t* codes) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[4 * (dim + i)] = codes[i];
  });
}
}  // namespace KQ_ISA
}  // namespace kq
