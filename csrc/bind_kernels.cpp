// Single kernels of a chosen instruction set, for tests and measurements: `kumquant._native.kernels`.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <vector>

#include "cpu/isa.h"
#include "runtime/model.h"
#include "runtime/pack.h"

namespace nb = nanobind;
using namespace kq;

namespace {
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::object array(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* data = new std::vector<T>(std::move(values));
  nb::capsule owner(data, [](void* p) noexcept { delete (std::vector<T>*)p; });
  return nb::cast(nb::ndarray<nb::numpy, T>(data->data(), shape.size(), shape.begin(), owner));
}

void require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

struct Packed {
  Arena arena;
  ThreadPool pool{1};
  Panels panels;
};

// A matrix in panels: quantized when scales are given, else plain values. bits 4 with zeros means AWQ's layout.
std::unique_ptr<Packed> packed(const Bytes& codes, const std::optional<Bytes>& scales, const std::optional<Bytes>& zeros,
                               const std::string& dtype, int rows, int inputs, bool gated, int bits, int group,
                               const Kernels& kernels) {
  require(rows > 0 && inputs > 0 && (!gated || rows % 2 == 0), "rows and inputs must be positive, rows of a gated matrix even");
  require(bits == 3 || bits == 4 || bits == 8, "codes have 3, 4 or 8 bits");
  require(group >= 8 && group % (32 / bits) == 0, "a group fills whole words");
  require(!zeros || rows % 8 == 0, "zero points come for eight rows at a time");
  auto p = std::make_unique<Packed>();
  const Number number = number_named(dtype);
  if (scales) {
    QuantizedRows q{codes.data(), scales->data(), number, rows, inputs, bits, group, zeros ? CodeLayout::awq : CodeLayout::rows,
                    zeros ? zeros->data() : nullptr};
    const size_t code_bytes = zeros ? (size_t)inputs * rows / 2 : (size_t)rows * q.words() * 4;
    if (codes.size() != code_bytes || scales->size() != (size_t)rows * q.groups() * size_of(number) ||
        (zeros && zeros->size() != (size_t)q.groups() * rows / 2))
      throw std::invalid_argument("the bytes do not fit the shape");
    p->panels = pack(std::vector<QuantizedRows>{q}, {.gated = gated}, false, p->arena, p->pool, kernels);
  } else {
    if (codes.size() != (size_t)rows * inputs * size_of(number)) throw std::invalid_argument("the bytes do not fit the shape");
    p->panels = pack(std::vector<PlainRows>{{codes.data(), number, rows, inputs}}, {.gated = gated}, false, p->arena, p->pool);
  }
  return p;
}

nb::object matmul(const std::string& isa, Bytes codes, std::optional<Bytes> scales, const std::string& dtype, int rows, Matrix x,
                  const std::string& activations, const std::string& epilogue, std::optional<Floats> bias, std::optional<Matrix> start,
                  std::optional<Bytes> zeros, int bits, int group, const std::string& activation, float scale) {
  const Kernels& kernels = choose_kernels(isa);
  const int columns = (int)x.shape(0), inputs = (int)x.shape(1);
  const bool gated = epilogue == "gated";
  auto p = packed(codes, scales, zeros, dtype, rows, inputs, gated, bits, group, kernels);
  const size_t groups = p->panels.groups, padded = p->panels.padded_inputs();
  const int out_rows = gated ? rows / 2 : rows;
  require(columns > 0, "no columns");
  require(!bias || bias->size() == (size_t)rows, "bias has the wrong shape");
  std::vector<float> y((size_t)columns * out_rows, 0.0f);
  if (start) {
    if (start->size() != y.size()) throw std::invalid_argument("start has the wrong shape");
    std::copy(start->data(), start->data() + y.size(), y.begin());
  }
  Output out{y.data(), (size_t)out_rows, out_rows, bias ? bias->data() : nullptr,
             gated                    ? Epilogue::gated
             : epilogue == "add"      ? Epilogue::add
             : epilogue == "activate" ? Epilogue::activate
                                      : Epilogue::store,
             scale, activation_named(activation)};
  if (activations == "int8") {
    std::vector<int8_t> q(columns * padded);
    std::vector<float> s(columns * groups);
    std::vector<int32_t> init(columns * groups);
    Scratch scratch;
    IntTiles tiles{q.data(), s.data(), init.data(), columns, (int)groups, p->panels.group};
    for (int c = 0; c < columns; c++)
      kernels.quantize_column(x.data() + (size_t)c * inputs, inputs, p->panels.zero_point, tiles, c, 0, tiles.groups);
    kernels.matmul_int(p->panels, 0, p->panels.num_panels, tiles, out, scratch.get<uint8_t>(2 * kPanelRows * padded));
  } else {
    std::vector<float> values(columns * padded);
    FloatTiles tiles{values.data(), columns, (int)padded};
    for (int c = 0; c < columns; c++) kernels.pack_column(x.data() + (size_t)c * inputs, inputs, tiles, c);
    kernels.matmul_float(p->panels, 0, p->panels.num_panels, tiles, out);
  }
  return array(std::move(y), {(size_t)columns, (size_t)out_rows});
}

// One column: codes (padded inputs) int8, scales (groups), sums of codes (groups).
nb::tuple quantize(const std::string& isa, Floats x, int group) {
  const Kernels& kernels = choose_kernels(isa);
  require(group > 0 && group % 8 == 0 && group <= 48 && x.size() > 0, "groups hold 8 to 48 values in eights, and x has some");
  const int inputs = (int)x.size();
  const size_t groups = (size_t)((inputs + group - 1) / group + 1) / 2 * 2;
  std::vector<int8_t> q(groups * group);
  std::vector<float> s(groups);
  std::vector<int32_t> init(groups);
  kernels.quantize_column(x.data(), inputs, -1, {q.data(), s.data(), init.data(), 1, (int)groups, group}, 0, 0, (int)groups);
  return nb::make_tuple(array(std::move(q), {groups * (size_t)group}), array(std::move(s), {groups}), array(std::move(init), {groups}));
}

// q: (rows, dim); k, v: (tokens, dim); row i sees tokens first[i] .. last[i].
nb::object attend(const std::string& isa, Matrix q, Matrix k, Matrix v, const std::vector<int>& first, const std::vector<int>& last,
                  const std::string& dtype, float cap, bool in_parts) {
  const Kernels& kernels = choose_kernels(isa);
  const int rows = (int)q.shape(0), dim = (int)q.shape(1), tokens = (int)k.shape(0);
  require(rows > 0 && dim > 0 && tokens > 0 && k.shape(1) == q.shape(1), "q and k have the wrong shape");
  require(v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1), "v has the wrong shape");
  require(first.size() == (size_t)rows && last.size() == (size_t)rows, "first and last have one entry for each row of q");
  for (int r = 0; r < rows; r++)
    require(0 <= first[r] && first[r] <= last[r] && last[r] < tokens, "a row sees tokens that are not there");
  DecoderSpec spec;
  spec.num_layers = spec.num_kv_heads = 1;
  spec.head_dim = dim;
  const int num_pages = (tokens + kPageTokens - 1) / kPageTokens;
  PagePool pool(spec, num_pages, kv_number_named(dtype));
  std::vector<int32_t> pages(num_pages);
  for (int i = 0; i < num_pages; i++) pages[i] = num_pages - 1 - i;
  KvHead kv = pool.head(spec, 0, 0, pages.data());
  std::vector<float> key(dim);
  for (int t = 0; t < tokens; t++) {
    key.assign(k.data() + (size_t)t * dim, k.data() + (size_t)(t + 1) * dim);
    kernels.write_kv(kv, t, key.data(), v.data() + (size_t)t * dim);
  }
  std::vector<float> y((size_t)rows * dim), scratch(attention_scratch(rows, spec.padded_head_dim()));
  std::vector<size_t> offsets(rows);
  for (int r = 0; r < rows; r++) offsets[r] = (size_t)r * dim;
  const AttentionRows query{q.data(), (size_t)dim, first.data(), last.data(), rows, cap};
  if (in_parts) {
    const int chunks = (tokens + kChunkTokens - 1) / kChunkTokens;
    std::vector<float> parts(chunks * attention_part(rows, spec.padded_head_dim()));
    for (int c = chunks - 1; c >= 0; c--) kernels.attend_chunks(kv, query, c, c + 1, parts.data(), scratch.data());
    kernels.join_chunks(kv, query, parts.data(), y.data(), offsets.data(), scratch.data());
  } else {
    kernels.attend(kv, query, y.data(), offsets.data(), scratch.data());
  }
  return array(std::move(y), {(size_t)rows, (size_t)dim});
}
}  // namespace

