// A matrix times activations, on all threads of the pool at once: who multiplies what, what is read ahead, what comes out quantized.
#include <algorithm>

#include "cpu/prefetch.h"
#include "runtime/step_state.h"

namespace kq {
namespace {
constexpr int kOwnColumns = 40;           // columns for each thread from which each keeps to its own (model.cpp: kBlockThreads)
constexpr size_t kClaimBytes = 12 << 10;  // weights worth the cost of a claim
constexpr int kExpectedRows = 8192;       // more are the head's, whose lines no other core has read
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

// Both need whole groups. Many columns take a pass of their own: a tile's then come one after the other.
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
void Model::expect_stores(int thread, const Linear& linear, const Output& out, const Claims& claims, const Follow& follow) {
  const Panels& p = linear.panels;
  const int halves = p.interleaved ? 2 : 1, chunk = claim(p);
  const int row = claims.first(thread, p.num_panels, chunk) / halves * kPanelRows;
  const int end = std::min(claims.first(thread + 1, p.num_panels, chunk) / halves * kPanelRows, out.rows);
  if (pool_.size() == 1 || row >= end || end - row > kExpectedRows) return;
  if (follow.feeds) {
    const Activations a = shape(*follow.next, 1, true, fed_);
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

// Whether the kernel itself asks for weights ahead, across the end of a thread's part.
bool Model::streams(const Panels& p, const Activations& a) const { return a.int8 && p.code_bits == 4 && p.cached; }

// Asks for what this thread will read first in the next product, while it would only wait.
void Model::fetch_ahead(int thread, const Panels& next, const Claims& claims) const {
  if (!next.cached || !next.num_panels) return;
  const uint8_t *from = part_of(next, claim(next), thread, claims), *end = next.data + next.num_panels * next.panel_bytes;
  if (from < end) prefetch_near(from, std::min(kFetchAhead, (size_t)(end - from)));
}

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
  const int pair = p.interleaved ? 2 : 1, pairs = p.num_panels / pair;
  while (claims.take_half(thread, threads * pairs, 1, &begin, &end)) {
    const int owner = begin / pairs, first = tiles * owner / threads * tile, last = std::min(columns, tiles * (owner + 1) / threads * tile);
    Output own = out;
    own.y += first * out.stride;
    multiply_panels(thread, p, (begin - owner * pairs) * pair, (end - owner * pairs) * pair, part(a, first, last - first), own);
  }
}

// x, normed and quantized. With several columns the threads share the work and meet.
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
  if (columns == 1 && !streams(linear.panels, a) && follow.next) fetch_ahead(thread, follow.next->panels, claims[1]);
  pool_.barrier(thread);
}
}  // namespace kq
