#include "runtime/model.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>

#include "cpu/isa.h"
#include "runtime/step_state.h"

namespace kq {
namespace {
constexpr int kBlockTokens = 96;  // tokens that go through the layers together: eight tiles of twelve columns
constexpr int kAttentionRows = 12;  // query rows that share one pass over keys and values
constexpr int kSharedContext = 768; // tokens of context worth sharing between threads
}  // namespace

Embedding::~Embedding() {
  if (file >= 0) close(file);
}

void Embedding::open_file(const std::string& path, int64_t codes, int64_t scales) {
  if (file >= 0) close(file);
  file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  codes_at = codes;
  scales_at = scales;
}

bool Embedding::read_from_file(int row, float* y, uint8_t* bytes) const {
  if (source == Source::plain) {
    const size_t size = row_bytes();
    if (pread(file, bytes, size, codes_at + (int64_t)(row * size)) != (ssize_t)size) return false;
    read_row(PlainRows{bytes, plain.number, 1, plain.inputs}, 0, y);
    return true;
  }
  QuantizedRows one = quantized;
  const size_t codes = (size_t)one.words() * 4, scales = (size_t)one.groups() * size_of(one.scale_number);
  if (pread(file, bytes, codes, codes_at + (int64_t)(row * codes)) != (ssize_t)codes ||
      pread(file, bytes + codes, scales, scales_at + (int64_t)(row * scales)) != (ssize_t)scales)
    return false;
  one.codes = bytes;
  one.scales = bytes + codes;
  one.rows = 1;
  read_row(one, 0, y);
  return true;
}

size_t Embedding::row_bytes() const {
  if (file < 0) return 0;
  return source == Source::plain ? (size_t)plain.inputs * size_of(plain.number)
                                 : (size_t)quantized.words() * 4 + (size_t)quantized.groups() * size_of(quantized.scale_number);
}

bool Embedding::read(int row, float* y, Scratch& bytes) const {
  if (file >= 0) {
    if (read_from_file(row, y, bytes.get<uint8_t>(row_bytes()))) return true;
    std::fill(y, y + (source == Source::plain ? plain.inputs : quantized.inputs), 0.0f);
    return false;
  }
  switch (source) {
    case Source::panels: read_row(*panels, row, y); break;
    case Source::quantized: read_row(quantized, row, y); break;
    case Source::plain: read_row(plain, row, y); break;
    case Source::none: break;
  }
  return true;
}

int Embedding::rows() const {
  return source == Source::panels ? panels->rows : source == Source::quantized ? quantized.rows : source == Source::plain ? plain.rows : 0;
}

int Embedding::inputs() const {
  return source == Source::panels      ? panels->inputs
         : source == Source::quantized ? quantized.inputs
         : source == Source::plain     ? plain.inputs
                                       : 0;
}

Model::Model(DecoderSpec spec, int threads, const Kernels& kernels)
    : spec_(std::move(spec)), kernels_(kernels), pool_(threads), layers_(spec_.num_layers) {
  for (int i = 0; i < pool_.size(); i++) thread_states_.push_back(std::make_unique<ThreadState>());
  const int num_claims = kStepClaims + spec_.num_layers * (kAttentionClaims + kMlpClaims) + kResultClaims;
  for (std::vector<Claims>& set : claims_) {
    set.reserve(num_claims);
    for (int i = 0; i < num_claims; i++) set.emplace_back(pool_.size());
  }
  for (Layer& l : layers_) {
    l.experts_gate_up.resize(spec_.experts.count);
    l.experts_down.resize(spec_.experts.count);
  }
  int ropes = 0;
  for (int rope : spec_.layer_rope) ropes = std::max(ropes, rope + 1);
  ropes_.resize(ropes);
}

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
  auto vector = [](const std::vector<float>& v, int n, const std::string& what) {
    if (!v.empty() && (int)v.size() != n)
      throw std::invalid_argument(what + " has " + std::to_string(v.size()) + " values, expected " + std::to_string(n));
  };
  auto norm = [&](const NormWeights& n, int size, const std::string& what) {
    vector(n.weight, size, what);
    vector(n.bias, size, what + " bias");
  };
  auto matrix = [&](const Linear& l, int rows, int inputs, const std::string& what) {
    if (!l.present()) throw std::invalid_argument(what + " is missing");
    if (l.panels.rows != rows || l.panels.inputs != inputs)
      throw std::invalid_argument(what + " is (" + std::to_string(l.panels.rows) + ", " + std::to_string(l.panels.inputs) +
                                  "), expected (" + std::to_string(rows) + ", " + std::to_string(inputs) + ")");
    vector(l.bias, rows, what + " bias");
  };
  if (s.num_heads % s.num_kv_heads || s.num_heads / s.num_kv_heads > kMaxShare)
    throw std::invalid_argument("heads do not share key/value heads evenly, or more than 256 share one");
  for (int i = 0; i < s.num_layers; i++) {
    const Layer& l = layers_[i];
    const std::string at = "layer " + std::to_string(i) + " ";
    norm(l.attn_norm, s.hidden_size, at + "attn_norm");
    norm(l.attn_post_norm, s.hidden_size, at + "attn_post_norm");
    norm(l.mlp_norm, s.hidden_size, at + "mlp_norm");
    norm(l.mlp_post_norm, s.hidden_size, at + "mlp_post_norm");
    // The attention's share of a parallel block waits where a post norm of the MLP would work.
    if (s.parallel_block && l.mlp_post_norm.present()) throw std::invalid_argument(at + "mlp_post_norm cannot be in a parallel block");
    // Elsewhere an absent norm means none.
    if (s.norm_after_residual && !l.attn_norm.present()) throw std::invalid_argument(at + "attn_norm is missing");
    if ((s.norm_after_residual || s.experts.count) && !l.mlp_norm.present()) throw std::invalid_argument(at + "mlp_norm is missing");
    if (s.qk_norm && (l.q_norm.empty() || l.k_norm.empty())) throw std::invalid_argument(at + "q_norm or k_norm is missing");
    vector(l.q_norm, s.qk_norm_over_all ? s.q_size() : s.head_dim, at + "q_norm");
    vector(l.k_norm, s.qk_norm_over_all ? s.kv_size() : s.head_dim, at + "k_norm");
    matrix(l.qkv, s.qkv_size(), s.hidden_size, at + "qkv");
    matrix(l.o, s.hidden_size, s.q_size(), at + "o");
    if (s.experts.count) {
      matrix(l.router, s.experts.count, s.hidden_size, at + "router");
      for (int e = 0; e < s.experts.count; e++) {
        const std::string expert = at + "expert " + std::to_string(e) + " ";
        matrix(l.experts_gate_up[e], 2 * s.experts.inner_size, s.hidden_size, expert + "gate_up");
        matrix(l.experts_down[e], s.hidden_size, s.experts.inner_size, expert + "down");
      }
      if (s.experts.shared_size) {
        matrix(l.shared_gate_up, 2 * s.experts.shared_size, s.hidden_size, at + "shared_gate_up");
        matrix(l.shared_down, s.hidden_size, s.experts.shared_size, at + "shared_down");
        if (l.shared_gate.present()) matrix(l.shared_gate, 1, s.hidden_size, at + "shared_gate");
      }
    } else {
      if (l.up.present())
        matrix(l.up, s.intermediate_size, s.hidden_size, at + "up");
      else
        matrix(l.gate_up, 2 * s.intermediate_size, s.hidden_size, at + "gate_up");
      matrix(l.down, s.hidden_size, s.intermediate_size, at + "down");
    }
  }
  norm(final_norm_, s.hidden_size, "final_norm");
  norm(embed_norm_, s.hidden_size, "embed_norm");
  if (head_.present()) matrix(head_, s.vocab_size, s.hidden_size, "head");
  if (embedding_.source == Embedding::Source::none) throw std::invalid_argument("embedding is missing");
  for (const Embedding* table : {&embedding_, &positions_, &token_types_})
    if (table->source != Embedding::Source::none && (table->inputs() != s.hidden_size || table->rows() < 1))
      throw std::invalid_argument("an embedding has " + std::to_string(table->rows()) + " rows of " + std::to_string(table->inputs()) +
                                  " values, expected rows of " + std::to_string(s.hidden_size));
  for (const Rope& rope : ropes_)
    if (rope.frequencies.empty()) throw std::invalid_argument("rope frequencies are missing");
}

