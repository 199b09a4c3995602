// Keys and values as float32 or float16. A page keeps keys as [16-token lane][dimension][16 tokens] (scores need no
// horizontal sums) and values as [token][dimension].
#pragma once
#include <type_traits>

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

static inline uint8_t* page_of(const KvHead& kv, int token) {
  return kv.pool + (size_t)kv.pages[token / kPageTokens] * kv.page_bytes;
}

template <KvNumber S>
static inline F16 load_kv(const uint8_t* p, size_t i) {
  if constexpr (S == KvNumber::f32) return load((const float*)p + i);
  return load_f16((const uint16_t*)p + i);
}

template <KvNumber S>
static inline uint8_t* key_lane(const KvHead& kv, int token) {
  const size_t lane = (size_t)(token % kPageTokens) / kLaneTokens;
  return page_of(kv, token) + kv.key_offset + lane * kv.head_dim * kLaneTokens * size_of(S);
}
template <KvNumber S>
static inline uint8_t* value_row(const KvHead& kv, int token) {
  return page_of(kv, token) + kv.value_offset + (size_t)(token % kPageTokens) * kv.padded_dim * size_of(S);
}

// Few rows mean that keys and values are read as fast as memory gives them: those of the tokens kTokensAhead further on are
// asked for, into the second cache.
constexpr int kFewRows = 4;

// Scores of R rows against L lanes of 16 tokens: one running sum over the dimensions. end: of all tokens that any row sees.
template <int R, int L, KvNumber S>
static inline void score_lanes(const KvHead& kv, int token, int end, const float* q, size_t q_stride, float* scores) {
  constexpr int step = kLaneTokens * (int)size_of(S);  // bytes of a dimension
  const bool ahead = R <= kFewRows && token + kTokensAhead + L * kLaneTokens <= end;
  const uint8_t *next_keys[L], *next_values[L];
  for (int l = 0; l < L; l++) {
    const int t = token + l * kLaneTokens + (ahead ? kTokensAhead : 0);
    next_keys[l] = key_lane<S>(kv, t), next_values[l] = value_row<S>(kv, t);
  }
  const uint8_t *keys[L], *values[L];                  // the values' turn comes next; they are as many lines as the keys
  for (int l = 0; l < L; l++) keys[l] = key_lane<S>(kv, token + l * kLaneTokens), values[l] = value_row<S>(kv, token + l * kLaneTokens);
  F16 acc[R][L];
  for (int r = 0; r < R; r++)
    for (int l = 0; l < L; l++) acc[r][l] = zero();
  for (int d = 0; d < kv.head_dim; d++) {
    F16 key[L];
    for (int l = 0; l < L; l++) {
      key[l] = load_kv<S>(keys[l], (size_t)d * kLaneTokens);
      if (step == 64 || d % 2 == 0) {
        prefetch(values[l] + d * step);
        if (R <= kFewRows && ahead) prefetch_near(next_keys[l] + d * step), prefetch_near(next_values[l] + d * step);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      F16 qv = set1(q[r * q_stride + d]);
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) acc[r][l] = fma(qv, key[l], acc[r][l]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int l = 0; l < L; l++) store(scores + (size_t)r * kChunkTokens + l * kLaneTokens, acc[r][l]);
}

// out[r][16 V dims] = sum over tokens of weight * value, in token order. next: fetch the keys of the chunk that comes after.
template <int R, int V, KvNumber S>
static inline void weigh_values(const KvHead& kv, int begin, int end, int chunk, const float* weights, int dim, float* out,
                                bool next) {
  F16 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = zero();
  for (int t = begin; t < end;) {
    int page_end = min_int(end, (t / kPageTokens + 1) * kPageTokens);
    const uint8_t* row = value_row<S>(kv, t);
    const uint8_t* keys = next ? key_lane<S>(kv, t + kChunkTokens) : row;
    const int key_step = next ? kv.head_dim * (int)size_of(S) : 0;
    for (; t < page_end; t++, row += (size_t)kv.padded_dim * size_of(S)) {
      for (int i = 0; i < key_step; i += 64) prefetch(keys + i);
      keys += key_step;
      F16 value[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) value[v] = load_kv<S>(row, dim + 16 * v);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        F16 weight = set1(weights[(size_t)r * kChunkTokens + t - chunk]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[r][v] = fma(weight, value[v], acc[r][v]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out + (size_t)r * kv.padded_dim + dim + 16 * v, acc[r][v]);
}

constexpr int kValueAccumulators = kRows == 12 ? 24 : 6;

template <KvNumber S>
struct FloatCells {
  static constexpr int rows = kRows;
  const KvHead& kv;
  const AttentionRows& a;
  int end_of_all;  // tokens that any row sees

  template <int R>
  inline void score(int r0, int from, int to, float* scores) const {
    const float* q = a.q + r0 * a.q_stride;
    const int chunk = from / kChunkTokens * kChunkTokens;
    int t = from;
    constexpr int L = 4 * R <= kRows ? 4 : 2 * R <= kRows ? 2 : 1;
    for (; t + (L - 1) * kLaneTokens < to; t += L * kLaneTokens) score_lanes<R, L, S>(kv, t, end_of_all, q, a.q_stride, scores + (t - chunk));
    for (; t < to; t += kLaneTokens) score_lanes<R, 1, S>(kv, t, end_of_all, q, a.q_stride, scores + (t - chunk));
  }

  template <int R>
  inline void weigh(int, int begin, int end, float* weights, float* out) const {
    const int padded = kv.padded_dim, chunk = begin / kChunkTokens * kChunkTokens;
    int dim = 0;
    const bool next = end % kChunkTokens == 0 && end + kChunkTokens <= end_of_all;
    if constexpr (4 * R <= kValueAccumulators)
      for (; dim + 64 <= padded; dim += 64) weigh_values<R, 4, S>(kv, begin, end, chunk, weights, dim, out, next && !dim);
    if constexpr (2 * R <= kValueAccumulators)
      for (; dim + 32 <= padded; dim += 32) weigh_values<R, 2, S>(kv, begin, end, chunk, weights, dim, out, next && !dim);
    for (; dim < padded; dim += 16) weigh_values<R, 1, S>(kv, begin, end, chunk, weights, dim, out, next && !dim);
  }
};

// Saturates: an infinite key would turn every weight into NaN.
static inline F16 to_f16_range(F16 x) { return min(max(x, set1(-65504.0f)), set1(65504.0f)); }

template <KvNumber S>
static inline void write_floats(const KvHead& kv, int token, const float* key, const float* value) {
  using T = std::conditional_t<S == KvNumber::f32, float, uint16_t>;
  T* k = (T*)key_lane<S>(kv, token) + token % kLaneTokens;
  T* v = (T*)value_row<S>(kv, token);
  for (int d = 0; d < kv.head_dim; d += 16) {
    const int n = min_int(16, kv.head_dim - d);
    T keys[16], values[16];
    if constexpr (S == KvNumber::f32) {
      store(keys, load_n(key + d, n));
      store(values, load_n(value + d, n));
    } else {
      store_f16(keys, to_f16_range(load_n(key + d, n)));
      store_f16(values, to_f16_range(load_n(value + d, n)));
    }
    if (n == 16) {
      __builtin_memcpy(v + d, values, sizeof values);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) k[(size_t)(d + i) * kLaneTokens] = keys[i];
    } else {
      for (int i = 0; i < n; i++) v[d + i] = values[i], k[(size_t)(d + i) * kLaneTokens] = keys[i];
    }
  }
}
}  // namespace KQ_ISA
}  // namespace kq
