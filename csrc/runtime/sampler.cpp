#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kq {
namespace {
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Uniform in [0, 1) from a counter (splitmix64): draw i of a seed is the same whatever happened in between.
double uniform(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return (double)(z >> 11) * 0x1.0p-53;
}
}  // namespace

Sampler::Sampler(SamplerConfig config, const int32_t* prompt, size_t prompt_size) : config_(std::move(config)) {
  if (config_.repetition_penalty != 1.0f)
    for (size_t i = 0; i < prompt_size; i++) counts_.emplace(prompt[i], 0);
}

void Sampler::accept(int token) {
  counts_[token]++;
  drawn_++;
}

bool Sampler::penalizes() const {
  return config_.repetition_penalty != 1.0f || config_.presence_penalty != 0.0f || config_.frequency_penalty != 0.0f;
}

void Sampler::adjust(float* logits, int n) const {
  if (penalizes())
    for (auto [token, count] : counts_) {
      if (token < 0 || token >= n) continue;
      float& x = logits[token];
      if (config_.repetition_penalty != 1.0f) x = x > 0.0f ? x / config_.repetition_penalty : x * config_.repetition_penalty;
      if (count > 0) x -= config_.presence_penalty + config_.frequency_penalty * (float)count;
    }
  for (auto [token, bias] : config_.logit_bias)
    if (token >= 0 && token < n) logits[token] += bias;
  for (int token : config_.banned)
    if (token >= 0 && token < n) logits[token] = kMinusInf;
}

int Sampler::draw(const float* logits, int n, const Kernels& kernels, int largest) {
  const int best = largest >= 0 ? largest : kernels.argmax(logits, n);
  if (!(config_.temperature > 0.0f)) return best;
  const float top = logits[best];
  if (!(top > kMinusInf) || !std::isfinite(top)) return best;
  weights_.resize(n);
  const float inverse = std::min(1.0f / config_.temperature, 1e30f);  // a finite one: the likeliest token's weight is e^(0 * inverse)
  const double total = kernels.exp_sum(logits, n, top, inverse, weights_.data());
  const double u = uniform(config_.seed, drawn_);

  const bool filtered = (config_.top_k > 0 && config_.top_k < n) || config_.top_p < 1.0f || config_.min_p > 0.0f;
  if (!filtered) {
    double target = u * total, seen = 0.0;
    int last = best;
    for (int i = 0; i < n; i++) {
      if (weights_[i] <= 0.0f) continue;
      seen += (double)weights_[i];
      last = i;
      if (seen > target) return i;
    }
    return last;
  }

  // Candidates, likeliest first (lower id first among equals). Only those above a falling threshold are sorted, since
  // a vocabulary has a hundred thousand entries and a nucleus a few dozen.
  auto likelier = [this](int a, int b) { return weights_[a] != weights_[b] ? weights_[a] > weights_[b] : a < b; };
  const size_t limit = config_.top_k > 0 ? std::min<size_t>(config_.top_k, n) : n;
  std::vector<int> candidates;
  for (float threshold = 1e-2f;; threshold = threshold > 1e-20f ? threshold * 1e-3f : -1.0f) {
    candidates.clear();
    double mass = 0.0;
    for (int i = 0; i < n; i++)
      if (weights_[i] > threshold) candidates.push_back(i), mass += (double)weights_[i];
    const bool enough = candidates.size() >= limit || (config_.top_k <= 0 && mass >= config_.top_p * total && config_.top_p < 1.0f) ||
                        threshold < config_.min_p;
    if (enough || threshold < 0.0f) break;
  }
  std::sort(candidates.begin(), candidates.end(), likelier);
  if (candidates.size() > limit) candidates.resize(limit);
  if (config_.top_p < 1.0f) {  // the smallest set that reaches top_p of what is left after top-k
    double kept = 0.0, seen = 0.0;
    if (config_.top_k > 0)
      for (int c : candidates) kept += (double)weights_[c];
    else
      kept = total;
    size_t count = 0;
    while (count < candidates.size() && (count == 0 || seen < config_.top_p * kept)) seen += (double)weights_[candidates[count++]];
    candidates.resize(count);
  }
  if (config_.min_p > 0.0f)  // relative to the likeliest token, whose weight is 1
    while (candidates.size() > 1 && weights_[candidates.back()] < config_.min_p) candidates.pop_back();
  double sum = 0.0, seen = 0.0;
  for (int c : candidates) sum += (double)weights_[c];
  for (int c : candidates) {
    seen += (double)weights_[c];
    if (seen > u * sum) return c;
  }
  return candidates.back();
}

Choice Sampler::choose(float* logits, int n, const Kernels& kernels, int largest) {
  Choice choice;
  std::vector<int> likeliest;
  float shift = 0.0f;
  double total = 0.0;
  const bool wants = config_.logprobs >= 0;
  std::vector<float> raw;
  if (wants) {
    shift = logits[largest >= 0 ? largest : kernels.argmax(logits, n)];
    total = kernels.exp_sum(logits, n, shift, 1.0f, nullptr);
    raw.assign(logits, logits + n);
  }
  adjust(logits, n);
  choice.token = draw(logits, n, kernels, adjusts() ? -1 : largest);
  accept(choice.token);
  if (wants) {
    const double log_total = std::log(total);
    auto logprob = [&](int i) { return (float)((double)raw[i] - (double)shift - log_total); };
    choice.logprob = logprob(choice.token);
    const size_t count = std::min<size_t>(config_.logprobs, n);
    likeliest.resize(n);
    for (int i = 0; i < n; i++) likeliest[i] = i;
    std::partial_sort(likeliest.begin(), likeliest.begin() + count, likeliest.end(),
                      [&](int a, int b) { return raw[a] != raw[b] ? raw[a] > raw[b] : a < b; });
    for (size_t i = 0; i < count; i++) choice.top.emplace_back(likeliest[i], logprob(likeliest[i]));
  }
  return choice;
}
}  // namespace kq