int Model::result_rows(std::vector<StepInput>& inputs) {
  int rows = 0;
  for (StepInput& in : inputs) {
    const bool every = in.output == StepOutput::all || in.output == StepOutput::hidden;
    in.first_row = rows;
    in.num_rows = in.output == StepOutput::none ? 0 : every ? in.count : 1;
    rows += in.num_rows;
  }
  return rows;
}

// Angles as Transformers computes them: float32 frequency times position, rounded; cosine and sine of that.
static void fill_rope(const float* frequencies, int half, int position, float factor, float* row) {
  for (int i = 0; i < half; i++) {
    const double angle = (double)(frequencies[i] * (float)position);
    row[i] = (float)std::cos(angle) * factor;
    row[half + i] = (float)std::sin(angle) * factor;
  }
}

void Model::prepare_rope(StepState& s) {
  const size_t half = spec_.rope_dim / 2;
  int needed = 0, own = 0;
  for (const Token& t : s.tokens) {
    needed = std::max(needed, t.position + 1);
    own += !s.inputs[t.input].sequence->inverse_frequencies.empty();
  }
  for (Rope& rope : ropes_)
    if (needed > rope.positions) {
      const int positions = std::max(needed, std::max(256, rope.positions * 2));
      rope.table.resize((size_t)positions * 2 * half);
      for (int p = rope.positions; p < positions; p++)
        fill_rope(rope.frequencies.data(), (int)half, p, rope.factor, &rope.table[p * 2 * half]);
      rope.positions = positions;
    }
  if (!own) return;
  float* rows = rope_rows_.get<float>(own * 2 * half);
  for (Token& t : s.tokens) {
    const Sequence& q = *s.inputs[t.input].sequence;
    if (q.inverse_frequencies.empty()) continue;
    fill_rope(q.inverse_frequencies.data(), (int)half, t.position, q.rope_factor, rows);
    t.own_rope = rows;
    rows += 2 * half;
  }
}

