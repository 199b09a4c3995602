// The native side of models/spec.py. Everything a family may differ in is a field; no family has a name here.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/kernels.h"

namespace kq {

struct ExpertSpec {
  int count = 0;       // 0: no experts
  int per_token = 0;
  int inner_size = 0;
  int shared_size = 0;     // of the expert that every token visits, 0: none
  bool normalize = false;  // the chosen experts' probabilities are made to sum to 1
};

struct DecoderSpec {
  int vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_layers = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0, rope_dim = 0;
  float norm_eps = 0.0f, attention_scale = 0.0f;
  bool layer_norm = false;         // else RMS norm
  bool norm_after_residual = false;  // x = norm(x + f(x)) instead of x + f(norm(x))
  bool parallel_block = false;     // x + attention(norm(x)) + mlp(norm(x))
  bool qk_norm = false, qk_norm_over_all = false;  // over each head, or over all heads at once
  bool rope_interleaved = false;
  bool causal = true;
  Activation activation = Activation::silu;
  float embed_scale = 1.0f, residual_scale = 1.0f, logit_scale = 1.0f;
  float attention_cap = 0.0f, final_cap = 0.0f, clip_qkv = 0.0f;  // 0: none
  std::vector<int> sliding_window;  // per layer, 0: everything
  std::vector<int> layer_rope;      // per layer, which rope; -1: none
  ExpertSpec experts;

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
  int qkv_size() const { return q_size() + 2 * kv_size(); }
  int share() const { return num_heads / num_kv_heads; }  // query heads of a kv head
  // Whether the queries, key and value of a kv head stand together in a row of the fused product, so that one thread can
  // go on from its panels to its attention; else all queries, all keys, all values.
  bool heads_together() const {
    return num_kv_heads > 0 && num_heads % num_kv_heads == 0 && head_dim % kPanelRows == 0 && !qk_norm_over_all;
  }
  int head_rows() const { return (share() + 2) * head_dim; }
  size_t query_at(int head) const {
    return (size_t)head * head_dim + (heads_together() ? (size_t)head / share() * 2 * head_dim : 0);
  }
  size_t key_at(int kv_head) const {
    return heads_together() ? (size_t)kv_head * head_rows() + share() * head_dim : (size_t)q_size() + (size_t)kv_head * head_dim;
  }
  size_t value_at(int kv_head) const { return key_at(kv_head) + (heads_together() ? head_dim : kv_size()); }
  // A value for each of all queries, keys and values, in the order of the fused product; others are left as they are.
  std::vector<float> in_row_order(const std::vector<float>& values) const {
    if (!heads_together() || values.size() != (size_t)qkv_size()) return values;
    std::vector<float> ordered(values.size());
    auto copy = [&](int from, size_t to) { std::copy_n(values.begin() + from, head_dim, ordered.begin() + to); };
    for (int h = 0; h < num_heads; h++) copy(h * head_dim, query_at(h));
    for (int h = 0; h < num_kv_heads; h++) copy(q_size() + h * head_dim, key_at(h)), copy(q_size() + kv_size() + h * head_dim, value_at(h));
    return ordered;
  }
  int padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
};
}  // namespace kq
