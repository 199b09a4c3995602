// A decoder as data and weights, and one call that runs a step: token ids in, logits or chosen tokens out.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "runtime/arena.h"
#include "runtime/pack.h"
#include "runtime/sampler.h"

namespace kq {

// The native side of models/spec.py. Everything a family may differ in is a field; no family has a name here.
struct DecoderSpec {
  int vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_layers = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0, rope_dim = 0;
  float norm_eps = 0.0f, attention_scale = 0.0f;
  std::vector<int> sliding_window;  // per layer, 0: everything
  bool qk_norm = false;

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
  int padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
};

struct Linear {
  Panels panels;
  std::vector<float> bias;
  bool present() const { return panels.data != nullptr; }
};

struct Layer {
  std::vector<float> attn_norm, mlp_norm, q_norm, k_norm;
  Linear qkv, o, gate_up, down;
};

// Token embeddings: rows of a mapped record, or the head's own panels when they are tied.
struct Embedding {
  enum class Source { none, panels, quantized, plain } source = Source::none;
  const Panels* panels = nullptr;
  QuantizedRows quantized{};
  PlainRows plain{};
};

// Pages of keys and values for all layers. A page holds kPageTokens tokens.
class PagePool {
 public:
  PagePool(const DecoderSpec& spec, int num_pages, Number number);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int num_pages() const { return num_pages_; }
  size_t page_bytes() const { return page_bytes_; }
  Number number() const { return number_; }
  KvHead head(const DecoderSpec& spec, int layer, int kv_head, const int32_t* pages) const;

 private:
  uint8_t* base_ = nullptr;
  size_t size_ = 0, page_bytes_ = 0, key_bytes_ = 0, value_bytes_ = 0;
  int num_pages_;
  Number number_;
};

struct Sequence {
  std::vector<int32_t> pages;
  int length = 0;  // tokens whose keys and values are in the pages
  std::unique_ptr<Sampler> sampler;
  // Frequencies for a rope that depends on the sequence's length; empty: the model's own.
  std::vector<float> inverse_frequencies;
  float rope_factor = 1.0f;
};

enum class StepOutput : int { none = 0, sample = 1, last = 2, all = 3 };

struct StepInput {
  Sequence* sequence;
  const int32_t* tokens;
  int count;
  StepOutput output;
  Choice choice;     // filled for `sample`
  int first_row = 0, num_rows = 0;  // rows of the logits that belong to this input
};

class Model {
 public:
  Model(DecoderSpec spec, int threads, const Kernels& kernels);

  const DecoderSpec& spec() const { return spec_; }
  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }
  Arena& arena() { return arena_; }
  size_t panel_bytes() const;
  bool has_quantized_layers() const;

  // Roles as in models/spec.py. Throws std::invalid_argument for an unknown role.
  std::vector<float>& vector_role(const std::string& role, int layer);
  Linear& linear_role(const std::string& role, int layer);
  Embedding& embedding() { return embedding_; }
  // Default rope: inverse frequencies (rope_dim / 2) and the factor on cosines and sines.
  void set_rope(std::vector<float> inverse_frequencies, float factor);
  // Throws std::invalid_argument that names the first missing or misshapen weight.
  void check();

  static int logits_rows(std::vector<StepInput>& inputs);
  // logits: (logits_rows, vocab_size), written for every input whose output is not `none`.
  void step(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* logits);

 private:
  struct Token {
    int input, position;
    const float *cos, *sin;
  };
  struct Task {  // query tokens [first, first + count) of one input against one kv head
    int input, first, count, kv_head;
  };
  struct Activations {  // one matrix of columns, quantized or not
    IntTiles ints{};
    FloatTiles floats{};
    bool int8 = false;
  };
  struct ThreadState {
    Scratch norm, codes, scales, init, floats, unpacked, attention, queries;
  };
  struct StepState;

  void run_layers(int thread, StepState& s);
  void attention(int thread, StepState& s, int layer, Claims* claims);
  void attend(int thread, StepState& s, int layer, const Task& task, bool rotate);
  void rotate_and_store(StepState& s, int layer, int token, int kv_head, bool queries);
  void prepare_rope(StepState& s);
  Activations shape(const Linear& linear, int columns, bool int8, Scratch& codes, Scratch& scales, Scratch& init, Scratch& floats);
  void fill(const Activations& a, const Linear& linear, const float* x, int column);
  void multiply(int thread, const Linear& linear, const Activations& a, const Output& out, Claims& claims);
  // x -> (norm ->) activations -> panels, one of the four products of a layer.
  void product(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride, const float* norm,
               const Output& out, Claims* claims);

  DecoderSpec spec_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Arena arena_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  Linear head_;
  Embedding embedding_;
  std::vector<float> frequencies_;
  float rope_factor_ = 1.0f;
  std::vector<float> rope_table_;  // [position][cos half, sin half]
  int rope_positions_ = 0;

  std::vector<std::unique_ptr<ThreadState>> thread_states_;
  Scratch x_, qkv_, attended_, hidden_, head_in_, rope_rows_, codes_, scales_, init_, floats_;
  std::unique_ptr<Claims[]> claims_;
  int num_claims_ = 0;
};
}  // namespace kq