// Throws before anything is changed.
void Model::check_inputs(const std::vector<StepInput>& inputs) const {
  bool hidden = false;
  for (const StepInput& in : inputs) hidden = hidden || in.output == StepOutput::hidden;
  for (const StepInput& in : inputs) {
    const int end = in.sequence->length + in.count;
    for (const StepInput* other = inputs.data(); other != &in; other++)
      if (other->sequence == in.sequence) throw std::invalid_argument("a sequence appears twice in a step");
    if (in.count < 1) throw std::invalid_argument("a step needs at least one token of each sequence");
    const size_t frequencies = in.sequence->inverse_frequencies.size();
    if (frequencies && frequencies != (size_t)spec_.rope_dim / 2)
      throw std::invalid_argument("a sequence has rope frequencies of the wrong length");
    if ((size_t)end > in.sequence->pages.size() * kPageTokens) throw std::length_error("a sequence lacks pages");
    if (positions_.source != Embedding::Source::none && end > positions_.rows())
      throw std::length_error("the model has position embeddings for " + std::to_string(positions_.rows()) + " tokens only");
    if (!spec_.causal && in.sequence->length > 0) throw std::invalid_argument("an encoder takes a sequence in one step");
    if (!head_.present() && in.output != StepOutput::hidden && in.output != StepOutput::none)
      throw std::invalid_argument("the model has no head, so it gives no logits");
    if (hidden && in.output != StepOutput::hidden && in.output != StepOutput::none)
      throw std::invalid_argument("a step gives hidden states or logits, not both");
    for (int j = 0; j < in.count; j++)
      if (in.tokens[j] < 0 || in.tokens[j] >= embedding_.rows())
        throw std::out_of_range("token id " + std::to_string(in.tokens[j]) + " is outside the vocabulary of " +
                                std::to_string(embedding_.rows()));
  }
}

// Lists the step's tokens and attention tasks.
void Model::plan_step(StepState& s) {
  for (size_t i = 0; i < s.inputs.size(); i++) {
    const StepInput& in = s.inputs[i];
    s.hidden = s.hidden || in.output == StepOutput::hidden;
    s.first_column.push_back((int)s.tokens.size());
    s.fused = s.fused && in.count == 1 && !spec_.qk_norm_over_all;
    for (int j = 0; j < in.count; j++) {
      if (j >= in.count - in.num_rows) s.result_columns.push_back((int)s.tokens.size());
      s.tokens.push_back({(int)i, in.sequence->length + j, nullptr});
    }
  }
  s.columns = (int)s.tokens.size();
  const int share = spec_.num_heads / spec_.num_kv_heads, tile = std::max(1, kAttentionRows / share);
  for (int i = (int)s.inputs.size() - 1; i >= 0; i--)
    for (int first = (s.inputs[i].count - 1) / tile * tile; first >= 0; first -= tile)  // the longest contexts first
      for (int h = 0; h < spec_.num_kv_heads; h++) s.tasks.push_back({i, first, std::min(tile, s.inputs[i].count - first), h});
}

