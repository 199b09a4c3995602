// Attention over paged keys and values.
//
// The context is cut into chunks of 256 tokens counted from the sequence's first token. In a chunk: all scores, their
// maximum, exponentials, sum, weighted values; chunks are joined in order by the usual rescaling. Both cuts depend on
// absolute positions only, so a token's result is the same alone, in a batch, and in any prefill chunking. Tokens a row
// does not see get weight exactly 0, and adding 0 * value changes nothing, so rows may share a pass.
//
// A page keeps keys as [16-token lane][dimension][16 tokens] (scores need no horizontal sums) and values as [token][dimension].
#pragma once
#include <type_traits>

#include "kernels/kernels.h"
#include "kernels/matmul.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

constexpr int kChunkTokens = 256;

template <Number S>
static inline F16 load_kv(const uint8_t* p, size_t i) {
  if constexpr (S == Number::f32) return load((const float*)p + i);
  return load_f16((const uint16_t*)p + i);
}

static inline const uint8_t* key_lane(const KvHead& kv, int token) {
  size_t lane = (size_t)(token % kPageTokens) / kLaneTokens;
  return kv.pool + (size_t)kv.pages[token / kPageTokens] * kv.page_bytes + kv.key_offset +
         lane * kv.head_dim * kLaneTokens * size_of(kv.number);
}
static inline const uint8_t* value_row(const KvHead& kv, int token) {
  return kv.pool + (size_t)kv.pages[token / kPageTokens] * kv.page_bytes + kv.value_offset +
         (size_t)(token % kPageTokens) * kv.padded_dim * size_of(kv.number);
}