void bind_kernels(nb::module_& m) {
  nb::module_ k = m.def_submodule("kernels", "Single kernels of a chosen instruction set, for tests and measurements.");
  k.def("matmul", &matmul, nb::arg("isa"), nb::arg("codes"), nb::arg("scales").none(), nb::arg("dtype"), nb::arg("rows"), nb::arg("x"),
        nb::arg("activations") = "int8", nb::arg("epilogue") = "store", nb::arg("bias").none() = nb::none(),
        nb::arg("start").none() = nb::none(), nb::arg("zeros").none() = nb::none(), nb::arg("bits") = 4, nb::arg("group") = 32,
        nb::arg("activation") = "silu", nb::arg("scale") = 1.0f);
  k.def("quantize", &quantize, nb::arg("isa"), nb::arg("x"), nb::arg("group") = 32);
  k.def("attend", &attend, nb::arg("isa"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("first"), nb::arg("last"), nb::arg("dtype"),
        nb::arg("cap") = 0.0f, nb::arg("in_parts") = false);
  k.def("rms_norm", [](const std::string& isa, Floats x, Floats weight, float eps) {
    require(weight.size() == x.size(), "weight has the wrong shape");
    std::vector<float> y(x.size());
    choose_kernels(isa).rms_norm(x.data(), weight.data(), y.data(), (int)x.size(), eps);
    size_t n = y.size();
    return array(std::move(y), {n});
  });
  k.def("layer_norm", [](const std::string& isa, Floats x, Floats weight, std::optional<Floats> bias, float eps) {
    require(weight.size() == x.size() && (!bias || bias->size() == x.size()), "weight or bias has the wrong shape");
    std::vector<float> y(x.size());
    choose_kernels(isa).layer_norm(x.data(), weight.data(), bias ? bias->data() : nullptr, y.data(), (int)x.size(), eps);
    size_t n = y.size();
    return array(std::move(y), {n});
  }, nb::arg("isa"), nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("eps"));
  k.def("soft_cap", [](const std::string& isa, Floats x, float cap) {
    std::vector<float> y(x.data(), x.data() + x.size());
    choose_kernels(isa).soft_cap(y.data(), (int)x.size(), cap);
    size_t n = y.size();
    return array(std::move(y), {n});
  });
  k.def("rope", [](const std::string& isa, Floats x, Floats cos, Floats sin, bool interleaved) {
    require(cos.size() == sin.size() && x.size() == 2 * cos.size(), "cosines and sines are half as many as values");
    std::vector<float> y(x.data(), x.data() + x.size());
    choose_kernels(isa).rope(y.data(), (int)(x.size() / 2), cos.data(), sin.data(), interleaved);
    size_t n = y.size();
    return array(std::move(y), {n});
  }, nb::arg("isa"), nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("interleaved") = false);
  k.def("argmax", [](const std::string& isa, Floats x) {
    require(x.size() > 0, "nothing to choose from");
    return choose_kernels(isa).argmax(x.data(), (int)x.size());
  });
  k.def("exp_sum", [](const std::string& isa, Floats x, float shift, float inverse_temperature) {
    std::vector<float> e(x.size());
    double sum = choose_kernels(isa).exp_sum(x.data(), (int)x.size(), shift, inverse_temperature, e.data());
    size_t n = e.size();
    return nb::make_tuple(sum, array(std::move(e), {n}));
  });
  k.def("late_growths", &Scratch::late_growths, "Buffers that grew inside a job of a thread pool, where none may.");
}