// Where tasks are too few to keep every thread busy, several threads share a long context, chunk by chunk. That costs two
// more barriers a layer.
void Model::plan_parts(StepState& s) {
  const int threads = pool_.size(), tasks = (int)s.tasks.size(), rounds = (tasks + threads - 1) / threads;
  if (5 * tasks >= 4 * rounds * threads) return;
  int longest = 0, rows = 0;
  for (const Task& task : s.tasks) rows = std::max(rows, task.count * (spec_.num_heads / spec_.num_kv_heads));
  for (const StepInput& in : s.inputs) longest = std::max(longest, in.sequence->length + in.count);
  if (longest < kSharedContext) return;
  const int chunks = (longest + kChunkTokens - 1) / kChunkTokens;
  s.task_partials = chunks * attention_part(rows, spec_.padded_head_dim());
  s.partials = partials_.get<float>(s.tasks.size() * s.task_partials);
  s.task_parts = std::min(chunks, (4 * threads + tasks - 1) / tasks);
  s.fused = false;  // every part needs the rotated queries
}

// Everything that threads share grows here, before they start.
void Model::size_buffers(StepState& s) {
  const size_t columns = s.columns, rows = s.result_columns.size();
  const ExpertSpec& e = spec_.experts;
  s.x = x_.get<float>(columns * spec_.hidden_size);
  s.qkv = qkv_.get<float>(columns * spec_.qkv_size());
  s.attended = attended_.get<float>(columns * spec_.q_size());
  s.inner = hidden_.get<float>(columns * std::max(spec_.intermediate_size, e.shared_size));
  bool needs_sub = spec_.parallel_block;
  for (const Layer& l : layers_) needs_sub = needs_sub || l.attn_post_norm.present() || l.mlp_post_norm.present();
  if (needs_sub) s.sub = sub_.get<float>(columns * spec_.hidden_size);
  if (rows && !s.hidden) s.head_in = head_in_.get<float>(rows * spec_.hidden_size);
  auto grow = [&](const Linear& linear, int n, Buffers& buffers) {
    if (linear.present()) shape(linear, n, s.int8, buffers);
  };
  for (const Layer& l : layers_)
    for (const Linear* linear :
         {&l.qkv, &l.o, &l.gate_up, &l.up, &l.down, &l.router, &l.shared_gate_up, &l.shared_down, &l.shared_gate})
      grow(*linear, s.columns, columns_);
  if (rows && !s.hidden) grow(head_, (int)rows, columns_);
  if (e.count) {
    const size_t slots = columns * e.per_token;
    s.router = router_.get<float>(columns * e.count);
    s.expert_inner = expert_hidden_.get<float>(slots * e.inner_size);
    s.expert_out = expert_out_.get<float>(slots * spec_.hidden_size);
    s.shared_out = shared_out_.get<float>(columns * spec_.hidden_size);
    s.routing.chosen.resize(slots);
    s.routing.column_of.resize(slots);
    s.routing.expert_of.resize(slots);
    s.routing.first.reserve(e.count + 1);
    s.routing.next.reserve(e.count);
    auto most_work = [&](const std::vector<Linear>& linears) {
      const int chunk = panels_per_work(linears[0]);
      return (size_t)e.count * ((linears[0].panels.num_panels + chunk - 1) / chunk);
    };
    s.routing.gate_up.reserve(most_work(layers_[0].experts_gate_up));
    s.routing.down.reserve(most_work(layers_[0].experts_down));
    for (const Layer& l : layers_)
      for (int i = 0; i < e.count; i++) {
        grow(l.experts_gate_up[i], (int)slots, expert_columns_);
        grow(l.experts_down[i], (int)slots, expert_columns_);
      }
  }
}

