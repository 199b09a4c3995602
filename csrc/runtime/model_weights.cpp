// Which weights a model has, by role, and whether they fit its description.
#include <stdexcept>

#include "cpu/isa.h"
#include "runtime/step_state.h"

namespace kq {
namespace {
void check_vector(const std::vector<float>& v, int n, const std::string& what) {
  if (!v.empty() && (int)v.size() != n)
    throw std::invalid_argument(what + " has " + std::to_string(v.size()) + " values, expected " + std::to_string(n));
}

void check_norm(const NormWeights& n, int size, const std::string& what) {
  check_vector(n.weight, size, what);
  check_vector(n.bias, size, what + " bias");
}

void check_matrix(const Linear& l, int rows, int inputs, const std::string& what) {
  if (!l.present()) throw std::invalid_argument(what + " is missing");
  if (l.panels.rows != rows || l.panels.inputs != inputs)
    throw std::invalid_argument(what + " is (" + std::to_string(l.panels.rows) + ", " + std::to_string(l.panels.inputs) + "), expected (" +
                                std::to_string(rows) + ", " + std::to_string(inputs) + ")");
  check_vector(l.bias, rows, what + " bias");
}
}  // namespace

std::vector<float>& Model::vector_role(const std::string& role, int layer) {
  if (role == "final_norm") return final_norm_.weight;
  if (role == "final_norm_bias") return final_norm_.bias;
  if (role == "embed_norm") return embed_norm_.weight;
  if (role == "embed_norm_bias") return embed_norm_.bias;
  if (role == "head_bias") return head_.bias;
  Layer& l = layers_.at(layer);
  const std::map<std::string, std::vector<float>*> roles = {
      {"attn_norm", &l.attn_norm.weight},           {"attn_norm_bias", &l.attn_norm.bias},
      {"attn_post_norm", &l.attn_post_norm.weight}, {"attn_post_norm_bias", &l.attn_post_norm.bias},
      {"mlp_norm", &l.mlp_norm.weight},             {"mlp_norm_bias", &l.mlp_norm.bias},
      {"mlp_post_norm", &l.mlp_post_norm.weight},   {"mlp_post_norm_bias", &l.mlp_post_norm.bias},
      {"q_norm", &l.q_norm},                        {"k_norm", &l.k_norm},
      {"qkv_bias", &l.qkv.bias},                    {"o_bias", &l.o.bias},
      {"gate_up_bias", &l.gate_up.bias},            {"up_bias", &l.up.bias},
      {"down_bias", &l.down.bias}};
  auto found = roles.find(role);
  if (found == roles.end()) throw std::invalid_argument("unknown vector role " + role);
  return *found->second;
}

Linear& Model::linear_role(const std::string& role, int layer, int expert) {
  if (role == "head") return head_;
  Layer& l = layers_.at(layer);
  if (role == "experts_gate_up") return l.experts_gate_up.at(expert);
  if (role == "experts_down") return l.experts_down.at(expert);
  const std::map<std::string, Linear*> roles = {
      {"qkv", &l.qkv},       {"o", &l.o},           {"gate_up", &l.gate_up},
      {"up", &l.up},         {"down", &l.down},     {"router", &l.router},
      {"shared_gate_up", &l.shared_gate_up},        {"shared_down", &l.shared_down},
      {"shared_gate", &l.shared_gate}};
  auto found = roles.find(role);
  if (found == roles.end()) throw std::invalid_argument("unknown matrix role " + role);
  return *found->second;
}

Embedding& Model::embedding_role(const std::string& role) {
  if (role == "embed") return embedding_;
  if (role == "positions") return positions_;
  if (role == "token_types") return token_types_;
  throw std::invalid_argument("unknown embedding role " + role);
}

void Model::set_rope(int index, std::vector<float> inverse_frequencies, float factor) {
  if ((int)inverse_frequencies.size() != spec_.rope_dim / 2) throw std::invalid_argument("rope frequencies of the wrong length");
  Rope& rope = ropes_.at(index);
  rope = {std::move(inverse_frequencies), {}, factor, 0};
}

bool Model::has_quantized_layers() const {
  bool any = head_.panels.quantized;
  for (const Layer& l : layers_) {
    for (const Linear* linear : {&l.qkv, &l.o, &l.gate_up, &l.up, &l.down}) any = any || linear->panels.quantized;
    for (const Linear& expert : l.experts_gate_up) any = any || expert.panels.quantized;
  }
  return any;
}

std::vector<Linear*> Model::linears() {
  std::vector<Linear*> all{&head_};
  for (Layer& l : layers_) {
    for (Linear* linear :
         {&l.qkv, &l.o, &l.gate_up, &l.up, &l.down, &l.router, &l.shared_gate_up, &l.shared_down, &l.shared_gate})
      all.push_back(linear);
    for (auto* experts : {&l.experts_gate_up, &l.experts_down})
      for (Linear& expert : *experts) all.push_back(&expert);
  }
  return all;
}

size_t Model::panel_bytes() {
  size_t sum = 0;
  for (Linear* l : linears()) sum += l->panels.panel_bytes * l->panels.num_panels;
  return sum;
}

void Model::finish_loading() {
  check();
  // A step reads every weight once, so about cache size / weights of them are still there from the step before.
  const bool cached = panel_bytes() <= 2 * last_cache_bytes();
  for (Linear* l : linears()) l->panels.cached = cached;
}

void Model::check() const {
  const DecoderSpec& s = spec_;
  if (s.num_heads % s.num_kv_heads || s.num_heads / s.num_kv_heads > kMaxShare)
    throw std::invalid_argument("heads do not share key/value heads evenly, or more than 256 share one");
  for (int i = 0; i < s.num_layers; i++) {
    const std::string at = "layer " + std::to_string(i) + " ";
    check_attention(layers_[i], at);
    check_mlp(layers_[i], at);
  }
  check_norm(final_norm_, s.hidden_size, "final_norm");
  check_norm(embed_norm_, s.hidden_size, "embed_norm");
  if (head_.present()) check_matrix(head_, s.vocab_size, s.hidden_size, "head");
  if (embedding_.source == Embedding::Source::none) throw std::invalid_argument("embedding is missing");
  for (const Embedding* table : {&embedding_, &positions_, &token_types_})
    if (table->source != Embedding::Source::none && (table->inputs() != s.hidden_size || table->rows() < 1))
      throw std::invalid_argument("an embedding has " + std::to_string(table->rows()) + " rows of " + std::to_string(table->inputs()) +
                                  " values, expected rows of " + std::to_string(s.hidden_size));
  for (const Rope& rope : ropes_)
    if (rope.frequencies.empty()) throw std::invalid_argument("rope frequencies are missing");
}

void Model::check_attention(const Layer& l, const std::string& at) const {
  const DecoderSpec& s = spec_;
  check_norm(l.attn_norm, s.hidden_size, at + "attn_norm");
  check_norm(l.attn_post_norm, s.hidden_size, at + "attn_post_norm");
  // Where norms come before their block an absent one means none.
  if (s.norm_after_residual && !l.attn_norm.present()) throw std::invalid_argument(at + "attn_norm is missing");
  if (s.qk_norm && (l.q_norm.empty() || l.k_norm.empty())) throw std::invalid_argument(at + "q_norm or k_norm is missing");
  check_vector(l.q_norm, s.qk_norm_over_all ? s.q_size() : s.head_dim, at + "q_norm");
  check_vector(l.k_norm, s.qk_norm_over_all ? s.kv_size() : s.head_dim, at + "k_norm");
  check_matrix(l.qkv, s.qkv_size(), s.hidden_size, at + "qkv");
  check_matrix(l.o, s.hidden_size, s.q_size(), at + "o");
}

void Model::check_mlp(const Layer& l, const std::string& at) const {
  const DecoderSpec& s = spec_;
  check_norm(l.mlp_norm, s.hidden_size, at + "mlp_norm");
  check_norm(l.mlp_post_norm, s.hidden_size, at + "mlp_post_norm");
  // The attention's share of a parallel block waits where a post norm of the MLP would work.
  if (s.parallel_block && l.mlp_post_norm.present()) throw std::invalid_argument(at + "mlp_post_norm cannot be in a parallel block");
  if ((s.norm_after_residual || s.experts.count) && !l.mlp_norm.present()) throw std::invalid_argument(at + "mlp_norm is missing");
  if (!s.experts.count) {
    if (l.up.present())
      check_matrix(l.up, s.intermediate_size, s.hidden_size, at + "up");
    else
      check_matrix(l.gate_up, 2 * s.intermediate_size, s.hidden_size, at + "gate_up");
    check_matrix(l.down, s.hidden_size, s.intermediate_size, at + "down");
    return;
  }
  check_matrix(l.router, s.experts.count, s.hidden_size, at + "router");
  for (int e = 0; e < s.experts.count; e++) {
    const std::string expert = at + "expert " + std::to_string(e) + " ";
    check_matrix(l.experts_gate_up[e], 2 * s.experts.inner_size, s.hidden_size, expert + "gate_up");
    check_matrix(l.experts_down[e], s.hidden_size, s.experts.inner_size, expert + "down");
  }
  if (s.experts.shared_size) {
    check_matrix(l.shared_gate_up, 2 * s.experts.shared_size, s.hidden_size, at + "shared_gate_up");
    check_matrix(l.shared_down, s.hidden_size, s.experts.shared_size, at + "shared_down");
    if (l.shared_gate.present()) check_matrix(l.shared_gate, 1, s.hidden_size, at + "shared_gate");
  }
}
}  // namespace kq
