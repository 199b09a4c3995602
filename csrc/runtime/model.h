// A decoder (or encoder) as data and weights, and one call that runs a step: token ids in, logits or chosen tokens out.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "runtime/arena.h"
#include "runtime/embedding.h"
#include "runtime/pack.h"
#include "runtime/pages.h"
#include "runtime/sampler.h"
#include "runtime/spec.h"

namespace kq {

struct Linear {
  Panels panels;
  std::vector<float> bias;
  bool present() const { return panels.data != nullptr; }
};

struct NormWeights {
  std::vector<float> weight, bias;
  bool present() const { return !weight.empty(); }
};

// Absent parts are empty. up: a plain MLP's first matrix; gate_up: a gated one's two.
struct Layer {
  NormWeights attn_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  std::vector<float> q_norm, k_norm;
  Linear qkv, o, gate_up, up, down;
  Linear router, shared_gate_up, shared_down, shared_gate;
  std::vector<Linear> experts_gate_up, experts_down;
};

enum class StepOutput : int { none = 0, sample = 1, last = 2, all = 3, hidden = 4 };

struct StepInput {
  Sequence* sequence;
  const int32_t* tokens;
  int count;
  StepOutput output;
  Choice choice{};                  // filled for `sample`
  int first_row = 0, num_rows = 0;  // rows of the results that belong to this input
};

class Model {
 public:
  Model(DecoderSpec spec, int threads, const Kernels& kernels);

  const DecoderSpec& spec() const { return spec_; }
  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }
  Arena& arena() { return arena_; }
  size_t panel_bytes();
  bool has_quantized_layers() const;

  // Roles as in models/spec.py; expert: -1, or which of a layer's experts. Throw std::invalid_argument for an unknown role.
  std::vector<float>& vector_role(const std::string& role, int layer);
  Linear& linear_role(const std::string& role, int layer, int expert);
  Embedding& embedding_role(const std::string& role);
  // Rope `index`: inverse frequencies (rope_dim / 2) and the factor on cosines and sines.
  void set_rope(int index, std::vector<float> inverse_frequencies, float factor);
  // Throws std::invalid_argument that names the first missing or misshapen weight.
  void check() const;
  // check(), and what can be decided only now that all weights are known.
  void finish_loading();

  // Numbers the result rows of the inputs and returns how many there are.
  static int result_rows(std::vector<StepInput>& inputs);
  // results: (result_rows, vocab_size) logits, or (result_rows, hidden_size) final hidden states when the inputs ask for
  // `hidden` (all of them or none).
  void step(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results);
  // `count` steps or fewer, each of which feeds what the one before chose; ends early where a sequence chose one of its end
  // ids. inputs: one token each, to `sample`. Returns each input's choices.
  std::vector<std::vector<Choice>> decode(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results, int count);

 private:
  struct Token {
    int input, position;
    const float* own_rope;  // this sequence's own cosines and sines, or null
  };
  struct Task {  // query tokens [first, first + count) of one input against one kv head
    int input, first, count, kv_head;
  };
  struct Rope {
    std::vector<float> frequencies, table;  // table: [position][cos half, sin half]
    float factor = 1.0f;
    int positions = 0;
  };
  struct Activations {  // a matrix of columns, quantized or not
    IntTiles ints{};
    FloatTiles floats{};
    bool int8 = false;
  };
  struct Buffers {  // memory of one Activations
    Scratch codes, scales, init, floats;
  };
  struct ThreadState {
    Buffers column;
    Scratch norm, unpacked, attention, queries, row_bytes, expert_chances, expert_order;
    int largest = -1;  // of the rows that this thread stored in a product that finds the largest; -1: it stored none
  };
  struct Follow;
  struct Routing;  // which columns go to which expert
  struct StepState;