// What each thread needs for itself.
void Model::size_thread_buffers(const StepState& s) {
  int widest = spec_.hidden_size, groups = 0, rows = 0;
  auto look = [&](const Linear& linear) {
    widest = std::max(widest, linear.panels.padded_inputs());
    groups = std::max(groups, linear.panels.groups);
  };
  look(head_);
  for (const Layer& l : layers_) {
    for (const Linear* linear :
         {&l.qkv, &l.o, &l.gate_up, &l.up, &l.down, &l.router, &l.shared_gate_up, &l.shared_down, &l.shared_gate})
      look(*linear);
    if (spec_.experts.count) look(l.experts_gate_up[0]), look(l.experts_down[0]);
  }
  for (const Task& task : s.tasks) rows = std::max(rows, task.count * (spec_.num_heads / spec_.num_kv_heads));
  for (const auto& t : thread_states_) {
    t->norm.get<float>(widest);
    t->column.codes.get<int8_t>(widest);
    t->column.scales.get<float>(groups);
    t->column.init.get<int32_t>(groups);
    t->column.floats.get<float>(widest);
    t->unpacked.get<uint8_t>((size_t)2 * kPanelRows * widest);
    t->queries.get<float>((size_t)rows * spec_.head_dim + 16);
    t->attention.get<float>(attention_scratch(rows, spec_.padded_head_dim()));
    t->row_bytes.get<uint8_t>(std::max({embedding_.row_bytes(), positions_.row_bytes(), token_types_.row_bytes()}));
    t->expert_chances.get<float>(spec_.experts.count);
    t->expert_order.get<int>(spec_.experts.count);
  }
}

void Model::run_block(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results) {
  StepState s{pages, inputs, int8, results};
  plan_step(s);
  plan_parts(s);
  prepare_rope(s);
  size_buffers(s);
  size_thread_buffers(s);
  std::vector<Claims>&claims = claims_[claims_set_], &next = claims_[1 - claims_set_];
  Scratch::NoGrowth guard;
  pool_.run([&](int thread) {
    for (Claims& c : next) c.reset(thread);
    run_layers(thread, s, claims.data());
    finish_results(thread, s, claims.data() + claims.size() - kResultClaims);
  });
  claims_set_ = 1 - claims_set_;
  if (s.out_of_memory) throw std::bad_alloc();
  if (arena_.lost()) throw std::runtime_error("the panels file can no longer be read");
  if (s.rows_lost) throw std::runtime_error("the embedding's rows can no longer be read from the cache's files");
  for (StepInput& in : inputs) in.sequence->length += in.count;
}

// Long steps run in blocks of tokens, so that buffers stay small and in the cache. Results do not depend on the cut.
void Model::step(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results) {
  check_inputs(inputs);
  const size_t width = head_.present() ? spec_.vocab_size : spec_.hidden_size;
  std::vector<StepInput> block;
  std::vector<size_t> owners;
  int columns = 0, rows_before = 0;
  auto run = [&] {
    if (block.empty()) return;
    bool hidden = false;
    for (const StepInput& in : block) hidden = hidden || in.output == StepOutput::hidden;
    const int rows = result_rows(block);
    run_block(pages, block, int8, results + (size_t)rows_before * (hidden ? spec_.hidden_size : width));
    for (size_t i = 0; i < block.size(); i++)
      if (block[i].output == StepOutput::sample) inputs[owners[i]].choice = std::move(block[i].choice);
    rows_before += rows;
    columns = 0;
    block.clear();
    owners.clear();
  };
  for (size_t i = 0; i < inputs.size(); i++) {
    const StepInput& in = inputs[i];
    for (int done = 0; done < in.count;) {
      // An encoder's sequence cannot be cut.
      const int room = kBlockTokens - columns, left = in.count - done, count = spec_.causal ? std::min(room, left) : left;
      if (count > room && columns > 0) {
        run();
        continue;
      }
      StepInput part = in;
      part.tokens = in.tokens + done;
      part.count = count;
      const bool every = in.output == StepOutput::all || in.output == StepOutput::hidden;
      if (!every && done + count < in.count) part.output = StepOutput::none;
      block.push_back(part);
      owners.push_back(i);
      columns += count;
      done += count;
      if (columns >= kBlockTokens) run();
    }
  }
  run();
}
}  // namespace kq
