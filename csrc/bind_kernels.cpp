// Single kernels of a chosen instruction set, for tests and measurements: `kumquant._native.kernels`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/isa.h"
#include "runtime/model.h"
#include "runtime/pack.h"

namespace nb = nanobind;
using namespace kq;

namespace {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::object array(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* data = new std::vector<T>(std::move(values));
  nb::capsule owner(data, [](void* p) noexcept { delete (std::vector<T>*)p; });
  return nb::cast(nb::ndarray<nb::numpy, T>(data->data(), shape.size(), shape.begin(), owner));
}

Number number_named(const std::string& dtype) {
  return dtype == "float32" ? Number::f32 : dtype == "float16" ? Number::f16 : Number::bf16;
}

struct Packed {
  Arena arena;
  ThreadPool pool{1};
  Panels panels;
};

// A matrix in panels: quantized when scales are given, else plain values.
std::unique_ptr<Packed> packed(const Bytes& codes, const std::optional<Bytes>& scales, const std::string& dtype, int rows, int inputs,
                               bool gated) {
  auto p = std::make_unique<Packed>();
  const int groups = (inputs + kGroup - 1) / kGroup;
  const Number number = number_named(dtype);
  if (codes.size() != (scales ? (size_t)rows * groups * 16 : (size_t)rows * inputs * size_of(number)) ||
      (scales && scales->size() != (size_t)rows * groups * size_of(number)))
    throw std::invalid_argument("the bytes do not fit the shape");
  if (scales)
    p->panels = pack(QuantizedRows{(const uint32_t*)codes.data(), scales->data(), number, rows, inputs, groups * 4}, gated, false,
                     p->arena, p->pool);
  else
    p->panels = pack(PlainRows{codes.data(), number, rows, inputs}, gated, false, p->arena, p->pool);
  return p;
}

nb::object matmul(const std::string& isa, Bytes codes, std::optional<Bytes> scales, const std::string& dtype, int rows, Matrix x,
                  const std::string& activations, const std::string& epilogue, std::optional<Vector> bias, std::optional<Matrix> start) {
  const Kernels& kernels = choose_kernels(isa);
  const int columns = (int)x.shape(0), inputs = (int)x.shape(1);
  const bool gated = epilogue == "gated";
  auto p = packed(codes, scales, dtype, rows, inputs, gated);
  const size_t groups = p->panels.groups, padded = groups * kGroup;
  const int out_rows = gated ? rows / 2 : rows;
  std::vector<float> y((size_t)columns * out_rows, 0.0f);
  if (start) {
    if (start->size() != y.size()) throw std::invalid_argument("start has the wrong shape");
    std::copy(start->data(), start->data() + y.size(), y.begin());
  }
  Output out{y.data(), (size_t)out_rows, out_rows, bias ? bias->data() : nullptr,
             gated ? Epilogue::gated : epilogue == "add" ? Epilogue::add : Epilogue::store};
  if (activations == "int8") {
    std::vector<int8_t> q(columns * padded);
    std::vector<float> s(columns * groups);
    std::vector<int32_t> init(columns * groups);
    Scratch scratch;
    IntTiles tiles{q.data(), s.data(), init.data(), columns, (int)groups};
    for (int c = 0; c < columns; c++) kernels.quantize_column(x.data() + (size_t)c * inputs, inputs, 7, tiles, c);
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
nb::tuple quantize(const std::string& isa, Vector x) {
  const Kernels& kernels = choose_kernels(isa);
  const int inputs = (int)x.size();
  const size_t groups = (size_t)((inputs + kGroup - 1) / kGroup + 1) / 2 * 2;
  std::vector<int8_t> q(groups * kGroup);
  std::vector<float> s(groups);
  std::vector<int32_t> init(groups);
  kernels.quantize_column(x.data(), inputs, -1, {q.data(), s.data(), init.data(), 1, (int)groups}, 0);
  return nb::make_tuple(array(std::move(q), {groups * kGroup}), array(std::move(s), {groups}), array(std::move(init), {groups}));
}

// q: (rows, dim); k, v: (tokens, dim); row i sees tokens first[i] .. last[i].
nb::object attend(const std::string& isa, Matrix q, Matrix k, Matrix v, const std::vector<int>& first, const std::vector<int>& last,
                  const std::string& dtype) {
  const Kernels& kernels = choose_kernels(isa);
  const int rows = (int)q.shape(0), dim = (int)q.shape(1), tokens = (int)k.shape(0);
  DecoderSpec spec;
  spec.num_layers = spec.num_kv_heads = 1;
  spec.head_dim = dim;
  const int num_pages = (tokens + kPageTokens - 1) / kPageTokens;
  PagePool pool(spec, num_pages, number_named(dtype));
  std::vector<int32_t> pages(num_pages);
  for (int i = 0; i < num_pages; i++) pages[i] = num_pages - 1 - i;
  KvHead kv = pool.head(spec, 0, 0, pages.data());
  for (int t = 0; t < tokens; t++) kernels.write_kv(kv, t, k.data() + (size_t)t * dim, v.data() + (size_t)t * dim);
  std::vector<float> y((size_t)rows * dim), scratch(attention_scratch(rows, spec.padded_head_dim()));
  std::vector<size_t> offsets(rows);
  for (int r = 0; r < rows; r++) offsets[r] = (size_t)r * dim;
  kernels.attend(kv, q.data(), dim, first.data(), last.data(), rows, y.data(), offsets.data(), scratch.data());
  return array(std::move(y), {(size_t)rows, (size_t)dim});
}
}  // namespace

void bind_kernels(nb::module_& m) {
  nb::module_ k = m.def_submodule("kernels", "Single kernels of a chosen instruction set, for tests and measurements.");
  k.def("matmul", &matmul, nb::arg("isa"), nb::arg("codes"), nb::arg("scales").none(), nb::arg("dtype"), nb::arg("rows"), nb::arg("x"),
        nb::arg("activations") = "int8", nb::arg("epilogue") = "store", nb::arg("bias").none() = nb::none(),
        nb::arg("start").none() = nb::none());
  k.def("quantize", &quantize, nb::arg("isa"), nb::arg("x"));
  k.def("attend", &attend, nb::arg("isa"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("first"), nb::arg("last"), nb::arg("dtype"));
  k.def("rms_norm", [](const std::string& isa, Vector x, Vector weight, float eps) {
    std::vector<float> y(x.size());
    choose_kernels(isa).rms_norm(x.data(), weight.data(), y.data(), (int)x.size(), eps);
    size_t n = y.size();
    return array(std::move(y), {n});
  });
  k.def("rope", [](const std::string& isa, Vector x, Vector cos, Vector sin) {
    std::vector<float> y(x.data(), x.data() + x.size());
    choose_kernels(isa).rope(y.data(), (int)(x.size() / 2), cos.data(), sin.data());
    size_t n = y.size();
    return array(std::move(y), {n});
  });
  k.def("argmax", [](const std::string& isa, Vector x) { return choose_kernels(isa).argmax(x.data(), (int)x.size()); });
  k.def("exp_sum", [](const std::string& isa, Vector x, float shift, float inverse_temperature) {
    std::vector<float> e(x.size());
    double sum = choose_kernels(isa).exp_sum(x.data(), (int)x.size(), shift, inverse_temperature, e.data());
    size_t n = e.size();
    return nb::make_tuple(sum, array(std::move(e), {n}));
  });
}
