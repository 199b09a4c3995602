// Attention over paged keys and values.
//
// The context is cut into chunks of 256 tokens counted from the sequence's first token. In a chunk: all scores, their
// maximum, exponentials, sum, weighted values; chunks are joined in order by the usual rescaling. Both cuts depend on
// absolute positions only, so a token's result is the same alone, in a batch, in any prefill chunking, and whichever
// threads computed the chunks. Tokens a row does not see get weight exactly 0, and adding 0 * value changes nothing, so
// rows may share a pass.
//
// Here is what all number formats of the cache share; `Cells` is one of them (attention_float.h, attention_int8.h):
//   score<R>(r0, from, to, scores)            scores of rows r0 .. r0 + R - 1 against tokens [from, to), in lanes of 16
//   weigh<R>(r0, begin, end, weights, out)    sums over tokens of weight * value; may change the weights
// scores and weights: (R, 256), a token's place is its place in the chunk. out: (R, padded_dim).
#pragma once
#include "kernels/attention_float.h"
#include "kernels/attention_int8.h"
#include "kernels/kernels.h"
#include "kernels/matmul.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

// out[r] = one(v[r]) for R vectors, or all sixteen by each(v, out). v and out have room for sixteen; those past R are overwritten.
template <int R, class One, class Each>
static inline void reduce_rows(F16* v, float* out, One one, Each each) {
  static_assert(R <= 16);
  if constexpr (R < kTogether) {
    for (int r = 0; r < R; r++) out[r] = one(v[r]);
  } else {
    for (int r = R; r < 16; r++) v[r] = v[0];
    each(v, out);
  }
}