// Scores of R rows against L lanes of 16 tokens: one running sum over the dimensions.
template <int R, int L, Number S>
static inline void score_lanes(const uint8_t* k0, const uint8_t* k1, const float* q, size_t q_stride, int head_dim, float* scores) {
  F16 acc[R][L];
  for (int r = 0; r < R; r++)
    for (int l = 0; l < L; l++) acc[r][l] = zero();
  for (int d = 0; d < head_dim; d++) {
    F16 key[L];
    key[0] = load_kv<S>(k0, (size_t)d * kLaneTokens);
    if constexpr (L == 2) key[1] = load_kv<S>(k1, (size_t)d * kLaneTokens);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      F16 qv = set1(q[r * q_stride + d]);
#pragma GCC unroll 2
      for (int l = 0; l < L; l++) acc[r][l] = fma(qv, key[l], acc[r][l]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int l = 0; l < L; l++) store(scores + (size_t)r * kChunkTokens + l * kLaneTokens, acc[r][l]);
}

// out[r][16 V dims] = sum over tokens of weight * value, in token order.
template <int R, int V, Number S>
static inline void weigh_values(const KvHead& kv, int begin, int end, int chunk, const float* weights, int dim, float* out,
                                size_t out_stride) {
  F16 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = zero();
  for (int t = begin; t < end;) {
    int page_end = min_int(end, (t / kPageTokens + 1) * kPageTokens);
    const uint8_t* row = value_row(kv, t);
    for (; t < page_end; t++, row += (size_t)kv.padded_dim * size_of(S)) {
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
    for (int v = 0; v < V; v++) store(out + r * out_stride + dim + 16 * v, acc[r][v]);
}

constexpr int kValueAccumulators = kRows == 12 ? 24 : 6;

template <int R, Number S>
static inline void weigh_rows(const KvHead& kv, int begin, int end, int chunk, const float* weights, float* out) {
  int dim = 0;
  const int padded = kv.padded_dim;
  if constexpr (4 * R <= kValueAccumulators)
    for (; dim + 64 <= padded; dim += 64) weigh_values<R, 4, S>(kv, begin, end, chunk, weights, dim, out, padded);
  if constexpr (2 * R <= kValueAccumulators)
    for (; dim + 32 <= padded; dim += 32) weigh_values<R, 2, S>(kv, begin, end, chunk, weights, dim, out, padded);
  for (; dim < padded; dim += 16) weigh_values<R, 1, S>(kv, begin, end, chunk, weights, dim, out, padded);
}

// Turns a row's scores s[from, stop) of one chunk into weights exp(score - maximum); tokens outside [first, last] get 0.
// keep and take: what the earlier chunks' and this chunk's results are multiplied by when joined.
static inline void softmax_chunk(float* s, int from, int stop, int first, int last, float cap, float* top, float* sum, float* keep,
                                 float* take) {
  const float minus_inf = -__builtin_inff();
  if (cap > 0.0f)
    for (int t = from; t < stop; t += 16) store(s + t, capped(load(s + t), cap));
  for (int t = from; t < min_int(first, stop); t++) s[t] = minus_inf;
  for (int t = max_int(last + 1, from); t < stop; t++) s[t] = minus_inf;
  F16 high = set1(minus_inf);
  for (int t = from; t < stop; t += 16) high = max(high, load(s + t));
  const float chunk_top = reduce_max(high);
  if (chunk_top == minus_inf) {  // nothing of this chunk is visible
    for (int t = from; t < stop; t++) s[t] = 0.0f;
    *keep = 1.0f, *take = 0.0f;
    return;
  }
  F16 shift = set1(chunk_top), acc = zero();
  for (int t = from; t < stop; t += 16) {
    F16 e = exp(sub(load(s + t), shift));
    store(s + t, e);
    acc = add(acc, e);
  }
  const float new_top = *top > chunk_top ? *top : chunk_top;
  *keep = exp_scalar(*top - new_top), *take = exp_scalar(chunk_top - new_top);
  *sum = __builtin_fmaf(reduce_add(acc), *take, *sum * *keep);
  *top = new_top;
}

template <Number S>
static void attend_s(const KvHead& kv, const float* q, size_t q_stride, const int* first, const int* last, int rows, float cap,
                     float* y, const size_t* y_offsets, float* scratch) {
  const int dim = kv.head_dim, padded = kv.padded_dim;
  float* scores = scratch;                             // (rows, 256)
  float* part = scores + (size_t)rows * kChunkTokens;  // (rows, padded): this chunk's weighted values
  float* total = part + (size_t)rows * padded;         // (rows, padded): all chunks so far
  float* top = total + (size_t)rows * padded;          // (rows): maximum so far
  float* sum = top + rows;                             // (rows): sum of weights so far
  float* keep = sum + rows;
  float* take = keep + rows;
  int begin = first[0], end = last[0] + 1;
  for (int r = 0; r < rows; r++) {
    begin = min_int(begin, first[r]), end = max_int(end, last[r] + 1);
    top[r] = -__builtin_inff(), sum[r] = 0.0f;
  }
  for (size_t i = 0; i < (size_t)rows * padded; i++) total[i] = 0.0f;

  for (int chunk = begin / kChunkTokens * kChunkTokens; chunk < end; chunk += kChunkTokens) {
    const int from = max_int(begin, chunk) / kLaneTokens * kLaneTokens, to = min_int(end, chunk + kChunkTokens);
    const int stop = (to + kLaneTokens - 1) / kLaneTokens * kLaneTokens;
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      with_columns<kRows>(min_int(kRows, rows - r0), [&](auto n) {
        constexpr int R = decltype(n)::value;
        const float* rows_q = q + r0 * q_stride;
        float* rows_scores = scores + (size_t)r0 * kChunkTokens;
        int t = from;
        if constexpr (R <= kRows / 2)
          for (; t + kLaneTokens < to; t += 2 * kLaneTokens)
            score_lanes<R, 2, S>(key_lane(kv, t), key_lane(kv, t + kLaneTokens), rows_q, q_stride, dim, rows_scores + (t - chunk));
        for (; t < to; t += kLaneTokens)
          score_lanes<R, 1, S>(key_lane(kv, t), nullptr, rows_q, q_stride, dim, rows_scores + (t - chunk));
        for (int r = r0; r < r0 + R; r++)
          softmax_chunk(scores + (size_t)r * kChunkTokens - chunk, from, stop, first[r], last[r], cap, top + r, sum + r, keep + r,
                        take + r);
        weigh_rows<R, S>(kv, max_int(begin, chunk), to, chunk, rows_scores, part + (size_t)r0 * padded);
      });
    }
    for (int r = 0; r < rows; r++)
      for (int d = 0; d < padded; d += 16) {
        float* t = total + (size_t)r * padded + d;
        store(t, fma(load(part + (size_t)r * padded + d), set1(take[r]), mul(load(t), set1(keep[r]))));
      }
  }
  for (int r = 0; r < rows; r++)
    for (int d = 0; d < dim; d += 16) {
      F16 value = div(load(total + (size_t)r * padded + d), set1(sum[r]));
      if (d + 16 <= dim)
        store(y + y_offsets[r] + d, value);
      else
        store_n(y + y_offsets[r] + d, value, dim - d);
    }
}

static void attend(const KvHead& kv, const float* q, size_t q_stride, const int* first, const int* last, int rows, float cap, float* y,
                   const size_t* y_offsets, float* scratch) {
  if (kv.number == Number::f32)
    attend_s<Number::f32>(kv, q, q_stride, first, last, rows, cap, y, y_offsets, scratch);
  else
    attend_s<Number::f16>(kv, q, q_stride, first, last, rows, cap, y, y_offsets, scratch);
}

// Saturates: an infinite key would turn every weight into NaN.
static inline void to_f16(uint16_t* h, F16 x) { store_f16(h, min(max(x, set1(-65504.0f)), set1(65504.0f))); }

template <Number S>
static inline void write_kv_s(const KvHead& kv, int token, const float* key, const float* value) {
  using T = std::conditional_t<S == Number::f32, float, uint16_t>;
  T* k = (T*)key_lane(kv, token) + token % kLaneTokens;
  T* v = (T*)value_row(kv, token);
  for (int d = 0; d < kv.head_dim; d += 16) {
    const int n = min_int(16, kv.head_dim - d);
    T keys[16], values[16];
    if constexpr (S == Number::f32) {
      store(keys, load_n(key + d, n));
      store(values, load_n(value + d, n));
    } else {
      to_f16(keys, load_n(key + d, n));
      to_f16(values, load_n(value + d, n));
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

static void write_kv(const KvHead& kv, int token, const float* key, const float* value) {
  if (kv.number == Number::f32)
    write_kv_s<Number::f32>(kv, token, key, value);
  else
    write_kv_s<Number::f16>(kv, token, key, value);
}
}  // namespace KQ_ISA
}  // namespace kq