  // product: x -> (norm ->) activations -> panels. Ends with a barrier. Takes two claims. fed: whatever made x has quantized it.
  void product(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride, const NormWeights* norm,
               const Output& out, Claims* claims, const Follow& follow, bool fed = false);
  Activations prepare(int thread, const Linear& linear, int columns, bool int8, const float* x, size_t stride, const NormWeights* norm,
                      Claims& claims);
  bool streams(const Panels& panels, const Activations& a) const;
  void fetch_ahead(int thread, const Panels& next, const Claims& claims) const;
  Panels followed(int thread, const Panels& panels, int chunk, const Linear* next, const Claims& claims) const;
  // Whether a product's outputs are quantized for the next one claim by claim, and attention's by kv heads.
  bool feeds(const Linear& from, const Linear& to, const StepState& s) const;
  bool attention_feeds(const Linear& o, const StepState& s) const;
  // Quantizes for `to` what panels [begin, end) of `from` stored.
  void feed(const Linear& from, const Linear& to, const Output& out, int begin, int end, int columns);
  bool splits_columns(int columns) const;  // each thread multiplies its own columns, not its own panels
  int claim(const Panels& panels) const;  // the fewest panels that a thread takes at a time
  void expect_stores(int thread, const Linear& linear, const Output& out, const Claims& claims, const Follow& follow);
  void multiply(int thread, const Linear& linear, const Activations& a, const Output& out, Claims& claims, const Follow& follow);
  void multiply_panels(int thread, const Panels& panels, int begin, int end, const Activations& a, const Output& out);
  std::vector<Linear*> linears();
  Activations shape(const Linear& linear, int columns, bool int8, Buffers& buffers) const;
  // Columns of a matrix that begin a tile.
  Activations part(const Activations& whole, int first, int count) const;
  void fill(const Activations& a, const Linear& linear, const float* x, int column) const;
  void normalize(const NormWeights& norm, const float* x, float* y, int n) const;
  Output output(const Linear& linear, float* y, size_t stride, int rows, Epilogue epilogue, float scale = 1.0f) const;
  template <class F>
  void each_column(int thread, StepState& s, Claims& claims, F f);  // f(column) on all threads; ends with a barrier

  void embed(int thread, StepState& s, int column);
  void run_layers(int thread, StepState& s, Claims* claims);
  void attention_block(int thread, StepState& s, int layer, Claims* claims);
  void mlp_block(int thread, StepState& s, int layer, Claims* claims);
  void experts(int thread, StepState& s, const Layer& layer, float* y, float scale, bool add, Claims* claims);
  void route(int thread, StepState& s, int column);
  void group_by_expert(StepState& s);
  int panels_per_work(const Linear& expert) const;
  void store_all(int thread, StepState& s, int layer, Claims& claims);
  void attend_all(int thread, StepState& s, int layer, Claims& claims);
  void attend_by_heads(int thread, StepState& s, int layer, const NormWeights* norm, const Output& out, Claims* claims);
  // Task `index`, or part `part` of it where tasks have parts; the last of them joins the others.
  void attend(int thread, StepState& s, int layer, int index, int part);
  void fetch_work(StepState& s, int layer, int work);
  void rotate_and_store(StepState& s, int layer, int column, int kv_head);
  void finish_results(int thread, StepState& s, Claims* claims);

  void run_block(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results);
  int block_tokens() const;
  void check_inputs(const std::vector<StepInput>& inputs) const;
  void check_attention(const Layer& layer, const std::string& at) const;
  void check_mlp(const Layer& layer, const std::string& at) const;
  void plan_step(StepState& s);
  void plan_parts(StepState& s);
  bool goes_by_heads(const StepState& s) const;
  void narrow(StepState& s);
  void prepare_rope(StepState& s);
  void size_buffers(StepState& s);
  void size_thread_buffers(const StepState& s);

  DecoderSpec spec_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Arena arena_;
  std::vector<Layer> layers_;
  NormWeights embed_norm_, final_norm_;
  Linear head_;
  Embedding embedding_, positions_, token_types_;
  std::vector<Rope> ropes_;

  std::vector<std::unique_ptr<ThreadState>> thread_states_;
  Buffers columns_, expert_columns_, fed_;
  Scratch x_, qkv_, attended_, hidden_, sub_, head_in_, rope_rows_, router_, expert_hidden_, expert_out_, shared_out_, partials_;
  // Two sets: while a step uses one, every thread resets its part of the other, in its own cache.
  std::vector<Claims> claims_[2];
  int claims_set_ = 0;
};
}  // namespace kq
