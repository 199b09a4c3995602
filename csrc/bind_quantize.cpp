// Quantizers and casts for conversion: `kumquant._native.quantize_rows` and `cast_values`.
#include "bindings.h"

#include <nanobind/stl/string.h>

#include "cpu/isa.h"
#include "kernels/quantize.h"

namespace nb = nanobind;

using namespace kq;

namespace {
using Target = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The table of the instruction set `isa`, of KUMQUANT_ISA when empty, else of the best.
const QuantizeKernels& chosen(const std::string& isa) {
  const QuantizeKernels* kernels = quantize_kernels_named(choose_kernels(isa).name);
  if (!kernels) throw std::invalid_argument("this build has no quantizer for the instruction set");
  return *kernels;
}

void expect(const char* what, size_t nbytes, size_t expected, const void* data, size_t alignment) {
  if (nbytes != expected)
    throw std::invalid_argument(std::string(what) + ": " + std::to_string(nbytes) + " bytes, expected " + std::to_string(expected));
  if ((uintptr_t)data % alignment) throw std::invalid_argument(std::string(what) + " is not aligned");
}

void quantize_rows(const Bytes& source, const std::string& source_dtype, size_t rows, size_t width, const std::string& model_dtype,
                   int bits, bool unrounded_divisor, const Target& codes, const Target& scales, const std::string& isa) {
  const QuantizeKernels& kernels = chosen(isa);
  const Number from = number_named(source_dtype), model = number_named(model_dtype);
  if (group_of(bits) == 0) throw std::invalid_argument("no kernel quantizes to " + std::to_string(bits) + " bits");
  const size_t groups = (width + group_of(bits) - 1) / group_of(bits);
  expect("source", source.size(), rows * width * size_of(from), source.data(), size_of(from));
  expect("codes", codes.size(), rows * groups * words_of(bits) * 4, codes.data(), 4);
  expect("scales", scales.size(), rows * groups * size_of(model), scales.data(), size_of(model));
  nb::gil_scoped_release release;
  kernels.quantize_rows(source.data(), from, model, bits, unrounded_divisor, rows, width, (uint32_t*)codes.data(), scales.data());
}

void cast_values(const Bytes& source, const std::string& source_dtype, const std::string& model_dtype, const Target& out,
                 const std::string& isa) {
  const QuantizeKernels& kernels = chosen(isa);
  const Number from = number_named(source_dtype), model = number_named(model_dtype);
  const size_t n = source.size() / size_of(from);
  expect("source", source.size(), n * size_of(from), source.data(), size_of(from));
  expect("out", out.size(), n * size_of(model), out.data(), size_of(model));
  nb::gil_scoped_release release;
  kernels.cast_values(source.data(), from, model, n, out.data());
}
}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize_rows", &quantize_rows, nb::arg("source"), nb::arg("source_dtype"), nb::arg("rows"), nb::arg("width"),
        nb::arg("model_dtype"), nb::arg("bits"), nb::arg("unrounded_divisor"), nb::arg("codes"), nb::arg("scales"), nb::arg("isa") = "",
        "Quantize rows in groups to 3, 4 or 8 bits; all arrays are flat views as bytes (see csrc/kernels/quantize.h).");
  m.def("cast_values", &cast_values, nb::arg("source"), nb::arg("source_dtype"), nb::arg("model_dtype"), nb::arg("out"),
        nb::arg("isa") = "", "Cast values to the model dtype; all arrays are flat views as bytes.");
}
