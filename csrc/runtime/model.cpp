#include "runtime/model.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>

namespace kq {
namespace {
constexpr int kClaimsPerLayer = 12;
constexpr int kHeadClaims = 8;
constexpr size_t kClaimBytes = 32 << 10;  // weights worth the cost of a claim
constexpr int kMaxShare = 256;            // query heads that may share a key/value head
constexpr int kAttentionRows = 12;        // query rows that share one pass over keys and values
}  // namespace

PagePool::PagePool(const DecoderSpec& spec, int num_pages, Number number) : num_pages_(num_pages), number_(number) {
  key_bytes_ = (size_t)kPageTokens * spec.head_dim * size_of(number);
  value_bytes_ = (size_t)kPageTokens * spec.padded_head_dim() * size_of(number);
  page_bytes_ = (key_bytes_ + value_bytes_) * spec.num_kv_heads * spec.num_layers;
  page_bytes_ = (page_bytes_ + 63) / 64 * 64;
  size_ = page_bytes_ * (size_t)num_pages + 4096;
  // Pages become resident when first written; zeroed memory keeps unseen values finite (their weight is 0).
  void* base = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<uint8_t*>(base);
}

PagePool::~PagePool() { munmap(base_, size_); }

KvHead PagePool::head(const DecoderSpec& spec, int layer, int kv_head, const int32_t* pages) const {
  const size_t at = ((size_t)layer * spec.num_kv_heads + kv_head) * (key_bytes_ + value_bytes_);
  return {base_, page_bytes_, pages, at, at + key_bytes_, spec.head_dim, spec.padded_head_dim(), number_};
}

// What all threads of one step share.
struct Model::StepState {
  PagePool& pages;
  std::vector<StepInput>& inputs;
  bool int8;
  float* logits;
  int columns = 0;       // tokens of the step
  bool decode = true;    // every input has one token
  std::vector<Token> tokens{};
  std::vector<int> first_column{};  // per input
  std::vector<Task> tasks{};
  std::vector<int> head_columns{};  // columns whose logits are wanted
  float *x = nullptr, *qkv = nullptr, *attended = nullptr, *hidden = nullptr;
};

Model::Model(DecoderSpec spec, int threads, const Kernels& kernels)
    : spec_(std::move(spec)), kernels_(kernels), pool_(threads), layers_(spec_.num_layers) {
  for (int i = 0; i < pool_.size(); i++) thread_states_.push_back(std::make_unique<ThreadState>());
  num_claims_ = spec_.num_layers * kClaimsPerLayer + kHeadClaims;
  claims_ = std::make_unique<Claims[]>(num_claims_);
}

std::vector<float>& Model::vector_role(const std::string& role, int layer) {
  if (role == "final_norm") return final_norm_;
  Layer& l = layers_.at(layer);
  if (role == "attn_norm") return l.attn_norm;
  if (role == "mlp_norm") return l.mlp_norm;
  if (role == "q_norm") return l.q_norm;
  if (role == "k_norm") return l.k_norm;
  if (role == "qkv_bias") return l.qkv.bias;
  if (role == "o_bias") return l.o.bias;
  if (role == "gate_up_bias") return l.gate_up.bias;
  if (role == "down_bias") return l.down.bias;
  throw std::invalid_argument("unknown vector role " + role);
}

Linear& Model::linear_role(const std::string& role, int layer) {
  if (role == "head") return head_;
  Layer& l = layers_.at(layer);
  if (role == "qkv") return l.qkv;
  if (role == "o") return l.o;
  if (role == "gate_up") return l.gate_up;
  if (role == "down") return l.down;
  throw std::invalid_argument("unknown matrix role " + role);
}

void Model::set_rope(std::vector<float> inverse_frequencies, float factor) {
  if ((int)inverse_frequencies.size() != spec_.rope_dim / 2) throw std::invalid_argument("rope frequencies of the wrong length");
  frequencies_ = std::move(inverse_frequencies);
  rope_factor_ = factor;
  rope_positions_ = 0;
}

bool Model::has_quantized_layers() const {
  bool any = head_.panels.quantized;
  for (const Layer& l : layers_)
    any = any || l.qkv.panels.quantized || l.o.panels.quantized || l.gate_up.panels.quantized || l.down.panels.quantized;
  return any;
}

size_t Model::panel_bytes() const {
  auto bytes = [](const Linear& l) { return l.panels.panel_bytes * l.panels.num_panels; };
  size_t sum = bytes(head_);
  for (const Layer& l : layers_) sum += bytes(l.qkv) + bytes(l.o) + bytes(l.gate_up) + bytes(l.down);
  return sum;
}

void Model::check() {
  const DecoderSpec& s = spec_;
  auto vector = [](const std::vector<float>& v, int n, const std::string& what, bool optional = false) {
    if (optional && v.empty()) return;
    if ((int)v.size() != n)
      throw std::invalid_argument(what + " has " + std::to_string(v.size()) + " values, expected " + std::to_string(n));
  };
  auto matrix = [&](const Linear& l, int rows, int inputs, const std::string& what) {
    if (!l.present()) throw std::invalid_argument(what + " is missing");
    if (l.panels.rows != rows || l.panels.inputs != inputs)
      throw std::invalid_argument(what + " is (" + std::to_string(l.panels.rows) + ", " + std::to_string(l.panels.inputs) +
                                  "), expected (" + std::to_string(rows) + ", " + std::to_string(inputs) + ")");
    vector(l.bias, rows, what + " bias", true);
  };
  if (s.num_heads % s.num_kv_heads || s.num_heads / s.num_kv_heads > kMaxShare)
    throw std::invalid_argument("heads do not share key/value heads evenly, or more than 256 share one");
  for (int i = 0; i < s.num_layers; i++) {
    const Layer& l = layers_[i];
    const std::string at = "layer " + std::to_string(i) + " ";
    vector(l.attn_norm, s.hidden_size, at + "attn_norm");
    vector(l.mlp_norm, s.hidden_size, at + "mlp_norm");
    if (s.qk_norm) {
      vector(l.q_norm, s.head_dim, at + "q_norm");
      vector(l.k_norm, s.head_dim, at + "k_norm");
    }
    matrix(l.qkv, s.q_size() + 2 * s.kv_size(), s.hidden_size, at + "qkv");
    matrix(l.o, s.hidden_size, s.q_size(), at + "o");
    matrix(l.gate_up, 2 * s.intermediate_size, s.hidden_size, at + "gate_up");
    matrix(l.down, s.hidden_size, s.intermediate_size, at + "down");
  }
  vector(final_norm_, s.hidden_size, "final_norm");
  matrix(head_, s.vocab_size, s.hidden_size, "head");
  if (embedding_.source == Embedding::Source::none) throw std::invalid_argument("embedding is missing");
  if (frequencies_.empty()) throw std::invalid_argument("rope frequencies are missing");
}

int Model::logits_rows(std::vector<StepInput>& inputs) {
  int rows = 0;
  for (StepInput& in : inputs) {
    in.first_row = rows;
    in.num_rows = in.output == StepOutput::none ? 0 : in.output == StepOutput::all ? in.count : 1;
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
  const int half = spec_.rope_dim / 2;
  int needed = 0, own = 0;
  for (const Token& t : s.tokens) {
    if (s.inputs[t.input].sequence->inverse_frequencies.empty())
      needed = std::max(needed, t.position + 1);
    else
      own++;
  }
  if (needed > rope_positions_) {
    needed = std::max(needed, std::max(256, rope_positions_ * 2));
    rope_table_.resize((size_t)needed * 2 * half);
    for (int p = rope_positions_; p < needed; p++)
      fill_rope(frequencies_.data(), half, p, rope_factor_, &rope_table_[(size_t)p * 2 * half]);
    rope_positions_ = needed;
  }
  float* rows = own ? rope_rows_.get<float>((size_t)own * 2 * half) : nullptr;
  for (Token& t : s.tokens) {
    const Sequence& q = *s.inputs[t.input].sequence;
    if (q.inverse_frequencies.empty()) {
      t.cos = &rope_table_[(size_t)t.position * 2 * half];
    } else {
      fill_rope(q.inverse_frequencies.data(), half, t.position, q.rope_factor, rows);
      t.cos = rows;
      rows += 2 * half;
    }
    t.sin = t.cos + half;
  }
}

Model::Activations Model::shape(const Linear& linear, int columns, bool int8, Scratch& codes, Scratch& scales, Scratch& init,
                                Scratch& floats) {
  Activations a;
  const size_t groups = linear.panels.groups, inputs = groups * kGroup;
  a.int8 = int8 && linear.panels.quantized;
  if (a.int8)
    a.ints = {codes.get<int8_t>(inputs * columns), scales.get<float>(groups * columns), init.get<int32_t>(groups * columns), columns,
              (int)groups};
  else
    a.floats = {floats.get<float>(inputs * columns), columns, (int)inputs};
  return a;
}

void Model::fill(const Activations& a, const Linear& linear, const float* x, int column) {
  if (a.int8)
    kernels_.quantize_column(x, linear.panels.inputs, 7, a.ints, column);
  else
    kernels_.pack_column(x, linear.panels.inputs, a.floats, column);
}

void Model::multiply(int thread, const Linear& linear, const Activations& a, const Output& out, Claims& claims) {
  const Panels& p = linear.panels;
  int chunk = std::max<int>((p.num_panels + pool_.size() * 8 - 1) / (pool_.size() * 8), (int)(kClaimBytes / p.panel_bytes) + 1);
  if (pool_.size() == 1) chunk = p.num_panels;
  chunk = (chunk + 1) / 2 * 2;  // gated panels come in pairs
  int begin, end;
  while (claims.take(p.num_panels, chunk, &begin, &end)) {
    if (a.int8)
      kernels_.matmul_int(p, begin, end, a.ints, out,
                          thread_states_[thread]->unpacked.get<uint8_t>((size_t)2 * kPanelRows * p.groups * kGroup));
    else
      kernels_.matmul_float(p, begin, end, a.floats, out);
  }
}

void Model::product(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride, const float* norm,
                    const Output& out, Claims* claims) {
  ThreadState& t = *thread_states_[thread];
  const int inputs = linear.panels.inputs;
  float* normed = t.norm.get<float>(inputs);
  auto column = [&](const Activations& a, int c) {
    const float* in = x + c * stride;
    if (norm) {
      kernels_.rms_norm(in, norm, normed, inputs, spec_.norm_eps);
      in = normed;
    }
    fill(a, linear, in, c);
  };
  if (columns == 1) {
    // Each thread prepares the one column for itself: cheaper than a barrier.
    Activations a = shape(linear, 1, int8, t.codes, t.scales, t.init, t.floats);
    column(a, 0);
    multiply(thread, linear, a, out, claims[1]);
  } else {
    Activations a = shape(linear, columns, int8, codes_, scales_, init_, floats_);  // grown in step(): only reads the pointers
    int begin, end;
    while (claims[0].take(columns, columns >= 96 ? 12 : 1, &begin, &end))
      for (int c = begin; c < end; c++) column(a, c);
    pool_.barrier();
    multiply(thread, linear, a, out, claims[1]);
  }
  pool_.barrier();
}

// Norms and rotates one kv head's key (and its query heads) of a token in place, and writes key and value to the pages.
void Model::rotate_and_store(StepState& s, int layer, int token, int kv_head, bool queries) {
  const Layer& l = layers_[layer];
  const Token& t = s.tokens[token];
  const int dim = spec_.head_dim, half = spec_.rope_dim / 2, share = spec_.num_heads / spec_.num_kv_heads;
  float* row = s.qkv + (size_t)token * (spec_.q_size() + 2 * spec_.kv_size());
  if (queries)
    for (int g = 0; g < share; g++) {
      float* q = row + (size_t)(kv_head * share + g) * dim;
      if (spec_.qk_norm) kernels_.rms_norm(q, l.q_norm.data(), q, dim, spec_.norm_eps);
      kernels_.rope(q, half, t.cos, t.sin);
    }
  float* k = row + spec_.q_size() + (size_t)kv_head * dim;
  if (spec_.qk_norm) kernels_.rms_norm(k, l.k_norm.data(), k, dim, spec_.norm_eps);
  kernels_.rope(k, half, t.cos, t.sin);
  KvHead kv = s.pages.head(spec_, layer, kv_head, s.inputs[t.input].sequence->pages.data());
  kernels_.write_kv(kv, t.position, k, k + spec_.kv_size());
}

void Model::attend(int thread, StepState& s, int layer, const Task& task, bool rotate) {
  ThreadState& state = *thread_states_[thread];
  const int dim = spec_.head_dim, share = spec_.num_heads / spec_.num_kv_heads, rows = task.count * share;
  const size_t row_size = spec_.q_size() + 2 * spec_.kv_size();
  float* q = state.queries.get<float>((size_t)rows * dim + 16);
  float* scratch = state.attention.get<float>(attention_scratch(rows, spec_.padded_head_dim()));
  int first[kMaxShare], last[kMaxShare];
  size_t offsets[kMaxShare];
  const int window = spec_.sliding_window[layer];
  const int base = s.first_column[task.input] + task.first;
  for (int i = 0; i < task.count; i++) {
    const int column = base + i, position = s.tokens[column].position;
    if (rotate) rotate_and_store(s, layer, column, task.kv_head, true);
    for (int g = 0; g < share; g++) {
      const int r = i * share + g, head = task.kv_head * share + g;
      const float* source = s.qkv + column * row_size + (size_t)head * dim;
      for (int d = 0; d < dim; d++) q[(size_t)r * dim + d] = source[d] * spec_.attention_scale;
      first[r] = window > 0 ? std::max(0, position - window + 1) : 0;
      last[r] = position;
      offsets[r] = (size_t)column * spec_.q_size() + (size_t)head * dim;
    }
  }
  KvHead kv = s.pages.head(spec_, layer, task.kv_head, s.inputs[task.input].sequence->pages.data());
  kernels_.attend(kv, q, dim, first, last, rows, s.attended, offsets, scratch);
}

void Model::attention(int thread, StepState& s, int layer, Claims* claims) {
  int begin, end;
  if (!s.decode) {  // keys of a token may be read by another thread's queries, so all are written first
    while (claims[0].take(s.columns, 4, &begin, &end))
      for (int c = begin; c < end; c++)
        for (int h = 0; h < spec_.num_kv_heads; h++) rotate_and_store(s, layer, c, h, true);
    pool_.barrier();
  }
  while (claims[1].take((int)s.tasks.size(), 1, &begin, &end)) attend(thread, s, layer, s.tasks[begin], s.decode);
  pool_.barrier();
}

void Model::run_layers(int thread, StepState& s) {
  const size_t hidden = spec_.hidden_size, qkv_size = spec_.q_size() + 2 * spec_.kv_size(), inner = spec_.intermediate_size;
  Claims* claims = claims_.get();
  int begin, end;
  while (claims[0].take(s.columns, 4, &begin, &end))
    for (int c = begin; c < end; c++) {
      const StepInput& in = s.inputs[s.tokens[c].input];
      const int token = in.tokens[c - s.first_column[s.tokens[c].input]];
      float* x = s.x + c * hidden;
      switch (embedding_.source) {
        case Embedding::Source::panels: read_row(*embedding_.panels, token, x); break;
        case Embedding::Source::quantized: read_row(embedding_.quantized, token, x); break;
        case Embedding::Source::plain: read_row(embedding_.plain, token, x); break;
        case Embedding::Source::none: break;
      }
    }
  pool_.barrier();
  claims += kHeadClaims;
  for (int i = 0; i < spec_.num_layers; i++, claims += kClaimsPerLayer) {
    const Layer& l = layers_[i];
    auto bias = [](const Linear& linear) { return linear.bias.empty() ? nullptr : linear.bias.data(); };
    product(thread, l.qkv, s.columns, s.int8, s.x, hidden, l.attn_norm.data(), {s.qkv, qkv_size, (int)qkv_size, bias(l.qkv), Epilogue::store}, claims);
    attention(thread, s, i, claims + 2);
    product(thread, l.o, s.columns, s.int8, s.attended, spec_.q_size(), nullptr, {s.x, hidden, (int)hidden, bias(l.o), Epilogue::add}, claims + 4);
    product(thread, l.gate_up, s.columns, s.int8, s.x, hidden, l.mlp_norm.data(), {s.hidden, inner, (int)inner, bias(l.gate_up), Epilogue::gated},
            claims + 6);
    product(thread, l.down, s.columns, s.int8, s.hidden, inner, nullptr, {s.x, hidden, (int)hidden, bias(l.down), Epilogue::add}, claims + 8);
  }
}

void Model::step(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* logits) {
  StepState s{pages, inputs, int8, logits};
  for (size_t i = 0; i < inputs.size(); i++) {
    const StepInput& in = inputs[i];
    const int from = in.sequence->length;
    if (in.count < 1) throw std::invalid_argument("a step needs at least one token of each sequence");
    if ((size_t)(from + in.count) > in.sequence->pages.size() * kPageTokens) throw std::length_error("a sequence lacks pages");
    s.first_column.push_back((int)s.tokens.size());
    s.decode = s.decode && in.count == 1;
    for (int j = 0; j < in.count; j++) {
      if (in.tokens[j] < 0 || in.tokens[j] >= spec_.vocab_size)
        throw std::out_of_range("token id " + std::to_string(in.tokens[j]) + " is outside the vocabulary of " +
                                std::to_string(spec_.vocab_size));
      if (in.output == StepOutput::all || (in.output != StepOutput::none && j == in.count - 1))
        s.head_columns.push_back((int)s.tokens.size());
      s.tokens.push_back({(int)i, from + j, nullptr, nullptr});
    }
  }
  s.columns = (int)s.tokens.size();
  if (s.columns == 0) return;
  prepare_rope(s);

  const int share = spec_.num_heads / spec_.num_kv_heads, tile = std::max(1, kAttentionRows / share);
  for (int i = (int)inputs.size() - 1; i >= 0; i--)
    for (int first = (inputs[i].count - 1) / tile * tile; first >= 0; first -= tile)  // the longest contexts first
      for (int h = 0; h < spec_.num_kv_heads; h++) s.tasks.push_back({i, first, std::min(tile, inputs[i].count - first), h});

  const size_t columns = s.columns;
  s.x = x_.get<float>(columns * spec_.hidden_size);
  s.qkv = qkv_.get<float>(columns * (spec_.q_size() + 2 * spec_.kv_size()));
  s.attended = attended_.get<float>(columns * spec_.q_size());
  s.hidden = hidden_.get<float>(columns * spec_.intermediate_size);
  for (int i = 0; i < num_claims_; i++) claims_[i].reset();
  // Shared buffers grow here, before the threads start.
  for (const Layer& l : layers_)
    for (const Linear* linear : {&l.qkv, &l.o, &l.gate_up, &l.down}) shape(*linear, s.columns, int8, codes_, scales_, init_, floats_);

  const int rows = (int)s.head_columns.size();
  if (rows) shape(head_, rows, int8, codes_, scales_, init_, floats_);
  float* head_in = rows ? head_in_.get<float>((size_t)rows * spec_.hidden_size) : nullptr;
  pool_.run([&](int thread) {
    run_layers(thread, s);
    if (!rows) return;
    Claims* claims = claims_.get() + 1;
    int begin, end;
    while (claims[0].take(rows, 4, &begin, &end))
      for (int r = begin; r < end; r++)
        kernels_.rms_norm(s.x + (size_t)s.head_columns[r] * spec_.hidden_size, final_norm_.data(),
                          head_in + (size_t)r * spec_.hidden_size, spec_.hidden_size, spec_.norm_eps);
    pool_.barrier();
    product(thread, head_, rows, s.int8, head_in, spec_.hidden_size, nullptr,
            {logits, (size_t)spec_.vocab_size, spec_.vocab_size, nullptr, Epilogue::store}, claims + 1);
    while (claims[3].take((int)inputs.size(), 1, &begin, &end)) {
      StepInput& in = inputs[begin];
      if (in.output == StepOutput::sample && in.sequence->sampler)
        in.choice = in.sequence->sampler->choose(logits + (size_t)in.first_row * spec_.vocab_size, spec_.vocab_size, kernels_);
    }
  });
  for (StepInput& in : inputs) in.sequence->length += in.count;
}
}  // namespace kq
