// What all threads of one step share. Private to the runtime's own files.
#pragma once
#include <atomic>
#include <cmath>
#include <vector>

#include "runtime/model.h"

namespace kq {

constexpr int kMaxShare = 256;  // query heads that may share a key/value head
// Claims of the phases of a step, a layer's attention and MLP, and the results.
constexpr int kStepClaims = 1, kAttentionClaims = 7, kMlpClaims = 19, kResultClaims = 5;

struct Model::Routing {
  struct Choice {
    int expert, slot;
    float weight;
  };
  struct Work {  // panels [begin, end) of one expert
    int expert, begin, end;
  };
  std::vector<Choice> chosen{};      // (columns, per_token), by expert within a column
  std::vector<int> first{};          // per expert: its first slot; one more at the end
  std::vector<int> column_of{};      // per slot
  std::vector<int> expert_of{};      // per slot
  std::vector<int> next{};           // per expert: its next free slot, while columns are grouped
  std::vector<Work> gate_up{}, down{};
};

// What comes after a product.
struct Model::Follow {
  const Linear* next = nullptr;  // the next product: its first weights are asked for
  bool feeds = false;            // it reads just what this one stores, which is quantized as soon as it is made
  bool finds_largest = false;    // of its one column; see ThreadState::largest
};

struct Model::StepState {
  PagePool& pages;
  std::vector<StepInput>& inputs;
  bool int8;
  float* results;
  int columns = 0;     // tokens of the step; in the last layer, once keys and values are written, those whose results are wanted
  bool fused = true;   // rotation happens inside attention: every input has one token
  bool by_heads = false;  // a thread goes on from a kv head's product to its attention
  bool hidden = false;  // hidden states are wanted instead of logits
  std::vector<Token> tokens{};
  std::vector<int> first_column{};    // per input
  std::vector<Task> tasks{};
  int task_parts = 1;        // threads that may share a task's context
  size_t task_partials = 0;  // then: floats of what a task's chunks give before they are joined
  float* partials = nullptr;
  std::vector<int> result_columns{};  // columns whose results are wanted
  bool narrows = false;               // they are fewer than all
  std::vector<Task> last_tasks{};     // then: of the last layer
  float *x = nullptr, *qkv = nullptr, *attended = nullptr, *inner = nullptr, *sub = nullptr, *head_in = nullptr;
  float *router = nullptr, *expert_inner = nullptr, *expert_out = nullptr, *shared_out = nullptr;
  int fetched_works = 0;  // works of attention whose keys and values a thread asks for ahead; 0: many rows, read often enough
  Routing routing{};
  std::atomic<bool> out_of_memory{false};  // a sampler found none
  std::atomic<bool> rows_lost{false};  // an embedding's file was cut while the model was loaded
};

// Whether a row comes before the largest so far, as argmax() orders them: numbers before not-a-number, the first among equals.
inline bool is_larger(const float* y, int row, int largest) {
  if (std::isnan(y[row]) || std::isnan(y[largest])) return std::isnan(y[largest]) && (!std::isnan(y[row]) || row < largest);
  return y[row] > y[largest] || (y[row] == y[largest] && row < largest);
}

inline void add_scaled(float* x, const float* y, int n, float scale) {
  if (scale == 1.0f)
    for (int i = 0; i < n; i++) x[i] += y[i];
  else
    for (int i = 0; i < n; i++) x[i] += y[i] * scale;
}

template <class F>
void Model::each_column(int thread, StepState& s, Claims& claims, F f) {
  int begin, end;
  while (claims.take(thread, s.columns, splits_columns(s.columns) ? 12 : 4, &begin, &end))
    for (int c = begin; c < end; c++) f(c);
  pool_.barrier(thread);
}
}  // namespace kq
