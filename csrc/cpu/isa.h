// Which instruction sets this build holds and this machine has.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace kq {
// Usable instruction sets, worst first: "portable", then "avx2", "avx512vnni" (x86-64) or "neon", "neon-dotprod", "neon-i8mm"
// (64-bit ARM).
std::vector<std::string> usable_isas();

// The kernels to use: `name` if given, else the environment's KUMQUANT_ISA, else the best. Throws std::invalid_argument
// that names the usable ones.
const Kernels& choose_kernels(const std::string& name);
// Bytes of the last cache, shared or not; 0 when the system does not say.
size_t last_cache_bytes();
}  // namespace kq
