// One step through the layers. Every function here runs on all threads of the pool at once; phases end with barriers.
#include <algorithm>
#include <cmath>
#include <new>

#include "cpu/prefetch.h"
#include "runtime/step_state.h"

namespace kq {
namespace {
constexpr int kOwnColumns = 40;           // columns for each thread from which each keeps to its own (model.cpp: kBlockThreads)
constexpr size_t kClaimBytes = 12 << 10;  // weights worth the cost of a claim

// Whether a row comes before the largest so far, as argmax() orders them: numbers before not-a-number, the first among equals.
bool is_larger(const float* y, int row, int largest) {
  if (std::isnan(y[row]) || std::isnan(y[largest])) return std::isnan(y[largest]) && (!std::isnan(y[row]) || row < largest);
  return y[row] > y[largest] || (y[row] == y[largest] && row < largest);
}

void add_scaled(float* x, const float* y, int n, float scale) {
  if (scale == 1.0f)
    for (int i = 0; i < n; i++) x[i] += y[i];
  else
    for (int i = 0; i < n; i++) x[i] += y[i] * scale;
}
}  // namespace

Model::Activations Model::shape(const Linear& linear, int columns, bool int8, Buffers& b) const {
  Activations a;
  const Panels& p = linear.panels;
  const size_t inputs = p.padded_inputs(), groups = p.groups;
  a.int8 = int8 && p.quantized;
  if (a.int8)
    a.ints = {b.codes.get<int8_t>(inputs * columns), b.scales.get<float>(groups * columns), b.init.get<int32_t>(groups * columns),
              columns, p.groups, p.group};
  else
    a.floats = {b.floats.get<float>(inputs * columns), columns, (int)inputs};
  return a;
}

Model::Activations Model::part(const Activations& whole, int first, int count) const {
  Activations a = whole;
  if (a.int8) {
    const size_t groups = a.ints.groups;
    a.ints.codes += first * groups * a.ints.group;
    a.ints.scales += first * groups;
    a.ints.init += first * groups;
    a.ints.columns = count;
  } else {
    a.floats.values += (size_t)first * a.floats.inputs;
    a.floats.columns = count;
  }
  return a;
}

void Model::fill(const Activations& a, const Linear& linear, const float* x, int column) const {
  if (a.int8)
    kernels_.quantize_column(x, linear.panels.inputs, linear.panels.zero_point, a.ints, column, 0, a.ints.groups);
  else
    kernels_.pack_column(x, linear.panels.inputs, a.floats, column);
}

void Model::normalize(const NormWeights& norm, const float* x, float* y, int n) const {
  if (spec_.layer_norm)
    kernels_.layer_norm(x, norm.weight.data(), norm.bias.empty() ? nullptr : norm.bias.data(), y, n, spec_.norm_eps);
  else
    kernels_.rms_norm(x, norm.weight.data(), y, n, spec_.norm_eps);
}

Output Model::output(const Linear& linear, float* y, size_t stride, int rows, Epilogue epilogue, float scale) const {
  return {y, stride, rows, linear.bias.empty() ? nullptr : linear.bias.data(), epilogue, scale, spec_.activation};
}

void Model::multiply_panels(int thread, const Panels& p, int begin, int end, const Activations& a, const Output& out) {
  if (a.int8)
    kernels_.matmul_int(p, begin, end, a.ints, out,
                        thread_states_[thread]->unpacked.get<uint8_t>((size_t)2 * kPanelRows * p.padded_inputs()));
  else
    kernels_.matmul_float(p, begin, end, a.floats, out);
}

int Model::claim(const Panels& p) const {
  const int enough = pool_.size() == 1 ? p.num_panels : (int)(kClaimBytes / p.panel_bytes) + 1;
  const int whole = p.interleaved ? 4 : 2;  // outputs are the next product's inputs in groups of 32
  return (enough + whole - 1) / whole * whole;
}

// Both need whole groups. With many columns a pass of its own is faster: a tile's columns then come one after the other.
bool Model::feeds(const Linear& from, const Linear& to, const StepState& s) const {
  const int chunk = claim(from.panels), rows = kPanelRows * chunk / (from.panels.interleaved ? 2 : 1);
  return s.int8 && to.panels.quantized && !splits_columns(s.columns) && (chunk >= from.panels.num_panels || rows % to.panels.group == 0);
}

bool Model::attention_feeds(const Linear& o, const StepState& s) const {
  const int rows = spec_.share() * spec_.head_dim;
  return s.int8 && o.panels.quantized && !splits_columns(s.columns) && (spec_.num_kv_heads == 1 || rows % o.panels.group == 0);
}

void Model::feed(const Linear& from, const Linear& to, const Output& out, int begin, int end, int columns) {
  const Activations a = shape(to, columns, true, fed_);  // grown in size_buffers(): only reads the pointers
  const int halves = from.panels.interleaved ? 2 : 1, group = to.panels.group;
  const int first_group = begin / halves * kPanelRows / group;
  const int last_group = end == from.panels.num_panels ? a.ints.groups : end / halves * kPanelRows / group;
  for (int c = 0; c < columns; c++)
    kernels_.quantize_column(out.y + c * out.stride, to.panels.inputs, to.panels.zero_point, a.ints, c, first_group, last_group);
}

// Where a thread's part of the panels begins; thread + 1: where it ends.
static const uint8_t* part_of(const Panels& p, int chunk, int thread, const Claims& claims) {
  return p.data + (size_t)claims.first(thread, p.num_panels, chunk) * p.panel_bytes;
}

// Asks for the lines that this thread will store to: another core has read them since the last time.
void Model::expect_stores(int thread, const Linear& linear, const Output& out, const Claims& claims, const Follow& follow) const {
  const Panels& p = linear.panels;
  const int halves = p.interleaved ? 2 : 1, chunk = claim(p);
  const int row = claims.first(thread, p.num_panels, chunk) / halves * kPanelRows;
  const int end = std::min(claims.first(thread + 1, p.num_panels, chunk) / halves * kPanelRows, out.rows);
  if (row >= end || follow.finds_largest) return;
  if (follow.feeds) {
    const Activations a = shape(*follow.next, 1, true, const_cast<Buffers&>(fed_));
    const int group = follow.next->panels.group, first_group = row / group, groups = end / group - first_group;
    prefetch_write(a.ints.codes + row, end - row);
    prefetch_write(a.ints.scales + first_group, groups * sizeof(float));
    prefetch_write(a.ints.init + first_group, groups * sizeof(int32_t));
  } else {
    prefetch_write(out.y + row, (end - row) * sizeof(float));
  }
}

// With many columns each thread keeps to its own through all phases: what it made is still in its caches, and little has to
// come from another core's. With few, weights are most of what is read, and each thread keeps to its own panels.
bool Model::splits_columns(int columns) const { return pool_.size() > 1 && columns >= kOwnColumns * pool_.size(); }

// The panels for a thread that takes them in chunks and goes on with another product.
Panels Model::followed(int thread, const Panels& panels, int chunk, const Linear* next, const Claims& claims) const {
  Panels p = panels;
  if (!next || !next->panels.num_panels) return p;
  p.fetch_end = std::min(part_of(p, chunk, thread + 1, claims), p.data + p.num_panels * p.panel_bytes);
  p.fetch_jump = part_of(next->panels, claim(next->panels), thread, claims) - p.fetch_end;
  return p;
}

void Model::multiply(int thread, const Linear& linear, const Activations& a, const Output& out, Claims& claims, const Follow& follow) {
  const int columns = a.int8 ? a.ints.columns : a.floats.columns, chunk = claim(linear.panels);
  const Panels p = followed(thread, linear.panels, chunk, follow.next, claims);
  int begin, end;
  if (!splits_columns(columns)) {
    ThreadState& t = *thread_states_[thread];
    int run = 0, run_end = -1;  // panels since the last look for the largest: as long as they go on, they are looked at together
    auto look = [&] {
      const int row = run * kPanelRows;
      if (run_end < 0) return;
      const int best = row + kernels_.argmax(out.y + row, std::min(run_end * kPanelRows, out.rows) - row);
      if (t.largest < 0 || is_larger(out.y, best, t.largest)) t.largest = best;
    };
    t.largest = -1;
    while (claims.take_half(thread, p.num_panels, chunk, &begin, &end)) {
      multiply_panels(thread, p, begin, end, a, out);
      if (follow.feeds) feed(linear, *follow.next, out, begin, end, columns);
      if (!follow.finds_largest) continue;
      if (begin != run_end) look(), run = begin;
      run_end = end;
    }
    look();
    return;
  }
  const int tile = kernels_.int_cols, tiles = (columns + tile - 1) / tile, threads = pool_.size();
  const int chunks = (p.num_panels + chunk - 1) / chunk;
  while (claims.take(thread, threads * chunks, 1, &begin, &end)) {
    const int owner = begin / chunks, panel = begin % chunks * chunk;
    const int first = tiles * owner / threads * tile, last = std::min(columns, tiles * (owner + 1) / threads * tile);
    Output own = out;
    own.y += first * out.stride;
    multiply_panels(thread, p, panel, std::min(panel + chunk, p.num_panels), part(a, first, last - first), own);
  }
}

// x, normed and quantized, or what made x has quantized it already. With several columns the threads share the work and meet.
Model::Activations Model::prepare(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride,
                                  const NormWeights* norm, Claims& claims) {
  ThreadState& t = *thread_states_[thread];
  const int inputs = linear.panels.inputs;
  const bool normed = norm && norm->present();
  float* row = normed ? t.norm.get<float>(inputs) : nullptr;
  auto column = [&](const Activations& a, int c) {
    const float* in = x + c * stride;
    if (normed) {
      normalize(*norm, in, row, inputs);
      in = row;
    }
    fill(a, linear, in, c);
  };
  if (columns == 1) {
    // Each thread prepares the one column for itself: cheaper than a barrier.
    const Activations a = shape(linear, 1, int8, t.column);
    column(a, 0);
    return a;
  }
  const Activations a = shape(linear, columns, int8, columns_);  // grown in size_buffers(): only reads the pointers
  int begin, end;
  while (claims.take(thread, columns, columns >= 96 ? 12 : 1, &begin, &end))
    for (int c = begin; c < end; c++) column(a, c);
  pool_.barrier(thread);
  return a;
}

void Model::product(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride, const NormWeights* norm,
                    const Output& out, Claims* claims, const Follow& follow, bool fed) {
  if (columns == 1) expect_stores(thread, linear, out, claims[1], follow);
  const Activations a =
      fed ? shape(linear, columns, true, fed_) : prepare(thread, linear, columns, int8, x, stride, norm, claims[0]);
  multiply(thread, linear, a, out, claims[1], follow);
  pool_.barrier(thread);
}

// Norms and rotates a kv head's key and its query heads in place, and writes key and value to the pages.
void Model::rotate_and_store(StepState& s, int layer, int column, int kv_head) {
  const Layer& l = layers_[layer];
  const Token& t = s.tokens[column];
  const int dim = spec_.head_dim, half = spec_.rope_dim / 2, share = spec_.share();
  float* row = s.qkv + (size_t)column * spec_.qkv_size();
  float *k = row + spec_.key_at(kv_head), *v = row + spec_.value_at(kv_head);
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
  for (int g = 0; g < share; g++) rotate(row + spec_.query_at(kv_head * share + g), l.q_norm);
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
  for (int i = 0; i < task.count; i++) {
    const int column = base + i, position = s.tokens[column].position;
    if (s.fused) rotate_and_store(s, layer, column, task.kv_head);
    for (int g = 0; g < share; g++) {
      const int r = i * share + g, head = task.kv_head * share + g;
      const float* source = s.qkv + (size_t)column * spec_.qkv_size() + spec_.query_at(head);
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
  const int own_end = claims.first(thread + 1, tasks * parts, 1);
  while (claims.take(thread, tasks * parts, 1, &begin, &end)) {
    if (s.fetched_works && begin + s.fetched_works < own_end) fetch_work(s, layer, begin + s.fetched_works);
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

void Model::mlp_block(int thread, StepState& s, int layer, Claims* claims) {
  const Layer& l = layers_[layer];
  const int hidden = spec_.hidden_size, inner = spec_.intermediate_size;
  // A parallel block without a norm of its own for the MLP shares the attention's.
  const NormWeights* before = spec_.norm_after_residual ? nullptr : l.mlp_norm.present() || !spec_.parallel_block ? &l.mlp_norm : &l.attn_norm;
  const bool after = l.mlp_post_norm.present();
  // s.sub is free here but for the attention's share of a parallel block, which then has no post norm of the MLP.
  float* target = after ? s.sub : s.x;
  const float scale = after ? 1.0f : spec_.residual_scale;
  const Epilogue epilogue = after ? Epilogue::store : Epilogue::add;
  if (spec_.experts.count) {
    experts(thread, s, l, target, scale, !after, claims + 4);
  } else {
    const Linear& in = l.gate_up.present() ? l.gate_up : l.up;
    const bool fed = feeds(in, l.down, s);
    product(thread, in, s.columns, s.int8, s.x, hidden, before,
            output(in, s.inner, inner, inner, l.gate_up.present() ? Epilogue::gated : Epilogue::activate), claims,
            {.next = &l.down, .feeds = fed});
    product(thread, l.down, s.columns, s.int8, s.inner, inner, nullptr, output(l.down, target, hidden, hidden, epilogue, scale),
            claims + 2, {.next = layer + 1 < spec_.num_layers ? &layers_[layer + 1].qkv : &head_}, fed);
  }
  Claims& last = claims[kMlpClaims - 1];
  if (spec_.norm_after_residual)
    each_column(thread, s, last, [&](int c) { normalize(l.mlp_norm, s.x + (size_t)c * hidden, s.x + (size_t)c * hidden, hidden); });
  else if (after)
    each_column(thread, s, last, [&](int c) {
      float* y = s.sub + (size_t)c * hidden;
      normalize(l.mlp_post_norm, y, y, hidden);
      add_scaled(s.x + (size_t)c * hidden, y, hidden, spec_.residual_scale);
    });
  else if (spec_.parallel_block)
    each_column(thread, s, last, [&](int c) { add_scaled(s.x + (size_t)c * hidden, s.sub + (size_t)c * hidden, hidden, spec_.residual_scale); });
}

void Model::embed(int thread, StepState& s, int column) {
  ThreadState& state = *thread_states_[thread];
  const Token& t = s.tokens[column];
  const int hidden = spec_.hidden_size;
  float* x = s.x + (size_t)column * hidden;
  if (!embedding_.read(s.inputs[t.input].tokens[column - s.first_column[t.input]], x, state.row_bytes)) s.rows_lost = true;
  if (spec_.embed_scale != 1.0f)
    for (int i = 0; i < hidden; i++) x[i] *= spec_.embed_scale;
  float* row = state.norm.get<float>(hidden);
  for (const Embedding* more : {&token_types_, &positions_}) {
    if (more->source == Embedding::Source::none) continue;
    if (!more->read(more == &positions_ ? t.position : 0, row, state.row_bytes)) s.rows_lost = true;
    add_scaled(x, row, hidden, 1.0f);
  }
  if (embed_norm_.present()) normalize(embed_norm_, x, x, hidden);
}

void Model::run_layers(int thread, StepState& s, Claims* claims) {
  each_column(thread, s, claims[0], [&](int c) { embed(thread, s, c); });
  claims += kStepClaims;
  for (int i = 0; i < spec_.num_layers; i++) {
    attention_block(thread, s, i, claims);
    if (!s.columns) return;  // only keys and values were wanted
    claims += kAttentionClaims;
    mlp_block(thread, s, i, claims);
    claims += kMlpClaims;
  }
}

void Model::finish_results(int thread, StepState& s, Claims* claims) {
  const int rows = (int)s.result_columns.size(), hidden = spec_.hidden_size;
  if (!rows) return;
  int begin, end;
  float* states = s.hidden ? s.results : s.head_in;
  while (claims[0].take(thread, rows, 4, &begin, &end))
    for (int r = begin; r < end; r++) {
      const float* x = s.x + (size_t)s.result_columns[r] * hidden;
      if (final_norm_.present())
        normalize(final_norm_, x, states + (size_t)r * hidden, hidden);
      else
        std::copy(x, x + hidden, states + (size_t)r * hidden);
    }
  pool_.barrier(thread);
  if (s.hidden) return;
  const int vocab = spec_.vocab_size;
  const bool finds_largest = rows == 1 && spec_.final_cap <= 0.0f;
  product(thread, head_, rows, s.int8, s.head_in, hidden, nullptr,
          output(head_, s.results, vocab, vocab, Epilogue::store, spec_.logit_scale), claims + 1, {.next = &layers_[0].qkv, .finds_largest = finds_largest});
  if (spec_.final_cap > 0.0f) {
    while (claims[3].take(thread, rows, 1, &begin, &end))
      for (int r = begin; r < end; r++) kernels_.soft_cap(s.results + (size_t)r * vocab, vocab, spec_.final_cap);
    pool_.barrier(thread);
  }
  int largest = -1;
  if (finds_largest)
    for (const auto& t : thread_states_)
      if (t->largest >= 0 && (largest < 0 || is_larger(s.results, t->largest, largest))) largest = t->largest;
  while (claims[4].take(thread, (int)s.inputs.size(), 1, &begin, &end)) {
    StepInput& in = s.inputs[begin];
    if (in.output != StepOutput::sample || !in.sequence->sampler) continue;
    try {
      in.choice = in.sequence->sampler->choose(s.results + (size_t)in.first_row * vocab, vocab, kernels_, largest);
    } catch (const std::bad_alloc&) {  // may not leave a thread of the pool
      s.out_of_memory = true;
    }
  }
}
}  // namespace kq
