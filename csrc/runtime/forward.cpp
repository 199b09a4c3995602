// One step through the layers. Every function here runs on all threads of the pool at once; phases end with barriers.
#include <algorithm>
#include <new>

#include "runtime/step_state.h"

namespace kq {

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
  while (claims[4].take(thread, (int)s.inputs.size(), 1, &begin, &end)) {
    StepInput& in = s.inputs[begin];
    if (in.output != StepOutput::sample || !in.sequence->sampler) continue;
    int largest = -1;
    if (finds_largest)
      for (const auto& t : thread_states_)
        if (t->largest >= 0 && (largest < 0 || is_larger(s.results, t->largest, largest))) largest = t->largest;
    try {
      in.choice = in.sequence->sampler->choose(s.results + (size_t)in.first_row * vocab, vocab, kernels_, largest);
    } catch (const std::bad_alloc&) {  // may not leave a thread of the pool
      s.out_of_memory = true;
    }
  }
}
}  // namespace kq