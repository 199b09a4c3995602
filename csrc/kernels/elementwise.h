// RMS norm, rotary embedding, and the two reductions that choosing a token needs.
#pragma once
#include "kernels/kernels.h"
#include "kernels/packing.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

// y = x / sqrt(mean(x^2) + eps) * weight; the sum of squares runs in sixteen lanes, index modulo 16.
static void rms_norm(const float* x, const float* weight, float* y, int n, float eps) {
  F16 acc = zero();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    F16 v = load(x + i);
    acc = fma(v, v, acc);
  }
  if (i < n) {
    F16 v = load_n(x + i, n - i);
    acc = fma(v, v, acc);
  }
  const F16 scale = set1(1.0f / __builtin_sqrtf(reduce_add(acc) / (float)n + eps));
  for (i = 0; i + 16 <= n; i += 16) store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
  if (i < n) store_n(y + i, mul(mul(load_n(x + i, n - i), scale), load_n(weight + i, n - i)), n - i);
}

// y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias
static void layer_norm(const float* x, const float* weight, const float* bias, float* y, int n, float eps) {
  F16 acc = zero();
  for (int i = 0; i < n; i += 16) acc = add(acc, load_n(x + i, min_int(16, n - i)));
  const F16 mean = set1(reduce_add(acc) / (float)n);
  acc = zero();
  for (int i = 0; i < n; i += 16) {
    const int m = min_int(16, n - i);
    F16 d = sub(load_n(x + i, m), mean);
    if (m < 16) {  // lanes past the end would add mean^2
      float t[16];
      store(t, d);
      d = load_n(t, m);
    }
    acc = fma(d, d, acc);
  }
  const F16 scale = set1(1.0f / __builtin_sqrtf(reduce_add(acc) / (float)n + eps));
  for (int i = 0; i < n; i += 16) {
    const int m = min_int(16, n - i);
    F16 v = mul(mul(sub(load_n(x + i, m), mean), scale), load_n(weight + i, m));
    store_n(y + i, bias ? add(v, load_n(bias + i, m)) : v, m);
  }
}

static void soft_cap(float* x, int n, float cap) {
  for (int i = 0; i < n; i += 16) {
    const int m = min_int(16, n - i);
    store_n(x + i, capped(load_n(x + i, m), cap), m);
  }
}

static void rope(float* x, int half, const float* cos, const float* sin, bool interleaved) {
  if (interleaved) {
    for (int i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    return;
  }
  for (int i = 0; i < half; i += 16) {
    int n = min_int(16, half - i);
    F16 a = load_n(x + i, n), b = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(x + i, sub(mul(a, c), mul(b, s)), n);
    store_n(x + half + i, add(mul(b, c), mul(a, s)), n);
  }
}

static int argmax(const float* x, int n) {
  F16 high = set1(-__builtin_inff());
  int i = 0;
  for (; i + 16 <= n; i += 16) high = max(load(x + i), high);
  float top = reduce_max(high);
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  for (i = 0; i < n; i++)
    if (x[i] == top) return i;
  return 0;
}

// sum of exp((x - shift) * inverse_temperature): float32 exponentials, added in float64 in sixteen lanes, index modulo 16.
static double exp_sum(const float* x, int n, float shift, float inverse_temperature, float* stored) {
  double lanes[16] = {};
  float e[16];
  for (int i = 0; i < n; i += 16) {
    int m = min_int(16, n - i);
    store(e, exp(mul(sub(load_n(x + i, m), set1(shift)), set1(inverse_temperature))));
    for (int l = 0; l < m; l++) lanes[l] += (double)e[l];
    if (stored)
      for (int l = 0; l < m; l++) stored[i + l] = e[l];
  }
  for (int step = 8; step; step /= 2)
    for (int l = 0; l < step; l++) lanes[l] += lanes[l + step];
  return lanes[0];
}

extern const Kernels table;
const Kernels table = {
#if defined(KQ_ISA_AVX512)
    "avx512vnni",
#elif defined(KQ_ISA_AVX2)
    "avx2",
#elif defined(KQ_NEON_I8MM)
    "neon-i8mm",
#elif defined(KQ_NEON_DOTPROD)
    "neon-dotprod",
#elif defined(KQ_ISA_NEON)
    "neon",
#else
    "portable",
#endif
    kIntCols, kFloatCols, quantize_column, pack_column, pack_rows, matmul_int, matmul_float, rms_norm, layer_norm, rope, soft_cap,
    write_kv, attend, attend_chunks, join_chunks, argmax, exp_sum};
}  // namespace KQ_ISA
}  // namespace kq
