// Only this file and its sisters bind_*.cpp know Python: it checks shapes and types, releases the interpreter lock, translates errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/probe.h"
#include "runtime/model.h"

namespace nb = nanobind;
using namespace kq;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static Number number_named(const std::string& dtype) {
  if (dtype == "float32") return Number::f32;
  if (dtype == "float16") return Number::f16;
  if (dtype == "bfloat16") return Number::bf16;
  throw std::invalid_argument("dtype " + dtype + " is not float32, float16 or bfloat16");
}

static void expect_bytes(const Bytes& b, size_t expected, const char* what) {
  if (b.size() != expected)
    throw std::invalid_argument(std::string(what) + ": " + std::to_string(b.size()) + " bytes, expected " + std::to_string(expected));
}

static QuantizedRows quantized_rows(const Bytes& codes, const Bytes& scales, const std::string& dtype, int rows, int inputs) {
  const int groups = (inputs + kGroup - 1) / kGroup;
  QuantizedRows q{(const uint32_t*)codes.data(), scales.data(), number_named(dtype), rows, inputs, groups * 4};
  expect_bytes(codes, (size_t)rows * q.words * 4, "codes");
  expect_bytes(scales, (size_t)rows * groups * size_of(q.scale_number), "scales");
  return q;
}

static PlainRows plain_rows(const Bytes& values, const std::string& dtype, int rows, int inputs) {
  PlainRows p{values.data(), number_named(dtype), rows, inputs};
  expect_bytes(values, (size_t)rows * inputs * size_of(p.number), "values");
  return p;
}

static DecoderSpec decoder_spec(const nb::dict& d) {
  DecoderSpec s;
  auto integer = [&](const char* key) {
    int value = nb::cast<int>(d[key]);
    if (value < 1) throw std::invalid_argument(std::string(key) + " is not positive");
    return value;
  };
  s.vocab_size = integer("vocab_size");
  s.hidden_size = integer("hidden_size");
  s.intermediate_size = integer("intermediate_size");
  s.num_layers = integer("num_layers");
  s.num_heads = integer("num_heads");
  s.num_kv_heads = integer("num_kv_heads");
  s.head_dim = integer("head_dim");
  s.rope_dim = integer("rope_dim");
  if (s.rope_dim > s.head_dim || s.rope_dim % 2) throw std::invalid_argument("rope_dim is odd or exceeds head_dim");
  s.norm_eps = nb::cast<float>(d["norm_eps"]);
  s.attention_scale = nb::cast<float>(d["attention_scale"]);
  s.sliding_window = nb::cast<std::vector<int>>(d["sliding_window"]);
  if ((int)s.sliding_window.size() != s.num_layers) throw std::invalid_argument("sliding_window needs one entry a layer");
  s.qk_norm = nb::cast<bool>(d["qk_norm"]);
  return s;
}

// Keeps the arrays that an embedding looks into alive.
struct PyModel {
  PyModel(const nb::dict& spec, int threads, const std::string& isa)
      : model(decoder_spec(spec), threads, choose_kernels(isa)) {}
  Model model;
  std::vector<Bytes> kept;
  Scratch sampled_logits;
};

static nb::tuple step(PyModel& m, PagePool& pool, const std::vector<Sequence*>& sequences,
                      const std::vector<std::vector<int32_t>>& tokens, const std::vector<int>& outputs, bool int8) {
  if (tokens.size() != sequences.size() || outputs.size() != sequences.size())
    throw std::invalid_argument("sequences, tokens and outputs differ in length");
  std::vector<StepInput> inputs;
  bool wants_logits = false;
  for (size_t i = 0; i < sequences.size(); i++) {
    if (outputs[i] < 0 || outputs[i] > 3) throw std::invalid_argument("unknown output kind");
    StepOutput output = (StepOutput)outputs[i];
    if (output == StepOutput::sample && !sequences[i]->sampler) throw std::invalid_argument("the sequence has no sampler");
    for (int32_t page : sequences[i]->pages)
      if (page < 0 || page >= pool.num_pages()) throw std::invalid_argument("page outside the pool");
    wants_logits = wants_logits || output == StepOutput::last || output == StepOutput::all;
    inputs.push_back({sequences[i], tokens[i].data(), (int)tokens[i].size(), output, {}, 0, 0});
  }
  const size_t rows = Model::logits_rows(inputs), vocab = m.model.spec().vocab_size;
  std::unique_ptr<float[]> owned;
  float* logits = nullptr;
  if (wants_logits) {
    owned.reset(new float[rows * vocab]);
    logits = owned.get();
  } else if (rows) {
    logits = m.sampled_logits.get<float>(rows * vocab);
  }
  {
    nb::gil_scoped_release release;
    m.model.step(pool, inputs, int8, logits);
  }
  nb::list choices;
  for (const StepInput& in : inputs) {
    if (in.output == StepOutput::sample)
      choices.append(nb::make_tuple(in.choice.token, in.choice.logprob, in.choice.top));
    else if (in.output == StepOutput::none)
      choices.append(nb::none());
    else
      choices.append(nb::make_tuple(in.first_row, in.num_rows));
  }
  nb::object array = nb::none();
  if (wants_logits) {
    float* data = owned.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] (float*)p; });
    array = nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, vocab}, owner));
  }
  return nb::make_tuple(choices, array);
}

