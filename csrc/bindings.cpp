// Only this file and its sisters bind_*.cpp know Python: it checks shapes and types, releases the interpreter lock, translates errors.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/probe.h"
#include "runtime/model.h"

namespace nb = nanobind;
using namespace kq;

static void expect_bytes(const Bytes& b, size_t expected, const char* what) {
  if (b.size() != expected)
    throw std::invalid_argument(std::string(what) + ": " + std::to_string(b.size()) + " bytes, expected " + std::to_string(expected));
}

// codes, scales, zeros (None unless AWQ), rows
using QuantizedPart = std::tuple<Bytes, Bytes, std::optional<Bytes>, int>;
using PlainPart = std::tuple<Bytes, int>;

static QuantizedRows quantized_rows(const QuantizedPart& part, const std::string& dtype, int inputs, int bits, int group, int layout) {
  const auto& [codes, scales, zeros, rows] = part;
  if ((bits != 3 && bits != 4 && bits != 8) || group < 8 || group % (32 / bits) || layout < 0 || layout > 2)
    throw std::invalid_argument("unknown quantization layout");
  QuantizedRows q{codes.data(), scales.data(), number_named(dtype), rows, inputs, bits, group, (CodeLayout)layout, nullptr};
  const size_t awq_words = (size_t)rows / 8;
  if (q.layout == CodeLayout::awq) {
    if (!zeros || rows % 8 || bits != 4) throw std::invalid_argument("AWQ needs 4 bits, zero points, and rows in eights");
    expect_bytes(codes, (size_t)inputs * awq_words * 4, "codes");
    expect_bytes(*zeros, (size_t)q.groups() * awq_words * 4, "zeros");
    q.zeros = zeros->data();
  } else {
    expect_bytes(codes, (size_t)rows * q.words() * 4, "codes");
  }
  expect_bytes(scales, (size_t)rows * q.groups() * size_of(q.scale_number), "scales");
  return q;
}

static PlainRows plain_rows(const Bytes& values, const std::string& dtype, int rows, int inputs) {
  PlainRows p{values.data(), number_named(dtype), rows, inputs};
  expect_bytes(values, (size_t)rows * inputs * size_of(p.number), "values");
  return p;
}

constexpr int kMaxRopes = 64;  // far more than any model has

static DecoderSpec decoder_spec(const nb::dict& d) {
  DecoderSpec s;
  auto integer = [&](const char* key) {
    int value = nb::cast<int>(d[key]);
    if (value < 1) throw std::invalid_argument(std::string(key) + " is not positive");
    return value;
  };
  auto number = [&](const char* key) { return nb::cast<float>(d[key]); };
  auto flag = [&](const char* key) { return nb::cast<bool>(d[key]); };
  s.vocab_size = integer("vocab_size");
  s.hidden_size = integer("hidden_size");
  s.num_layers = integer("num_layers");
  s.num_heads = integer("num_heads");
  s.num_kv_heads = integer("num_kv_heads");
  s.head_dim = integer("head_dim");
  s.intermediate_size = nb::cast<int>(d["intermediate_size"]);
  s.rope_dim = nb::cast<int>(d["rope_dim"]);
  if (s.intermediate_size < 0) throw std::invalid_argument("intermediate_size is negative");
  if (s.rope_dim < 0 || s.rope_dim > s.head_dim || s.rope_dim % 2) throw std::invalid_argument("rope_dim is odd or exceeds head_dim");
  // Widths are ints wherever they are used: two halves of an MLP, or all heads of queries, keys and values.
  const int64_t widest = std::max<int64_t>((s.num_heads + 2LL * s.num_kv_heads) * s.head_dim, 2LL * s.intermediate_size);
  if (widest > INT_MAX) throw std::invalid_argument("a layer is wider than 2^31 - 1");
  s.norm_eps = number("norm_eps");
  s.attention_scale = number("attention_scale");
  s.embed_scale = number("embed_scale");
  s.residual_scale = number("residual_scale");
  s.logit_scale = number("logit_scale");
  s.attention_cap = number("attention_cap");
  s.final_cap = number("final_cap");
  s.clip_qkv = number("clip_qkv");
  s.layer_norm = flag("layer_norm");
  s.norm_after_residual = flag("norm_after_residual");
  s.parallel_block = flag("parallel_block");
  s.qk_norm = flag("qk_norm");
  s.qk_norm_over_all = flag("qk_norm_over_all");
  s.rope_interleaved = flag("rope_interleaved");
  s.causal = flag("causal");
  s.activation = activation_named(nb::cast<std::string>(d["activation"]));
  s.sliding_window = nb::cast<std::vector<int>>(d["sliding_window"]);
  s.layer_rope = nb::cast<std::vector<int>>(d["layer_rope"]);
  if ((int)s.sliding_window.size() != s.num_layers || (int)s.layer_rope.size() != s.num_layers)
    throw std::invalid_argument("sliding_window and layer_rope need one entry a layer");
  for (int rope : s.layer_rope)
    if (rope < -1 || rope >= kMaxRopes) throw std::invalid_argument("layer_rope is not an index of a rope");
  s.experts.count = nb::cast<int>(d["num_experts"]);
  if (s.experts.count) {
    s.experts.per_token = integer("experts_per_token");
    s.experts.inner_size = integer("expert_size");
    s.experts.shared_size = nb::cast<int>(d["shared_expert_size"]);
    s.experts.normalize = flag("normalize_experts");
    if (s.experts.per_token > s.experts.count) throw std::invalid_argument("more experts per token than there are");
  }
  return s;
}