// Gives the scores s[from, stop) of tokens outside [first, last] -inf. s[t] is that of the sequence's token t; from and stop are
// multiples of 16.
static inline void mask_scores(float* s, int from, int stop, int first, int last) {
  static constexpr float places[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F16 minus_inf = set1(-__builtin_inff());
  for (int t = from; t < min_int(first, stop); t += 16)
    store(s + t, select_lt(load(places), set1((float)(first - t)), minus_inf, load(s + t)));
  for (int t = max_int((last + 1) / 16 * 16, from); t < stop; t += 16)
    store(s + t, select_lt(set1((float)(last - t)), load(places), minus_inf, load(s + t)));
}

// Turns scores[from, stop) of R rows of one chunk into weights 2^(score * log2(e) - top); tokens outside first .. last of the row
// get 0. top: the largest score, in powers of two; -inf when nothing of the chunk is visible. sum: of the weights.
// All rows' largest first, then all weights: no row's weights wait for a reduction that has just begun.
template <int R>
static inline void softmax_chunk(float* scores, int from, int stop, const int* first, const int* last, float cap, float* top, float* sum) {
  const float minus_inf = -__builtin_inff(), log2_e = 1.44269504f;
  F16 lanes[16];
  float highest[16], sums[16];
  for (int r = 0; r < R; r++) {
    float* s = scores + (size_t)r * kChunkTokens;
    if (cap > 0.0f)
      for (int t = from; t < stop; t += 16) store(s + t, capped(load(s + t), cap));
    mask_scores(s, from, stop, first[r], last[r]);
    lanes[r] = set1(minus_inf);
    for (int t = from; t < stop; t += 16) lanes[r] = max(lanes[r], load(s + t));
  }
  reduce_rows<R>(lanes, highest, reduce_max, reduce_max_each);
  for (int r = 0; r < R; r++) {
    float* s = scores + (size_t)r * kChunkTokens;
    top[r] = highest[r] * log2_e;
    const bool visible = highest[r] != minus_inf;
    const F16 scale = set1(log2_e), shift = set1(-top[r]);
    F16 acc = zero();
    for (int t = from; t < stop; t += 16) {
      F16 e = visible ? exp2(fma(load(s + t), scale, shift)) : zero();
      store(s + t, e);
      acc = add(acc, e);
    }
    lanes[r] = acc;
  }
  reduce_rows<R>(lanes, sums, [](F16 v) { return reduce_add(v); }, [](const F16* v, float* out) { reduce_add_each(v, out); });
  for (int r = 0; r < R; r++) sum[r] = sums[r];
}

// What a chunk gives, or what all chunks so far give: values (rows, padded_dim), and per row top and sum as above.
struct Partial {
  float *values, *top, *sum;
};
static inline Partial partial_at(float* p, int rows, int padded) {
  return {p, p + (size_t)rows * padded, p + (size_t)rows * padded + rows};
}

template <class Cells>
static void attend_chunk(const Cells& cells, const AttentionRows& a, int begin, int end, int chunk, float* scores, const Partial& out) {
  const int from = max_int(begin, chunk) / kLaneTokens * kLaneTokens, to = min_int(end, chunk + kChunkTokens);
  const int stop = (to + kLaneTokens - 1) / kLaneTokens * kLaneTokens;
  for (int r0 = 0; r0 < a.rows; r0 += Cells::rows)
    with_columns<Cells::rows>(min_int(Cells::rows, a.rows - r0), [&](auto n) {
      constexpr int R = decltype(n)::value;
      cells.template score<R>(r0, from, to, scores);
      softmax_chunk<R>(scores - chunk, from, stop, a.first + r0, a.last + r0, a.cap, out.top + r0, out.sum + r0);
      cells.template weigh<R>(r0, max_int(begin, chunk), to, scores, out.values + (size_t)r0 * cells.kv.padded_dim);
    });
}

static inline void start_partial(const Partial& p, int rows, int padded) {
  for (size_t i = 0; i < (size_t)rows * padded; i++) p.values[i] = 0.0f;
  for (int r = 0; r < rows; r++) p.top[r] = -__builtin_inff(), p.sum[r] = 0.0f;
}

// The next chunk joins the earlier ones.
static void join_chunk(const Partial& all, const Partial& chunk, int rows, int padded) {
  float tops[16], keeps[16], takes[16];
  for (int r = 0; r < rows; r++) {
    if (r % 16 == 0) {  // sixteen rows at a time; the exponentials would take longer than all else
      const int n = min_int(16, rows - r);
      const F16 earlier = load_n(all.top + r, n), later = load_n(chunk.top + r, n), top = max(earlier, later);
      store(tops, top);
      store(keeps, exp2(sub(earlier, top)));
      store(takes, exp2(sub(later, top)));
    }
    if (chunk.top[r] == -__builtin_inff()) continue;
    const float keep = keeps[r % 16], take = takes[r % 16];
    all.sum[r] = __builtin_fmaf(chunk.sum[r], take, all.sum[r] * keep);
    all.top[r] = tops[r % 16];
    float* total = all.values + (size_t)r * padded;
    const float* part = chunk.values + (size_t)r * padded;
    for (int d = 0; d < padded; d += 16) store(total + d, fma(load(part + d), set1(take), mul(load(total + d), set1(keep))));
  }
}

static void finish_rows(const Partial& all, int rows, int dim, int padded, float* y, const size_t* y_offsets) {
  for (int r = 0; r < rows; r++)
    for (int d = 0; d < dim; d += 16) {
      F16 value = div(load(all.values + (size_t)r * padded + d), set1(all.sum[r]));
      if (d + 16 <= dim)
        store(y + y_offsets[r] + d, value);
      else
        store_n(y + y_offsets[r] + d, value, dim - d);
    }
}

// The tokens that any of the rows sees: [begin, end).
static inline void seen(const AttentionRows& a, int* begin, int* end) {
  *begin = a.first[0], *end = a.last[0] + 1;
  for (int r = 1; r < a.rows; r++) *begin = min_int(*begin, a.first[r]), *end = max_int(*end, a.last[r] + 1);
}

// Calls f(cells) for the cache's number format. end: of what any row sees. memory: what the cells may use.
template <class F>
static inline void with_cells(const KvHead& kv, const AttentionRows& a, int end, float* memory, F&& f) {
  switch (kv.number) {
    case KvNumber::f32: return f(FloatCells<KvNumber::f32>{kv, a, end});
    case KvNumber::f16: return f(FloatCells<KvNumber::f16>{kv, a, end});
    case KvNumber::i8: return f(ByteCells{kv, a, end, memory});
  }
}

static void attend(const KvHead& kv, const AttentionRows& a, float* y, const size_t* y_offsets, float* scratch) {
  const size_t part = attention_part(a.rows, kv.padded_dim);
  const Partial all = partial_at(scratch, a.rows, kv.padded_dim), one = partial_at(scratch + part, a.rows, kv.padded_dim);
  float* scores = scratch + 2 * part;
  int begin, end;
  seen(a, &begin, &end);
  start_partial(all, a.rows, kv.padded_dim);
  with_cells(kv, a, end, scores + kRows * kChunkTokens, [&](const auto& cells) {
    for (int chunk = begin / kChunkTokens * kChunkTokens; chunk < end; chunk += kChunkTokens) {
      attend_chunk(cells, a, begin, end, chunk, scores, one);
      join_chunk(all, one, a.rows, kv.padded_dim);
    }
  });
  finish_rows(all, a.rows, kv.head_dim, kv.padded_dim, y, y_offsets);
}

static void attend_chunks(const KvHead& kv, const AttentionRows& a, int first_chunk, int last_chunk, float* parts, float* scratch) {
  const size_t part = attention_part(a.rows, kv.padded_dim);
  int begin, end;
  seen(a, &begin, &end);
  with_cells(kv, a, end, scratch + kRows * kChunkTokens, [&](const auto& cells) {
    for (int c = max_int(first_chunk, begin / kChunkTokens); c < last_chunk && c * kChunkTokens < end; c++)
      attend_chunk(cells, a, begin, end, c * kChunkTokens, scratch, partial_at(parts + c * part, a.rows, kv.padded_dim));
  });
}

static void join_chunks(const KvHead& kv, const AttentionRows& a, float* parts, float* y, const size_t* y_offsets, float* scratch) {
  const size_t part = attention_part(a.rows, kv.padded_dim);
  const Partial all = partial_at(scratch, a.rows, kv.padded_dim);
  int begin, end;
  seen(a, &begin, &end);
  start_partial(all, a.rows, kv.padded_dim);
  for (int c = begin / kChunkTokens; c * kChunkTokens < end; c++)
    join_chunk(all, partial_at(parts + c * part, a.rows, kv.padded_dim), a.rows, kv.padded_dim);
  finish_rows(all, a.rows, kv.head_dim, kv.padded_dim, y, y_offsets);
}

static void write_kv(const KvHead& kv, int token, float* key, const float* value) {
  switch (kv.number) {
    case KvNumber::f32: return write_floats<KvNumber::f32>(kv, token, key, value);
    case KvNumber::f16: return write_floats<KvNumber::f16>(kv, token, key, value);
    case KvNumber::i8: return write_bytes(kv, token, key, value);
  }
}
}  // namespace KQ_ISA
}  // namespace kq
