// What the files that know Python share: flat views of arrays, and names to enumerations.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace kq {

using Bytes = nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Floats = nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// These throw std::invalid_argument for a name that is none.
inline Number number_named(const std::string& dtype) {
  if (dtype == "float32") return Number::f32;
  if (dtype == "float16") return Number::f16;
  if (dtype == "bfloat16") return Number::bf16;
  throw std::invalid_argument("dtype " + dtype + " is not float32, float16 or bfloat16");
}

inline KvNumber kv_number_named(const std::string& dtype) {
  if (dtype == "float32") return KvNumber::f32;
  if (dtype == "float16") return KvNumber::f16;
  if (dtype == "int8") return KvNumber::i8;
  throw std::invalid_argument("keys and values are float32, float16 or int8, not " + dtype);
}

inline Activation activation_named(const std::string& name) {
  const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};
  for (int i = 0; i < 5; i++)
    if (name == names[i]) return (Activation)i;
  throw std::invalid_argument("unknown activation " + name);
}
}  // namespace kq