static RowOrder row_order(const std::string& role, const DecoderSpec& spec) {
  if (role.ends_with("gate_up")) return {.gated = true};
  if (role == "qkv" && spec.heads_together())
    return {.kv_heads = spec.num_kv_heads, .q_rows = spec.share() * spec.head_dim, .kv_rows = spec.head_dim};
  return {};
}

// Keeps the arrays that an embedding looks into alive.
// mutex: buffers and thread pool serve one call at a time. Taken without the interpreter lock, or two callers could wait
// for each other.
struct PyModel {
  PyModel(const nb::dict& spec, int threads, const std::string& isa)
      : model(decoder_spec(spec), threads, choose_kernels(isa)) {}
  Model model;
  std::vector<Bytes> kept;
  Scratch sampled_logits;
  std::mutex mutex;
};

static void check_pool(const PyModel& m, const PagePool& pool) {
  if (!pool.fits(m.model.spec())) throw std::invalid_argument("the page pool is another model's");
}

static StepInput step_input(Sequence* sequence, const int32_t* tokens, size_t count, StepOutput output, const PagePool& pool) {
  if (!sequence) throw std::invalid_argument("a sequence is None");
  if (output == StepOutput::sample && !sequence->sampler) throw std::invalid_argument("the sequence has no sampler");
  for (int32_t page : sequence->pages)
    if (page < 0 || page >= pool.num_pages()) throw std::invalid_argument("page outside the pool");
  return {sequence, tokens, (int)count, output, {}, 0, 0};
}

static nb::tuple as_tuple(const Choice& choice) { return nb::make_tuple(choice.token, choice.logprob, choice.top); }

static nb::tuple step(PyModel& m, PagePool& pool, const std::vector<Sequence*>& sequences,
                      const std::vector<std::vector<int32_t>>& tokens, const std::vector<int>& outputs, bool int8) {
  if (tokens.size() != sequences.size() || outputs.size() != sequences.size())
    throw std::invalid_argument("sequences, tokens and outputs differ in length");
  check_pool(m, pool);
  std::vector<StepInput> inputs;
  bool wants_logits = false, wants_hidden = false;
  for (size_t i = 0; i < sequences.size(); i++) {
    if (outputs[i] < 0 || outputs[i] > 4) throw std::invalid_argument("unknown output kind");
    const StepOutput output = (StepOutput)outputs[i];
    wants_logits = wants_logits || output == StepOutput::last || output == StepOutput::all;
    wants_hidden = wants_hidden || output == StepOutput::hidden;
    inputs.push_back(step_input(sequences[i], tokens[i].data(), tokens[i].size(), output, pool));
  }
  const size_t rows = Model::result_rows(inputs), vocab = wants_hidden ? m.model.spec().hidden_size : m.model.spec().vocab_size;
  std::unique_ptr<float[]> owned;
  float* logits = nullptr;
  if (wants_logits || wants_hidden) {
    owned.reset(new float[rows * vocab]);
    logits = owned.get();
  }
  {
    nb::gil_scoped_release release;
    std::lock_guard lock(m.mutex);
    if (rows && !logits) logits = m.sampled_logits.get<float>(rows * vocab);
    m.model.step(pool, inputs, int8, logits);
  }
  nb::list choices;
  for (const StepInput& in : inputs) {
    if (in.output == StepOutput::sample)
      choices.append(as_tuple(in.choice));
    else if (in.output == StepOutput::none)
      choices.append(nb::none());
    else
      choices.append(nb::make_tuple(in.first_row, in.num_rows));
  }
  nb::object array = nb::none();
  if (wants_logits || wants_hidden) {
    float* data = owned.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] (float*)p; });
    array = nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, vocab}, owner));
  }
  return nb::make_tuple(choices, array);
}

