// What conversion needs beside quantizing: blocks of GGUF files, transposes, MD5 of several streams.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "convert/ggml_blocks.h"
#include "convert/md5.h"
#include "convert/transpose.h"

namespace nb = nanobind;
using namespace kq;

namespace {
using Target = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void expect(const char* what, size_t nbytes, size_t expected) {
  if (nbytes != expected)
    throw std::invalid_argument(std::string(what) + ": " + std::to_string(nbytes) + " bytes, expected " + std::to_string(expected));
}

void expect_aligned(const char* what, const void* data, size_t alignment) {
  if ((uintptr_t)data % alignment) throw std::invalid_argument(std::string(what) + " is not aligned");
}

void q4_0(const Bytes& blocks, const std::optional<Order>& order, size_t groups, const Target& codes, const Target& scales) {
  if (groups == 0 || blocks.size() % (18 * groups)) throw std::invalid_argument("blocks: no whole number of rows");
  const size_t stored = blocks.size() / (18 * groups), rows = order ? order->size() : stored;
  for (size_t i = 0; order && i < rows; i++)
    if (order->data()[i] < 0 || (size_t)order->data()[i] >= stored) throw std::invalid_argument("order: there is no such row");
  expect("codes", codes.size(), 16 * rows * groups);
  expect("scales", scales.size(), 2 * rows * groups);
  expect_aligned("codes", codes.data(), 4);
  expect_aligned("scales", scales.data(), 2);
  nb::gil_scoped_release release;
  q4_0_codes(blocks.data(), order ? order->data() : nullptr, rows, groups, (uint32_t*)codes.data(), (uint16_t*)scales.data());
}

void dequantize(const std::string& name, const Bytes& blocks, const Target& out) {
  const GgmlType* type = ggml_type_named(name.c_str());
  if (!type) throw std::invalid_argument("no kernel dequantizes " + name);
  const size_t count = blocks.size() / type->block_bytes;
  expect("blocks", blocks.size(), count * type->block_bytes);
  expect("out", out.size(), 4 * count * type->block_values);
  expect_aligned("out", out.data(), 4);
  nb::gil_scoped_release release;
  type->values(blocks.data(), count, (float*)out.data());
}

void md5(const Target& state, const std::vector<Bytes>& data) {
  const size_t count = data.size();
  if (count == 0 || count > kMd5Lanes) throw std::invalid_argument("1 to " + std::to_string(kMd5Lanes) + " streams at a time");
  expect("state", state.size(), 16 * count);
  expect_aligned("state", state.data(), 4);
  const uint8_t* sources[kMd5Lanes];
  for (size_t i = 0; i < count; i++) {
    expect("data", data[i].size(), data[0].size());
    sources[i] = data[i].data();
  }
  if (data[0].size() % kMd5Block) throw std::invalid_argument("data: no whole number of 64-byte blocks");
  nb::gil_scoped_release release;
  md5_update((uint32_t*)state.data(), sources, count, data[0].size() / kMd5Block);
}

void transpose(const Bytes& source, size_t rows, size_t columns, size_t begin, size_t end, size_t itemsize, const Target& out) {
  if (itemsize != 2 && itemsize != 4) throw std::invalid_argument("values of 2 or 4 bytes can be transposed");
  if (begin > end || end > columns) throw std::invalid_argument("there are no such columns");
  expect("source", source.size(), rows * columns * itemsize);
  expect("out", out.size(), rows * (end - begin) * itemsize);
  nb::gil_scoped_release release;
  transpose_columns(source.data(), rows, columns, begin, end, itemsize, out.data());
}
}  // namespace

void bind_convert(nb::module_& m) {
  m.attr("MD5_LANES") = kMd5Lanes;
  m.def("q4_0_codes", &q4_0, nb::arg("blocks"), nb::arg("order").none(), nb::arg("groups"), nb::arg("codes"), nb::arg("scales"),
        "Rows of Q4_0 as codes and scales of the format; flat views as bytes (see csrc/convert/ggml_blocks.h).");
  m.def("has_dequantizer", [](const std::string& name) { return ggml_type_named(name.c_str()) != nullptr; }, nb::arg("name"),
        "Whether `dequantize` knows the GGUF type of that name.");
  m.def("dequantize", &dequantize, nb::arg("name"), nb::arg("blocks"), nb::arg("out"),
        "Blocks of a GGUF type as float32 values; flat views as bytes.");
  m.def("md5_update", &md5, nb::arg("state"), nb::arg("data"),
        "Take the same number of whole 64-byte blocks into the MD5 state of each of several streams.");
  m.def("transpose_columns", &transpose, nb::arg("source"), nb::arg("rows"), nb::arg("columns"), nb::arg("begin"), nb::arg("end"),
        nb::arg("itemsize"), nb::arg("out"), "Columns [begin, end) of a matrix as rows; flat views as bytes.");
}
