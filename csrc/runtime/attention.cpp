// The attention half of a layer, on all threads of the pool at once.
#include <algorithm>

#include "runtime/step_state.h"

namespace kq {

// Norms and rotates a kv head's key and its query heads in place, and writes key and value to the pages.
void Model::rotate_and_store(StepState& s, int layer, int column, int kv_head) {
  const Layer& l = layers_[layer];
  const Token& t = s.tokens[column];
  const int dim = spec_.head_dim, half = spec_.rope_dim / 2, share = spec_.share();
  float* row = s.qkv + (size_t)column * spec_.qkv_size();
  float *q = row + spec_.query_at(kv_head * share), *k = row + spec_.key_at(kv_head), *v = row + spec_.value_at(kv_head);
  const int rope = spec_.layer_rope[layer];
  const float* cos = rope < 0 ? nullptr : t.own_rope && rope == 0 ? t.own_rope : &ropes_[rope].table[(size_t)t.position * 2 * half];
  auto clip = [&](float* head) {
    if (spec_.clip_qkv > 0.0f)
      for (int d = 0; d < dim; d++) head[d] = std::min(std::max(head[d], -spec_.clip_qkv), spec_.clip_qkv);
  };
  auto rotate = [&](float* head, const std::vector<float>& norm) {
    clip(head);
    if (spec_.qk_norm && !spec_.qk_norm_over_all) kernels_.rms_norm(head, norm.data(), head, dim, spec_.norm_eps);
    if (cos) kernels_.rope(head, half, cos, cos + half, spec_.rope_interleaved);
  };
  for (int g = 0; g < share; g++) rotate(q + g * dim, l.q_norm);
  rotate(k, l.k_norm);
  clip(v);
  KvHead kv = s.pages.head(spec_, layer, kv_head, s.inputs[t.input].sequence->pages.data());
  kernels_.write_kv(kv, t.position, k, v);
}

void Model::attend(int thread, StepState& s, int layer, int index, int part) {
  const Task& task = s.tasks[index];
  ThreadState& state = *thread_states_[thread];
  const int dim = spec_.head_dim, share = spec_.share(), rows = task.count * share;
  float* q = state.queries.get<float>((size_t)rows * dim + 16);
  float* scratch = state.attention.get<float>(attention_scratch(rows, spec_.padded_head_dim()));
  int first[kMaxShare], last[kMaxShare];
  size_t offsets[kMaxShare];
  const int window = spec_.sliding_window[layer];
  const float scale = spec_.attention_scale;
  const int base = s.first_column[task.input] + task.first;
  const StepInput& in = s.inputs[task.input];
  const float* queries = s.qkv + spec_.query_at(task.kv_head * share);
  for (int i = 0; i < task.count; i++) {
    const int column = base + i, position = s.tokens[column].position;
    if (s.fused) rotate_and_store(s, layer, column, task.kv_head);
    for (int g = 0; g < share; g++) {
      const int r = i * share + g, head = task.kv_head * share + g;
      const float* source = queries + (size_t)column * spec_.qkv_size() + g * dim;
      for (int d = 0; d < dim; d++) q[(size_t)r * dim + d] = source[d] * scale;
      first[r] = window > 0 ? std::max(0, position - window + 1) : 0;
      last[r] = spec_.causal ? position : in.sequence->length + in.count - 1;
      offsets[r] = (size_t)column * spec_.q_size() + (size_t)head * dim;
    }
  }
  KvHead kv = s.pages.head(spec_, layer, task.kv_head, in.sequence->pages.data());
  const AttentionRows query{q, (size_t)dim, first, last, rows, spec_.attention_cap};
  float* partials = s.partials + (size_t)index * s.task_partials;
  if (s.task_parts == 1 || part == s.task_parts) {
    if (s.task_parts == 1)
      kernels_.attend(kv, query, s.attended, offsets, scratch);
    else
      kernels_.join_chunks(kv, query, partials, s.attended, offsets, scratch);
    const Linear& o = layers_[layer].o;
    if (!attention_feeds(o, s)) return;
    const Activations a = shape(o, s.columns, true, fed_);
    const int begin = task.kv_head * share * dim / o.panels.group;
    const int end = task.kv_head + 1 == spec_.num_kv_heads ? a.ints.groups : (task.kv_head + 1) * share * dim / o.panels.group;
    for (int c = base; c < base + task.count; c++)
      kernels_.quantize_column(s.attended + (size_t)c * spec_.q_size(), o.panels.inputs, o.panels.zero_point, a.ints, c, begin, end);
    return;
  }
  const int begin = *std::min_element(first, first + rows) / kChunkTokens;
  const int chunks = *std::max_element(last, last + rows) / kChunkTokens + 1 - begin;
  kernels_.attend_chunks(kv, query, begin + chunks * part / s.task_parts, begin + chunks * (part + 1) / s.task_parts, partials, scratch);
}

// Before attention where it is not a part of it: a token's key may be read by another thread's queries.
void Model::store_all(int thread, StepState& s, int layer, Claims& claims) {
  each_column(thread, s, claims, [&](int c) {
    if (spec_.qk_norm && spec_.qk_norm_over_all) {
      float* row = s.qkv + (size_t)c * spec_.qkv_size();
      kernels_.rms_norm(row, layers_[layer].q_norm.data(), row, spec_.q_size(), spec_.norm_eps);
      float* k = row + spec_.q_size();
      kernels_.rms_norm(k, layers_[layer].k_norm.data(), k, spec_.kv_size(), spec_.norm_eps);
    }
    for (int h = 0; h < spec_.num_kv_heads; h++) rotate_and_store(s, layer, c, h);
  });
}

// Asks for the first keys and values of a work (a task, or a part of one); attention itself asks for those further on.
void Model::fetch_work(StepState& s, int layer, int work) {
  const Task& task = s.tasks[work / s.task_parts];
  const Sequence& sequence = *s.inputs[task.input].sequence;
  const int end = sequence.length + s.inputs[task.input].count, window = spec_.sliding_window[layer];
  int begin = window > 0 ? std::max(0, end - window) : 0;
  if (s.task_parts > 1) {
    const int chunk = begin / kChunkTokens, chunks = (end + kChunkTokens - 1) / kChunkTokens - chunk;
    begin = std::max(begin, (chunk + chunks * (work % s.task_parts) / s.task_parts) * kChunkTokens);
  }
  s.pages.fetch(s.pages.head(spec_, layer, task.kv_head, sequence.pages.data()), begin, std::min(begin + kTokensAhead, end));
}

void Model::attend_all(int thread, StepState& s, int layer, Claims& claims) {
  int begin, end;
  const int tasks = (int)s.tasks.size(), parts = s.task_parts;
  const int own = claims.first(thread, tasks * parts, 1), own_end = claims.first(thread + 1, tasks * parts, 1);
  while (claims.take(thread, tasks * parts, 1, &begin, &end)) {
    if (s.fetched_works && begin >= own && begin + s.fetched_works < own_end) fetch_work(s, layer, begin + s.fetched_works);
    attend(thread, s, layer, begin / parts, begin % parts);
  }
  if (parts > 1) {
    pool_.barrier(thread);
    for (int i = thread; i < tasks; i += pool_.size()) attend(thread, s, layer, i, parts);
  }
  pool_.barrier(thread);
}

// The product and the attention of a kv head by the same thread, so that no other has to wait for it or gets its lines.
void Model::attend_by_heads(int thread, StepState& s, int layer, const NormWeights* norm, const Output& out, Claims* claims) {
  const Layer& l = layers_[layer];
  const int heads = spec_.num_kv_heads, inputs = (int)s.inputs.size(), panels = spec_.head_rows() / kPanelRows;
  const int own = claims[3].first(thread, heads, 1), own_works = (claims[3].first(thread + 1, heads, 1) - own) * inputs;
  auto fetch_own = [&](int i) {
    if (i < own_works) fetch_work(s, layer, i % inputs * heads + own + i / inputs);
  };
  for (int i = 0; i < s.fetched_works; i++) fetch_own(i);
  const Activations a = prepare(thread, l.qkv, s.columns, s.int8, s.x, spec_.hidden_size, norm, claims[0]);
  const Panels p = followed(thread, l.qkv.panels, panels, &l.o, claims[3]);
  int head, end;
  while (claims[3].take(thread, heads, 1, &head, &end)) {
    multiply_panels(thread, p, head * panels, end * panels, a, out);
    for (int i = 0; i < inputs; i++) {
      if (head >= own) fetch_own((head - own) * inputs + i + s.fetched_works);
      attend(thread, s, layer, i * heads + head, 0);
    }
  }
  pool_.barrier(thread);
}

// x += scale * attention(norm(x)), in the variants of the spec. In a parallel block the result waits in s.sub.
void Model::attention_block(int thread, StepState& s, int layer, Claims* claims) {
  const Layer& l = layers_[layer];
  const int hidden = spec_.hidden_size;
  const size_t qkv = spec_.qkv_size();
  const NormWeights* before = spec_.norm_after_residual ? nullptr : &l.attn_norm;
  const Output to_qkv = output(l.qkv, s.qkv, qkv, (int)qkv, Epilogue::store);
  if (s.by_heads) {
    attend_by_heads(thread, s, layer, before, to_qkv, claims);
  } else {
    const int works = (int)s.tasks.size() * s.task_parts, first = claims[3].first(thread, works, 1);
    for (int w = first; w < std::min(first + s.fetched_works, claims[3].first(thread + 1, works, 1)); w++) fetch_work(s, layer, w);
    product(thread, l.qkv, s.columns, s.int8, s.x, hidden, before, to_qkv, claims, {.next = &l.o});
    if (!s.fused) store_all(thread, s, layer, claims[2]);
    if (s.narrows && layer + 1 == spec_.num_layers) {
      if (thread == 0) narrow(s);
      pool_.barrier(thread);
      if (!s.columns) return;
    }
    attend_all(thread, s, layer, claims[3]);
  }
  const bool direct = !spec_.parallel_block && !l.attn_post_norm.present();
  product(thread, l.o, s.columns, s.int8, s.attended, spec_.q_size(), nullptr,
          direct ? output(l.o, s.x, hidden, hidden, Epilogue::add, spec_.residual_scale)
                 : output(l.o, s.sub, hidden, hidden, Epilogue::store),
          claims + 4, {.next = l.gate_up.present() ? &l.gate_up : &l.up}, attention_feeds(l.o, s));
  if (spec_.norm_after_residual)
    each_column(thread, s, claims[6], [&](int c) { normalize(l.attn_norm, s.x + (size_t)c * hidden, s.x + (size_t)c * hidden, hidden); });
  else if (l.attn_post_norm.present())
    each_column(thread, s, claims[6], [&](int c) {
      float* y = s.sub + (size_t)c * hidden;
      normalize(l.attn_post_norm, y, y, hidden);
      if (!spec_.parallel_block) add_scaled(s.x + (size_t)c * hidden, y, hidden, spec_.residual_scale);
    });
}
}  // namespace kq
