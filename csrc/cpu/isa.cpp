#include "cpu/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "kernels/quantize.h"

#if defined(KUMQUANT_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace kq {
namespace portable {
extern const Kernels table;
extern const QuantizeKernels quantize_table;
}
#if defined(KUMQUANT_X86)
namespace avx2 {
extern const Kernels table;
extern const QuantizeKernels quantize_table;
}
namespace avx512 {
extern const Kernels table;
extern const QuantizeKernels quantize_table;
}
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(KUMQUANT_ARM64)
namespace neon {
extern const Kernels table;
extern const QuantizeKernels quantize_table;
}
namespace neon_dotprod {
extern const Kernels table;
}
namespace neon_i8mm {
extern const Kernels table;
}
#if defined(__linux__)
static bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
static bool has_i8mm() { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#elif defined(__APPLE__)
static bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
static bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
static bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#else
static bool has_dotprod() { return false; }
static bool has_i8mm() { return false; }
#endif
#endif

namespace {
struct Isa {
  const char* name;
  const Kernels* kernels;
  const QuantizeKernels* quantize;
  bool usable;
};

// Worst first.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
      {"portable", &portable::table, &portable::quantize_table, true},
#if defined(KUMQUANT_X86)
      {"avx2", &avx2::table, &avx2::quantize_table, has_avx2()},
      {"avx512vnni", &avx512::table, &avx512::quantize_table, has_avx512()},
#elif defined(KUMQUANT_ARM64)
      {"neon", &neon::table, &neon::quantize_table, true},
      {"neon-dotprod", &neon_dotprod::table, &neon::quantize_table, has_dotprod()},
      {"neon-i8mm", &neon_i8mm::table, &neon::quantize_table, has_dotprod() && has_i8mm()},
#endif
  };
  return all;
}
}  // namespace

static const Isa* usable(const char* name) {
  for (const Isa& isa : isas())
    if (isa.usable && !std::strcmp(name, isa.name)) return &isa;
  return nullptr;
}

const Kernels* kernels_named(const char* name) {
  const Isa* isa = usable(name);
  return isa ? isa->kernels : nullptr;
}

const QuantizeKernels* quantize_kernels_named(const char* name) {
  const Isa* isa = usable(name);
  return isa ? isa->quantize : nullptr;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.usable) names.push_back(isa.name);
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

size_t last_cache_bytes() {
  size_t bytes = 0;
#ifdef __linux__  // sysconf(_SC_LEVEL3_CACHE_SIZE) counts the caches of all chiplets of a virtual machine's host
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%zu", &bytes) != 1) bytes = 0;
    std::fclose(file);
  }
  bytes <<= 10;  // "32768K"
#elif defined(__APPLE__)
  size_t size = sizeof bytes;
  if (sysctlbyname("hw.perflevel0.l2cachesize", &bytes, &size, nullptr, 0) != 0) bytes = 0;
#endif
  return bytes;
}
}  // namespace kq
