#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace kq {
namespace portable {
extern const Kernels table;
}
#ifdef KUMQUANT_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#endif

const Kernels* kernels_named(const char* name) {
  if (!std::strcmp(name, "portable")) return &portable::table;
#ifdef KUMQUANT_X86
  if (!std::strcmp(name, "avx2") && has_avx2()) return &avx2::table;
  if (!std::strcmp(name, "avx512vnni") && has_avx512()) return &avx512::table;
#endif
  return nullptr;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const char* name : {"portable", "avx2", "avx512vnni"})
    if (kernels_named(name)) names.push_back(name);
  return names;
}

const Kernels& choose_kernels(const std::string& wanted) {
  std::string name = wanted;
  if (name.empty())
    if (const char* forced = std::getenv("KUMQUANT_ISA")) name = forced;
  std::vector<std::string> usable = usable_isas();
  if (name.empty()) name = usable.back();
  if (const Kernels* kernels = kernels_named(name.c_str())) return *kernels;
  std::string message = "instruction set " + name + " is not usable on this machine; usable:";
  for (const std::string& u : usable) message += " " + u;
  throw std::invalid_argument(message);
}
}  // namespace kq
