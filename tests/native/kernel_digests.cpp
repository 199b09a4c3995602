// Every kernel on fixed inputs, on every instruction set this machine has: one line a case, its name and a digest of the bits.
//
// Fails where two instruction sets differ. Machines of other kinds must print the same lines: scripts/test-arm64 compares
// x86-64 with 64-bit ARM. Inputs are exact multiples of powers of two, so they are the same everywhere.
//   kernel_digests [instruction set ...]
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "kernels/quantize.h"
#include "runtime/model.h"
#include "runtime/pack.h"

using namespace kq;

namespace {
struct Random {
  uint64_t state;
  uint32_t next() {  // SplitMix64
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
  }
  float value() {  // a bell over about [-4, 4]
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += (int32_t)(next() >> 12);
    return (float)(sum - 2 * (1 << 20)) / (float)(1 << 19);
  }
  std::vector<float> values(size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = value();
    return x;
  }
  std::vector<uint8_t> bytes(size_t n) {
    std::vector<uint8_t> b(n);
    for (uint8_t& v : b) v = (uint8_t)next();
    return b;
  }
  // Finite values whose magnitudes fit weights and scales, as numbers of the given kind.
  std::vector<uint8_t> numbers(size_t n, Number number) {
    std::vector<uint8_t> out(n * size_of(number));
    for (size_t i = 0; i < n; i++) {
      const uint16_t f16 = (uint16_t)((next() & 0x83FF) | 0x2400 | (next() & 0x0C00)), bf16 = (uint16_t)((next() & 0x80FF) | 0x3C00);
      const float f32 = value() / 16;
      const void* from = number == Number::f32 ? (const void*)&f32 : number == Number::f16 ? &f16 : &bf16;
      std::memcpy(out.data() + i * size_of(number), from, size_of(number));
    }
    return out;
  }
};

// As printf.
std::string label(const char* format, ...) {
  char text[128];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return text;
}

class Digest {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const uint8_t* p = (const uint8_t*)values.data();
    for (size_t i = 0; i < values.size() * sizeof(T); i++) hash_ = (hash_ ^ p[i]) * 0x100000001B3ull;  // FNV-1a
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xCBF29CE484222325ull;
};

// Runs cases on every instruction set and prints a line for each.
class Report {
 public:
  explicit Report(std::vector<std::string> isas) : isas_(std::move(isas)) {}

  void run(const std::string& name, const std::function<void(const std::string& isa, Digest& digest)>& kernel) {
    uint64_t first = 0;
    for (const std::string& isa : isas_) {
      Digest digest;
      kernel(isa, digest);
      if (isa == isas_.front())
        first = digest.value();
      else if (digest.value() != first) {
        std::fprintf(stderr, "%s: %s differs from %s\n", name.c_str(), isa.c_str(), isas_.front().c_str());
        failed_ = true;
      }
    }
    std::printf("%s %016llx\n", name.c_str(), (unsigned long long)first);
  }
  bool failed() const { return failed_; }

