// From a row of logits to a token, in the order users of llama.cpp and vLLM expect:
// logit bias and penalties, then temperature, top-k, top-p, min-p, then one draw.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace kq {

struct SamplerConfig {
  float temperature = 0.0f;  // 0: the largest logit, the lowest id among equals
  int top_k = 0;             // 0: off
  float top_p = 1.0f, min_p = 0.0f;
  float repetition_penalty = 1.0f;  // prompt and output; positive logits are divided, negative ones multiplied
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // output only, subtracted
  std::vector<std::pair<int, float>> logit_bias;
  std::vector<int> banned;  // never chosen
  uint64_t seed = 0;
  int logprobs = -1;  // -1: none; n: the chosen token's and the n likeliest, of the unmodified distribution
};

struct Choice {
  int token = -1;
  float logprob = 0.0f;
  std::vector<std::pair<int, float>> top;
};

class Sampler {
 public:
  Sampler(SamplerConfig config, const int32_t* prompt, size_t prompt_size);
  // Changes `logits` (n values). The draw depends on the seed and on how many tokens were drawn before, on nothing else.
  // largest: kernels.argmax(logits, n) where it is known, else -1.
  Choice choose(float* logits, int n, const Kernels& kernels, int largest = -1);
  // Counts a token as output without drawing it (a sequence that is computed again).
  void accept(int token);

 private:
  bool penalizes() const;
  bool adjusts() const { return penalizes() || !config_.logit_bias.empty() || !config_.banned.empty(); }
  void adjust(float* logits, int n) const;
  int draw(const float* logits, int n, const Kernels& kernels, int largest);

  SamplerConfig config_;
  std::unordered_map<int, int> counts_;  // tokens seen: 0 for prompt only, else how often generated
  uint64_t drawn_ = 0;
  std::vector<float> weights_;
};
}  // namespace kq