// tokens: one for each sequence.
static nb::list decode(PyModel& m, PagePool& pool, const std::vector<Sequence*>& sequences, const std::vector<int32_t>& tokens,
                       int count, bool int8) {
  if (tokens.size() != sequences.size()) throw std::invalid_argument("sequences and tokens differ in length");
  if (count < 1) throw std::invalid_argument("at least one step is needed");
  check_pool(m, pool);
  std::vector<StepInput> inputs;
  for (size_t i = 0; i < sequences.size(); i++)
    inputs.push_back(step_input(sequences[i], &tokens[i], 1, StepOutput::sample, pool));
  std::vector<std::vector<Choice>> chosen;
  {
    nb::gil_scoped_release release;
    std::lock_guard lock(m.mutex);
    chosen = m.model.decode(pool, inputs, int8, m.sampled_logits.get<float>(inputs.size() * m.model.spec().vocab_size), count);
  }
  nb::list all;
  for (const std::vector<Choice>& its : chosen) {
    nb::list choices;
    for (const Choice& choice : its) choices.append(as_tuple(choice));
    all.append(choices);
  }
  return all;
}

static void bind_runtime(nb::module_& m) {
  nb::class_<PagePool>(m, "PagePool")
      .def("__init__",
           [](PagePool* self, const PyModel& model, int num_pages, const std::string& dtype) {
             if (num_pages < 1) throw std::invalid_argument("a pool needs at least one page");
             new (self) PagePool(model.model.spec(), num_pages, kv_number_named(dtype));
           })
      .def_prop_ro("num_pages", &PagePool::num_pages)
      .def_prop_ro("page_bytes", &PagePool::page_bytes);

  nb::class_<Sequence>(m, "Sequence")
      .def(nb::init<>())
      .def_ro("length", &Sequence::length)
      .def_prop_ro("pages", [](const Sequence& s) { return s.pages; })
      .def("add_pages", [](Sequence& s, const std::vector<int32_t>& p) { s.pages.insert(s.pages.end(), p.begin(), p.end()); })
      .def("reset", [](Sequence& s, int length, const std::vector<int32_t>& pages) {
        if (length < 0 || (size_t)length > pages.size() * kPageTokens) throw std::invalid_argument("length exceeds the pages");
        s.length = length;
        s.pages = pages;
      })
      .def("set_rope", [](Sequence& s, Floats f, float factor) {
        s.inverse_frequencies.assign(f.data(), f.data() + f.size());
        s.rope_factor = factor;
      })
      .def("set_sampler", [](Sequence& s, const nb::dict& d, const std::vector<int32_t>& prompt) {
        SamplerConfig c;
        c.temperature = nb::cast<float>(d["temperature"]);
        c.top_k = nb::cast<int>(d["top_k"]);
        c.top_p = nb::cast<float>(d["top_p"]);
        c.min_p = nb::cast<float>(d["min_p"]);
        c.repetition_penalty = nb::cast<float>(d["repetition_penalty"]);
        c.presence_penalty = nb::cast<float>(d["presence_penalty"]);
        c.frequency_penalty = nb::cast<float>(d["frequency_penalty"]);
        c.logit_bias = nb::cast<std::vector<std::pair<int, float>>>(d["logit_bias"]);
        c.banned = nb::cast<std::vector<int>>(d["banned"]);
        c.seed = nb::cast<uint64_t>(d["seed"]);
        c.logprobs = nb::cast<int>(d["logprobs"]);
        s.sampler = std::make_unique<Sampler>(std::move(c), prompt.data(), prompt.size());
      })
      .def("set_end_ids", [](Sequence& s, const std::vector<int32_t>& ids) { s.end_ids = ids; })
      .def("accept", [](Sequence& s, int token) {
        if (s.sampler) s.sampler->accept(token);
      });

  nb::class_<PyModel>(m, "Model")
      .def(nb::init<const nb::dict&, int, const std::string&>(), nb::arg("spec"), nb::arg("threads"), nb::arg("isa") = "")
      .def_prop_ro("isa", [](const PyModel& m) { return std::string(m.model.kernels().name); })
      .def_prop_ro("threads", [](PyModel& m) { return m.model.pool().size(); })
      .def_prop_ro("panel_bytes", [](PyModel& m) { return m.model.panel_bytes(); })
      .def_prop_ro("has_quantized_layers", [](const PyModel& m) { return m.model.has_quantized_layers(); })
      .def("set_vector", [](PyModel& m, const std::string& role, int layer, Floats v) {
        std::vector<float>& own = m.model.vector_role(role, layer);
        own.assign(v.data(), v.data() + v.size());
        if (role == "qkv_bias") own = m.model.spec().in_row_order(own);
      })
      .def("set_quantized",
           [](PyModel& m, const std::string& role, int layer, int expert, const std::vector<QuantizedPart>& parts, const std::string& dtype,
              int inputs, int bits, int group, int layout, bool release) {
             std::vector<QuantizedRows> rows;
             for (const QuantizedPart& part : parts) rows.push_back(quantized_rows(part, dtype, inputs, bits, group, layout));
             Linear& linear = m.model.linear_role(role, layer, expert);
             nb::gil_scoped_release unlock;
             std::lock_guard lock(m.mutex);
             linear.panels = pack(rows, row_order(role, m.model.spec()), release, m.model.arena(), m.model.pool(), m.model.kernels());
           })
      .def("set_plain",
           [](PyModel& m, const std::string& role, int layer, int expert, const std::vector<PlainPart>& parts, const std::string& dtype,
              int inputs, bool release) {
             std::vector<PlainRows> rows;
             for (const auto& [values, count] : parts) rows.push_back(plain_rows(values, dtype, count, inputs));
             Linear& linear = m.model.linear_role(role, layer, expert);
             nb::gil_scoped_release unlock;
             std::lock_guard lock(m.mutex);
             linear.panels = pack(rows, row_order(role, m.model.spec()), release, m.model.arena(), m.model.pool());
           })
      .def("set_embedding_quantized",
           [](PyModel& m, const std::string& role, Bytes codes, Bytes scales, const std::string& dtype, int rows, int inputs, int bits,
              int group) {
             Embedding& e = m.model.embedding_role(role);
             e.quantized = quantized_rows({codes, scales, std::nullopt, rows}, dtype, inputs, bits, group, 0);
             e.source = Embedding::Source::quantized;
             m.kept.push_back(codes);
             m.kept.push_back(scales);
           })
      .def("set_embedding_plain",
           [](PyModel& m, const std::string& role, Bytes values, const std::string& dtype, int rows, int inputs) {
             Embedding& e = m.model.embedding_role(role);
             e.plain = plain_rows(values, dtype, rows, inputs);
             e.source = Embedding::Source::plain;
             m.kept.push_back(values);
           })
      .def("set_embedding_file",  // where the record's bytes are, besides in the arrays given before
           [](PyModel& m, const std::string& role, const std::string& path, int64_t codes_at, int64_t scales_at) {
             m.model.embedding_role(role).open_file(path, codes_at, scales_at);
           })
      .def("tie_embedding",
           [](PyModel& m) {
             Embedding& e = m.model.embedding_role("embed");
             e.panels = &m.model.linear_role("head", 0, -1).panels;
             e.source = Embedding::Source::panels;
           })
      .def("set_rope",
           [](PyModel& m, int index, Floats f, float factor) { m.model.set_rope(index, {f.data(), f.data() + f.size()}, factor); })
      .def("use_panels",  // before any weight: they are in a file already, and sources serve as a description only
           [](PyModel& m, int file, size_t offset, size_t nbytes, bool copy) {
             if (m.model.arena().used()) throw std::invalid_argument("the model has weights already");
             nb::gil_scoped_release unlock;
             std::lock_guard lock(m.mutex);
             m.model.arena().adopt(nullptr);  // never two images at a time
             m.model.arena().adopt(std::make_unique<PanelImage>(file, offset, nbytes, copy, m.model.pool()));
           })
      .def_prop_ro("panels_used", [](PyModel& m) { return m.model.arena().used(); })
      .def_prop_ro("panels_layout", [](PyModel& m) { return m.model.arena().layout(); })
      .def("panel_runs",  // the arena's memory, in order
           [](nb::handle self) {
             nb::list runs;
             for (const auto& [data, bytes] : nb::cast<PyModel&>(self).model.arena().runs())
               runs.append(nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(data, {bytes}, self)));
             return runs;
           })
      .def("check", [](PyModel& m) { m.model.finish_loading(); })
      .def("step", &step)
      .def("decode", &decode);
}

void bind_kernels(nb::module_& m);   // bind_kernels.cpp
void bind_quantize(nb::module_& m);  // bind_quantize.cpp
void bind_convert(nb::module_& m);   // bind_convert.cpp

NB_MODULE(_native, m) {
  m.doc() = "Kumquant's native core";
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("PANEL_LAYOUT") = kPanelLayout;
  m.attr("PANEL_SLACK") = kSlack;
  m.def("isa_list", &usable_isas, "Usable instruction sets, worst first.");
  m.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>(),
        "Bytes per second that `threads` threads read from a buffer of `bytes`.");
  m.def("core_round_trip", &core_round_trip, nb::call_guard<nb::gil_scoped_release>(),
        "Seconds of one cache-line round trip between two threads.");
  bind_runtime(m);
  bind_kernels(m);
  bind_quantize(m);
  bind_convert(m);
}
