// Mixture of experts: every column visits its chosen experts, columns of one expert are multiplied together.
// A column's result is the same whatever its neighbors choose: each expert's share is computed per column and the shares
// are added in the order of the experts.
#include <algorithm>
#include <cmath>

#include "runtime/step_state.h"

namespace kq {

// The experts of one column: softmax over all, the likeliest (the lower index among equals), ordered by index.
void Model::route(int thread, StepState& s, int column) {
  const ExpertSpec& e = spec_.experts;
  const float* logits = s.router + (size_t)column * e.count;
  float* p = thread_states_[thread]->expert_chances.get<float>(e.count);
  const float top = logits[kernels_.argmax(logits, e.count)];
  const double sum = kernels_.exp_sum(logits, e.count, top, 1.0f, p);
  int* order = thread_states_[thread]->expert_order.get<int>(e.count);
  for (int i = 0; i < e.count; i++) order[i] = i;
  std::partial_sort(order, order + e.per_token, order + e.count,
                    [&](int a, int b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
  double total = sum;
  if (e.normalize) {
    total = 0.0;
    for (int i = 0; i < e.per_token; i++) total += (double)p[order[i]];
  }
  std::sort(order, order + e.per_token);
  for (int i = 0; i < e.per_token; i++)
    s.routing.chosen[(size_t)column * e.per_token + i] = {order[i], 0, (float)((double)p[order[i]] / total)};
}

// Panels of an expert that one thread multiplies at a time; gated panels come in pairs.
int Model::panels_per_work(const Linear& expert) const {
  return (std::max(2, expert.panels.num_panels / (2 * pool_.size())) + 1) / 2 * 2;
}

// Fills what size_buffers() has made room for.
void Model::group_by_expert(StepState& s) {
  const ExpertSpec& e = spec_.experts;
  Routing& r = s.routing;
  r.first.assign(e.count + 1, 0);
  for (const Routing::Choice& c : r.chosen) r.first[c.expert + 1]++;
  for (int i = 0; i < e.count; i++) r.first[i + 1] += r.first[i];
  r.next.assign(r.first.begin(), r.first.end() - 1);
  for (size_t i = 0; i < r.chosen.size(); i++) {
    Routing::Choice& c = r.chosen[i];
    c.slot = r.next[c.expert]++;
    r.column_of[c.slot] = (int)(i / e.per_token);
    r.expert_of[c.slot] = c.expert;
  }
  auto split = [&](std::vector<Routing::Work>& work, const std::vector<Linear>& linears) {
    work.clear();
    for (int i = 0; i < e.count; i++) {
      if (r.first[i] == r.first[i + 1]) continue;
      const int panels = linears[i].panels.num_panels, chunk = panels_per_work(linears[i]);
      for (int begin = 0; begin < panels; begin += chunk) work.push_back({i, begin, std::min(panels, begin + chunk)});
    }
  };
  split(r.gate_up, layers_[0].experts_gate_up);
  split(r.down, layers_[0].experts_down);
}

// y (+)= scale * (experts(norm(x)) + shared expert)
void Model::experts(int thread, StepState& s, const Layer& l, float* y, float scale, bool add, Claims* claims) {
  const ExpertSpec& e = spec_.experts;
  const int hidden = spec_.hidden_size, inner = e.inner_size, slots = s.columns * e.per_token;
  Routing& r = s.routing;
  int begin, end;
  product(thread, l.router, s.columns, s.int8, s.x, hidden, &l.mlp_norm, output(l.router, s.router, e.count, e.count, Epilogue::store),
          claims, {});
  each_column(thread, s, claims[2], [&](int c) { route(thread, s, c); });
  if (thread == 0) group_by_expert(s);
  pool_.barrier(thread);

  // Every expert's columns stand in tiles of their own, one expert after the other.
  auto activations = [&](const Linear& linear, int expert) {
    return part(shape(linear, slots, s.int8, expert_columns_), r.first[expert], r.first[expert + 1] - r.first[expert]);
  };
  float* normed = thread_states_[thread]->norm.get<float>(hidden);
  while (claims[3].take(thread, slots, 2, &begin, &end))
    for (int slot = begin; slot < end; slot++) {
      const int expert = r.expert_of[slot];
      const Linear& linear = l.experts_gate_up[expert];
      normalize(l.mlp_norm, s.x + (size_t)r.column_of[slot] * hidden, normed, hidden);
      fill(activations(linear, expert), linear, normed, slot - r.first[expert]);
    }
  pool_.barrier(thread);
  while (claims[4].take(thread, (int)r.gate_up.size(), 1, &begin, &end)) {
    const Routing::Work& work = r.gate_up[begin];
    const Linear& linear = l.experts_gate_up[work.expert];
    multiply_panels(thread, linear.panels, work.begin, work.end, activations(linear, work.expert),
                    output(linear, s.expert_inner + (size_t)r.first[work.expert] * inner, inner, inner, Epilogue::gated));
  }
  pool_.barrier(thread);
  while (claims[5].take(thread, slots, 2, &begin, &end))
    for (int slot = begin; slot < end; slot++) {
      const int expert = r.expert_of[slot];
      const Linear& linear = l.experts_down[expert];
      fill(activations(linear, expert), linear, s.expert_inner + (size_t)slot * inner, slot - r.first[expert]);
    }
  pool_.barrier(thread);
  while (claims[6].take(thread, (int)r.down.size(), 1, &begin, &end)) {
    const Routing::Work& work = r.down[begin];
    const Linear& linear = l.experts_down[work.expert];
    multiply_panels(thread, linear.panels, work.begin, work.end, activations(linear, work.expert),
                    output(linear, s.expert_out + (size_t)r.first[work.expert] * hidden, hidden, hidden, Epilogue::store));
  }
  pool_.barrier(thread);

  const bool shared = e.shared_size > 0, gated = l.shared_gate.present();
  if (shared) {
    product(thread, l.shared_gate_up, s.columns, s.int8, s.x, hidden, &l.mlp_norm,
            output(l.shared_gate_up, s.inner, e.shared_size, e.shared_size, Epilogue::gated), claims + 7, {});
    product(thread, l.shared_down, s.columns, s.int8, s.inner, e.shared_size, nullptr,
            output(l.shared_down, s.shared_out, hidden, hidden, Epilogue::store), claims + 9, {});
    if (gated)
      product(thread, l.shared_gate, s.columns, s.int8, s.x, hidden, &l.mlp_norm, output(l.shared_gate, s.router, 1, 1, Epilogue::store),
              claims + 11, {});
  }
  each_column(thread, s, claims[13], [&](int c) {
    float* sum = thread_states_[thread]->norm.get<float>(hidden);
    std::fill(sum, sum + hidden, 0.0f);
    for (int i = 0; i < e.per_token; i++) {
      const Routing::Choice& choice = r.chosen[(size_t)c * e.per_token + i];
      const float* out = s.expert_out + (size_t)choice.slot * hidden;
      for (int d = 0; d < hidden; d++) sum[d] += out[d] * choice.weight;
    }
    if (shared) {
      float weight = 1.0f;
      if (gated) {
        float e1;  // sigmoid through the kernels' exponential, so that every instruction set agrees
        const float x = -s.router[c], shift = 0.0f;
        kernels_.exp_sum(&x, 1, shift, 1.0f, &e1);
        weight = 1.0f / (1.0f + e1);
      }
      const float* out = s.shared_out + (size_t)c * hidden;
      for (int d = 0; d < hidden; d++) sum[d] += out[d] * weight;
    }
    float* target = y + (size_t)c * hidden;
    for (int d = 0; d < hidden; d++) target[d] = (add ? target[d] : 0.0f) + sum[d] * scale;
  });
}
}  // namespace kq