 private:
  std::vector<std::string> isas_;
  bool failed_ = false;
};

const char* name_of(Number number) { return number == Number::f32 ? "f32" : number == Number::f16 ? "f16" : "bf16"; }
const char* name_of(KvNumber number) { return number == KvNumber::f32 ? "f32" : number == KvNumber::f16 ? "f16" : "i8"; }

struct Matrix {
  const char* name;
  int bits;  // 0: plain
  int group;
  Number number;
  bool awq = false;
};

// y of `columns` columns through one matrix, in int8 and in float32.
void products(Report& report, const Matrix& m, int rows, int inputs, int columns, Epilogue epilogue) {
  const bool gated = epilogue == Epilogue::gated;
  for (bool int8 : {true, false}) {
    if (int8 && !m.bits) continue;
    report.run(label("matmul %s %s %s %dx%d columns %d epilogue %d", m.name, name_of(m.number), int8 ? "int8" : "float32", rows,
                     inputs, columns, (int)epilogue),
               [&](const std::string& isa, Digest& digest) {
      const Kernels& kernels = choose_kernels(isa);
      Random random{(uint64_t)rows * 1000003 + inputs * 101 + columns};
      Arena arena;
      ThreadPool pool(1);
      Panels panels;
      const std::vector<float> x = random.values((size_t)columns * inputs), bias = random.values(rows);
      if (m.bits) {
        QuantizedRows q{nullptr, nullptr, m.number, rows, inputs, m.bits, m.group, m.awq ? CodeLayout::awq : CodeLayout::rows, nullptr};
        std::vector<uint8_t> codes = random.bytes(m.awq ? (size_t)inputs * rows / 2 : (size_t)rows * q.words() * 4);
        if (m.bits == 3)  // the two highest bits of a word of ten codes are never set
          for (size_t i = 3; i < codes.size(); i += 4) codes[i] &= 0x3F;
        const std::vector<uint8_t> scales = random.numbers((size_t)rows * q.groups(), m.number);
        const std::vector<uint8_t> zeros = random.bytes((size_t)q.groups() * rows / 2);
        q.codes = codes.data(), q.scales = scales.data(), q.zeros = m.awq ? zeros.data() : nullptr;
        panels = pack(std::vector<QuantizedRows>{q}, {.gated = gated}, false, arena, pool, kernels);
      } else {
        const std::vector<uint8_t> values = random.numbers((size_t)rows * inputs, m.number);
        panels = pack(std::vector<PlainRows>{{values.data(), m.number, rows, inputs}}, {.gated = gated}, false, arena, pool);
      }
      const int out_rows = gated ? rows / 2 : rows;
      std::vector<float> y = random.values((size_t)columns * out_rows);
      const Output out{y.data(), (size_t)out_rows, out_rows, bias.data(), epilogue, 0.75f, (Activation)(columns % 5)};
      const size_t padded = panels.padded_inputs(), groups = panels.groups;
      if (int8) {
        std::vector<int8_t> codes(columns * padded);
        std::vector<float> scales(columns * groups);
        std::vector<int32_t> init(columns * groups);
        const IntTiles tiles{codes.data(), scales.data(), init.data(), columns, (int)groups, panels.group};
        for (int c = 0; c < columns; c++) kernels.quantize_column(x.data() + (size_t)c * inputs, inputs, panels.zero_point, tiles, c, 0, panels.groups);
        std::vector<uint8_t> scratch(2 * kPanelRows * padded);
        kernels.matmul_int(panels, 0, panels.num_panels, tiles, out, scratch.data());
      } else {
        std::vector<float> values(columns * padded);
        const FloatTiles tiles{values.data(), columns, (int)padded};
        for (int c = 0; c < columns; c++) kernels.pack_column(x.data() + (size_t)c * inputs, inputs, tiles, c);
        kernels.matmul_float(panels, 0, panels.num_panels, tiles, out);
      }
      digest.add(y);
    });
  }
}

void all_products(Report& report) {
  const Matrix matrices[] = {
      {"4-bit", 4, 32, Number::f32},  {"4-bit", 4, 32, Number::f16},  {"4-bit", 4, 32, Number::bf16},
      {"3-bit", 3, 40, Number::f16},  {"8-bit", 8, 32, Number::f16},  {"8-bit", 8, 32, Number::bf16},
      {"awq", 4, 128, Number::f16, true}, {"plain", 0, 0, Number::f32}, {"plain", 0, 0, Number::f16}, {"plain", 0, 0, Number::bf16},
  };
  for (const Matrix& m : matrices) {
    for (int columns : {1, 2, 3, 4, 5, 7, 8, 12, 13}) products(report, m, 40, m.awq ? 256 : 101, columns, Epilogue::store);
    products(report, m, 32, 128, 6, Epilogue::gated);
    products(report, m, 24, 128, 3, Epilogue::add);
    for (int columns = 10; columns < 15; columns++) products(report, m, 16, 128, columns, Epilogue::activate);  // all activations
  }
}

// Zeros, subnormals, the largest numbers: a column whose scales are extreme.
void quantized_columns(Report& report) {
  for (int group : {32, 40})
    for (int inputs : {1, 31, 32, 101, 333, 768})
      report.run(label("quantize_column group %d inputs %d", group, inputs), [&](const std::string& isa, Digest& digest) {
        std::vector<float> x = Random{(uint64_t)inputs}.values(inputs);
        const float extremes[] = {3e38f, -3e38f, 1e-30f, 1e-45f, -0.0f};
        for (int i = 0; i < 5 && inputs > 5; i++) x[inputs - 1 - i] = extremes[i];
        const int groups = ((inputs + group - 1) / group + 1) / 2 * 2;
        std::vector<int8_t> codes(groups * group);
        std::vector<float> scales(groups);
        std::vector<int32_t> init(groups);
        choose_kernels(isa).quantize_column(x.data(), inputs, 7, {codes.data(), scales.data(), init.data(), 1, groups, group}, 0, 0, groups);
        digest.add(codes), digest.add(scales), digest.add(init);
      });
}

void attention(Report& report) {
  for (KvNumber number : {KvNumber::f32, KvNumber::f16, KvNumber::i8})
    for (int dim : {12, 64, 80})
      for (int rows : {1, 3, 4, 7, 13, 20})
        report.run(label("attend %s dim %d rows %d", name_of(number), dim, rows), [&](const std::string& isa, Digest& digest) {
          const Kernels& kernels = choose_kernels(isa);
          const int tokens = 300;
          Random random{(uint64_t)dim * 100 + rows};
          DecoderSpec spec;
          spec.num_layers = spec.num_kv_heads = 1;
          spec.head_dim = dim;
          const std::vector<int32_t> pages = {4, 2, 0, 1, 3};
          PagePool pool(spec, (int)pages.size(), number);
          const KvHead kv = pool.head(spec, 0, 0, pages.data());
          for (int t = 0; t < tokens; t++) {
            std::vector<float> key = random.values(dim), value = random.values(dim);
            if (t % 50 == 7) value[t % dim] *= 1e6f;  // beyond float16
            kernels.write_kv(kv, t, key.data(), value.data());
          }
          const std::vector<float> q = random.values((size_t)rows * dim);
          std::vector<int> first(rows), last(rows);
          std::vector<size_t> offsets(rows);
          for (int r = 0; r < rows; r++) {
            last[r] = r == 0 ? tokens - 1 : (int)(random.next() % tokens);
            first[r] = r % 2 ? (int)(random.next() % (last[r] + 1)) : 0;
            offsets[r] = (size_t)r * dim;
          }
          std::vector<float> y((size_t)rows * dim), scratch(attention_scratch(rows, spec.padded_head_dim()));
          const AttentionRows query{q.data(), (size_t)dim, first.data(), last.data(), rows, rows == 3 ? 5.0f : 0.0f};
          kernels.attend(kv, query, y.data(), offsets.data(), scratch.data());
          digest.add(y);
        });
}

void elementwise(Report& report) {
  for (int n : {1, 15, 16, 33, 768}) {
    const std::vector<float> x = Random{1}.values(2 * n), weight = Random{2}.values(2 * n), bias = Random{3}.values(2 * n);
    report.run(label("rms_norm %d", n), [&](const std::string& isa, Digest& digest) {
      std::vector<float> y(n);
      choose_kernels(isa).rms_norm(x.data(), weight.data(), y.data(), n, 1e-5f);
      digest.add(y);
    });
    report.run(label("layer_norm %d", n), [&](const std::string& isa, Digest& digest) {
      std::vector<float> y(n);
      choose_kernels(isa).layer_norm(x.data(), weight.data(), bias.data(), y.data(), n, 1e-5f);
      digest.add(y);
    });
    for (bool interleaved : {false, true})
      report.run(label("rope %d interleaved %d", n, interleaved), [&](const std::string& isa, Digest& digest) {
        std::vector<float> y = x;
        choose_kernels(isa).rope(y.data(), n, weight.data(), bias.data(), interleaved);
        digest.add(y);
      });
    report.run(label("soft_cap %d", n), [&](const std::string& isa, Digest& digest) {
      std::vector<float> y = x;
      choose_kernels(isa).soft_cap(y.data(), n, 1.5f);
      digest.add(y);
    });
    report.run(label("argmax %d", n), [&](const std::string& isa, Digest& digest) {
      std::vector<float> y(x.begin(), x.begin() + n);
      y[n / 2] = __builtin_nanf("");
      digest.add(std::vector<int32_t>{choose_kernels(isa).argmax(x.data(), n), choose_kernels(isa).argmax(y.data(), n)});
    });
  }
  report.run("exp_sum", [](const std::string& isa, Digest& digest) {
    std::vector<float> x, e;
    for (int i = -3000; i <= 2900; i++) x.push_back((float)i / 32);
    for (float special : {-__builtin_inff(), __builtin_inff(), __builtin_nanf(""), 0.0f, -0.0f, 1e-45f, -87.3f}) x.push_back(special);
    e.resize(x.size());
    const double sum = choose_kernels(isa).exp_sum(x.data(), (int)x.size(), 0.0f, 1.0f, e.data());
    digest.add(e), digest.add(std::vector<double>{sum});
  });
}

// Every bit pattern of 16 bits, and float32 ones around every rounding of the narrower kinds, NaN and infinities included.
std::vector<uint8_t> patterns(Number number) {
  std::vector<uint8_t> out;
  const auto put = [&](uint32_t bits) { out.insert(out.end(), (uint8_t*)&bits, (uint8_t*)&bits + size_of(number)); };
  for (uint32_t high = 0; high < 0x10000; high++) {
    if (number != Number::f32) {
      put(high);
    } else if (high % 8 == 0 || (high & 0x7F80) == 0x7F80) {
      for (uint32_t low : {0u, 1u, 0xFFFu, 0x1000u, 0x1001u, 0x3000u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) put(high << 16 | low);
    }
  }
  return out;
}

void conversion(Report& report) {
  for (Number from : {Number::f32, Number::f16, Number::bf16})
    for (Number to : {Number::f32, Number::f16, Number::bf16}) {
      const std::vector<uint8_t> source = patterns(from);
      const size_t n = source.size() / size_of(from);
      report.run(label("cast_values %s to %s", name_of(from), name_of(to)), [&](const std::string& isa, Digest& digest) {
        std::vector<uint8_t> out(n * size_of(to));
        quantize_kernels_named(choose_kernels(isa).name)->cast_values(source.data(), from, to, n, out.data());
        digest.add(out);
      });
      for (int bits : {3, 4, 8})
        for (bool extremes : {false, true})
          report.run(label("quantize_rows %s to %s bits %d extremes %d", name_of(from), name_of(to), bits, extremes),
                     [&](const std::string& isa, Digest& digest) {
            const size_t rows = extremes ? n / 101 : 20, width = 101, groups = (width + group_of(bits) - 1) / group_of(bits);
            const std::vector<uint8_t> ordinary = Random{(uint64_t)bits}.numbers(rows * width, from);
            std::vector<uint32_t> codes(rows * groups * words_of(bits));
            std::vector<uint8_t> scales(rows * groups * size_of(to));
            quantize_kernels_named(choose_kernels(isa).name)
                ->quantize_rows(extremes ? source.data() : ordinary.data(), from, to, bits, bits == 4, rows, width, codes.data(),
                                scales.data());
            digest.add(codes), digest.add(scales);
          });
    }
}
}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> isas(argv + 1, argv + argc);
  if (isas.empty()) isas = usable_isas();
  std::string names;
  for (const std::string& isa : isas) names += " " + isa;
  std::fprintf(stderr, "instruction sets:%s\n", names.c_str());
  Report report(isas);
  quantized_columns(report);
  all_products(report);
  attention(report);
  elementwise(report);
  conversion(report);
  return report.failed();
}