static void bind_runtime(nb::module_& m) {
  nb::class_<PagePool>(m, "PagePool")
      .def("__init__",
           [](PagePool* self, const PyModel& model, int num_pages, const std::string& dtype) {
             if (num_pages < 1) throw std::invalid_argument("a pool needs at least one page");
             new (self) PagePool(model.model.spec(), num_pages, number_named(dtype));
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
      .def("accept", [](Sequence& s, int token) {
        if (s.sampler) s.sampler->accept(token);
      });

  nb::class_<PyModel>(m, "Model")
      .def(nb::init<const nb::dict&, int, const std::string&>(), nb::arg("spec"), nb::arg("threads"), nb::arg("isa") = "")
      .def_prop_ro("isa", [](const PyModel& m) { return std::string(m.model.kernels().name); })
      .def_prop_ro("threads", [](PyModel& m) { return m.model.pool().size(); })
      .def_prop_ro("panel_bytes", [](const PyModel& m) { return m.model.panel_bytes(); })
      .def_prop_ro("has_quantized_layers", [](const PyModel& m) { return m.model.has_quantized_layers(); })
      .def("set_vector", [](PyModel& m, const std::string& role, int layer, Floats v) {
        m.model.vector_role(role, layer).assign(v.data(), v.data() + v.size());
      })
      .def("set_quantized",
           [](PyModel& m, const std::string& role, int layer, Bytes codes, Bytes scales, const std::string& dtype, int rows, int inputs,
              bool release) {
             QuantizedRows q = quantized_rows(codes, scales, dtype, rows, inputs);
             Linear& linear = m.model.linear_role(role, layer);
             nb::gil_scoped_release unlock;
             linear.panels = pack(q, role == "gate_up", release, m.model.arena(), m.model.pool());
           })
      .def("set_plain",
           [](PyModel& m, const std::string& role, int layer, Bytes values, const std::string& dtype, int rows, int inputs, bool release) {
             PlainRows p = plain_rows(values, dtype, rows, inputs);
             Linear& linear = m.model.linear_role(role, layer);
             nb::gil_scoped_release unlock;
             linear.panels = pack(p, role == "gate_up", release, m.model.arena(), m.model.pool());
           })
      .def("set_embedding_quantized",
           [](PyModel& m, Bytes codes, Bytes scales, const std::string& dtype, int rows, int inputs) {
             Embedding& e = m.model.embedding();
             e.quantized = quantized_rows(codes, scales, dtype, rows, inputs);
             e.source = Embedding::Source::quantized;
             m.kept.push_back(codes);
             m.kept.push_back(scales);
           })
      .def("set_embedding_plain",
           [](PyModel& m, Bytes values, const std::string& dtype, int rows, int inputs) {
             Embedding& e = m.model.embedding();
             e.plain = plain_rows(values, dtype, rows, inputs);
             e.source = Embedding::Source::plain;
             m.kept.push_back(values);
           })
      .def("tie_embedding",
           [](PyModel& m) {
             Embedding& e = m.model.embedding();
             e.panels = &m.model.linear_role("head", 0).panels;
             e.source = Embedding::Source::panels;
           })
      .def("set_rope", [](PyModel& m, Floats f, float factor) { m.model.set_rope({f.data(), f.data() + f.size()}, factor); })
      .def("check", [](PyModel& m) { m.model.check(); })
      .def("step", &step);
}

void bind_kernels(nb::module_& m);   // bind_kernels.cpp
void bind_quantize(nb::module_& m);  // bind_quantize.cpp

NB_MODULE(_native, m) {
  m.doc() = "Kumquant's native core";
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.def("isa_list", &usable_isas, "Usable instruction sets, worst first.");
  m.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>(),
        "Bytes per second that `threads` threads read from a buffer of `bytes`.");
  m.def("core_round_trip", &core_round_trip, nb::call_guard<nb::gil_scoped_release>(),
        "Seconds of one cache-line round trip between two threads.");
  bind_runtime(m);
  bind_kernels(m);
  bind_quantize(m);
}
