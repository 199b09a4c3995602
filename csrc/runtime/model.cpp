#include "runtime/model.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>

#include "runtime/step_state.h"

namespace kq {
namespace {
// Tokens that go through the layers together: 96 at least, eight tiles of twelve columns. For each of at most kBlockThreads
// threads 96 too, or, where a model is wide, as many as keep a thread's share of the buffers below kBlockBytes, but not below 48.
constexpr int kMinThreadTokens = 48, kBlockTokens = 96, kBlockThreads = 8;
constexpr size_t kBlockBytes = 4 << 20;
constexpr int kAttentionRows = 12;   // query rows that share one pass over keys and values
constexpr size_t kFetchWorks = 128 << 10;  // bytes of keys and values on their way to the second cache before a thread needs them
constexpr int kSharedContext = 768;  // tokens of context worth sharing between threads
}  // namespace

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
  const size_t work_bytes = kTokensAhead * s.pages.token_bytes();
  if (s.columns == (int)s.inputs.size()) s.fetched_works = std::max<int>(1, (int)(kFetchWorks / work_bytes));
  s.narrows = (int)s.result_columns.size() < s.columns;
  s.fused = s.fused && !s.narrows;
  const int share = spec_.share(), tile = std::max(1, kAttentionRows / share);
  // In the order of columns: a thread then attends to about those that it prepares for the next product.
  auto list_tasks = [&](std::vector<Task>& tasks, int StepInput::*count) {
    for (int i = 0; i < (int)s.inputs.size(); i++)
      for (int first = 0; first < s.inputs[i].*count; first += tile)
        for (int h = 0; h < spec_.num_kv_heads; h++) tasks.push_back({i, first, std::min(tile, s.inputs[i].*count - first), h});
  };
  list_tasks(s.tasks, &StepInput::count);
  if (s.narrows) list_tasks(s.last_tasks, &StepInput::num_rows);
}

// Leaves the columns whose results are wanted, in front. Nothing here allocates: it runs on a thread of the pool.
void Model::narrow(StepState& s) {
  const size_t hidden = spec_.hidden_size, qkv = spec_.qkv_size();
  s.columns = (int)s.result_columns.size();
  for (int r = 0; r < s.columns; r++) {  // in rising order, so that none is overwritten before it is read
    const int from = s.result_columns[r];
    if (from == r) continue;
    std::copy_n(s.x + from * hidden, hidden, s.x + r * hidden);
    std::copy_n(s.qkv + from * qkv, qkv, s.qkv + r * qkv);
    s.tokens[r] = s.tokens[from];
    s.result_columns[r] = r;
  }
  for (size_t i = 0; i < s.inputs.size(); i++) s.first_column[i] = s.inputs[i].first_row;
  s.tasks.swap(s.last_tasks);
  s.task_parts = 1;
  s.routing.chosen.resize((size_t)s.columns * spec_.experts.per_token);
}

// Where tasks are too few to keep every thread busy, several threads share a long context, chunk by chunk. That costs two
// more barriers a layer.
void Model::plan_parts(StepState& s) {
  const int threads = pool_.size(), tasks = (int)s.tasks.size(), rounds = (tasks + threads - 1) / threads;
  if (5 * tasks >= 4 * rounds * threads) return;
  int longest = 0, rows = 0;
  for (const Task& task : s.tasks) rows = std::max(rows, task.count * (spec_.share()));
  for (const StepInput& in : s.inputs) longest = std::max(longest, in.sequence->length + in.count);
  if (longest < kSharedContext) return;
  const int chunks = (longest + kChunkTokens - 1) / kChunkTokens;
  s.task_partials = chunks * attention_part(rows, spec_.padded_head_dim());
  s.partials = partials_.get<float>(s.tasks.size() * s.task_partials);
  s.task_parts = std::min(chunks, (4 * threads + tasks - 1) / tasks);
  s.fused = false;  // every part needs the rotated queries
}

// Worth it where every thread gets as many heads.
bool Model::goes_by_heads(const StepState& s) const {
  return s.fused && spec_.heads_together() && pool_.size() > 1 && spec_.num_kv_heads % pool_.size() == 0 && !splits_columns(s.columns);
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
  const int fed = splits_columns(s.columns) ? s.narrows ? (int)rows : 0 : s.columns;  // the last layer may have few
  for (const Layer& l : layers_) {
    for (const Linear* linear :
         {&l.qkv, &l.o, &l.gate_up, &l.up, &l.down, &l.router, &l.shared_gate_up, &l.shared_down, &l.shared_gate})
      grow(*linear, s.columns, columns_);
    for (const Linear* linear : {&l.o, &l.down}) grow(*linear, fed, fed_);
  }
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
  for (const Task& task : s.tasks) rows = std::max(rows, task.count * (spec_.share()));
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
  s.by_heads = goes_by_heads(s);
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

int Model::block_tokens() const {
  const ExpertSpec& e = spec_.experts;
  const size_t inner = std::max(spec_.intermediate_size, e.shared_size), experts = (size_t)e.per_token * (e.inner_size + spec_.hidden_size);
  const size_t bytes = sizeof(float) * (spec_.hidden_size + spec_.qkv_size() + spec_.q_size() + inner + experts);
  const int fit = (int)(kBlockBytes / bytes) / 12 * 12;
  return std::max(kBlockTokens, std::clamp(fit, kMinThreadTokens, kBlockTokens) * std::min(pool_.size(), kBlockThreads));
}

// Long steps run in blocks of tokens, so that buffers stay small and in the cache. Results do not depend on the cut.
void Model::step(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results) {
  check_inputs(inputs);
  const size_t width = head_.present() ? spec_.vocab_size : spec_.hidden_size;
  std::vector<StepInput> block;
  std::vector<size_t> owners;
  const int block_tokens = this->block_tokens();
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
      const int room = block_tokens - columns, left = in.count - done, count = spec_.causal ? std::min(room, left) : left;
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
      if (columns >= block_tokens) run();
    }
  }
  run();
}

std::vector<std::vector<Choice>> Model::decode(PagePool& pages, std::vector<StepInput>& inputs, bool int8, float* results,
                                               int count) {
  std::vector<std::vector<Choice>> choices(inputs.size());
  std::vector<int32_t> tokens(inputs.size());
  bool ended = false;
  for (int i = 0; i < count && !ended; i++) {
    step(pages, inputs, int8, results);
    for (size_t j = 0; j < inputs.size(); j++) {
      StepInput& in = inputs[j];
      const std::vector<int32_t>& end_ids = in.sequence->end_ids;
      tokens[j] = in.choice.token;
      in.tokens = &tokens[j];
      ended = ended || std::find(end_ids.begin(), end_ids.end(), tokens[j]) != end_ids.end();
      choices[j].push_back(std::move(in.choice));
    }
  }
  return choices;
}
}  // namespace kq
