// Weight panels times activation columns. Every output is computed in one order whatever the number of columns, the tile
// it falls in, or the thread: over groups (int8) or inputs modulo 4 (float32) from first to last.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

template <Number S>
static inline F16 load_number(const uint8_t* p) {
  if constexpr (S == Number::f32) return load((const float*)p);
  if constexpr (S == Number::f16) return load_f16((const uint16_t*)p);
  if constexpr (S == Number::bf16) return load_bf16((const uint16_t*)p);
}
template <Number S>
constexpr int kScaleBytes = kPanelRows * (S == Number::f32 ? 4 : 2);
template <Number S>
constexpr int kBlockBytes = 2 * (256 + kScaleBytes<S>);  // two groups

// int8: acc = fma(float(exact dot of the group), weight scale * activation scale, acc), group after group.
template <int NC, Number S, bool UNPACKED>
static inline void int_tile(const uint8_t* panel, const uint8_t* unpacked, const int8_t* codes, const float* scales,
                            const int32_t* init, int groups, F16* result) {
  F16 acc[NC];
  for (int c = 0; c < NC; c++) acc[c] = zero();
  for (int g = 0; g < groups; g++) {
    const uint8_t* block = panel + (size_t)(g / 2) * kBlockBytes<S>;
    const uint8_t* lines = block + (g % 2) * 256;
    if constexpr (!UNPACKED) {
      // 2 KiB ahead; past the end of the weights this is harmless.
      for (int i = 0; i < kBlockBytes<S> / 2; i += 64) prefetch(lines + 2048 + i);
    }
    GroupDot dot[NC];
#pragma GCC unroll 16
    for (int c = 0; c < NC; c++) dot[c].start(init[c]);
#pragma GCC unroll 8
    for (int b = 0; b < 4; b++) {
      B64 low, high;
      if constexpr (UNPACKED) {
        low = load_bytes(unpacked + (size_t)g * 512 + b * 128);
        high = load_bytes(unpacked + (size_t)g * 512 + b * 128 + 64);
      } else {
        B64 line = load_bytes(lines + b * 64);
        low = low_nibbles(line);
        high = high_nibbles(line);
      }
#pragma GCC unroll 16
      for (int c = 0; c < NC; c++) dot[c].add(low, codes + (b * 2 * NC + c) * 4);
#pragma GCC unroll 16
      for (int c = 0; c < NC; c++) dot[c].add(high, codes + ((b * 2 + 1) * NC + c) * 4);
    }
    F16 ws = load_number<S>(block + 512 + (g % 2) * kScaleBytes<S>);
#pragma GCC unroll 16
    for (int c = 0; c < NC; c++) acc[c] = fma(dot[c].finish(init[c]), mul(ws, set1(scales[c])), acc[c]);
    codes += kGroup * NC;
    scales += NC;
    init += NC;
  }
  for (int c = 0; c < NC; c++) result[c] = acc[c];
}

// float32 activations, quantized weights: per group four running sums (inputs modulo 4) of (code - 7) * x, added as a tree,
// then one multiply-add by the scale.
template <int NC, Number S>
static inline void float_tile_q4(const uint8_t* panel, const float* x, int groups, F16* result) {
  F16 acc[NC];
  for (int c = 0; c < NC; c++) acc[c] = zero();
  const F16 seven = set1(7.0f);
  for (int g = 0; g < groups; g++) {
    const uint8_t* block = panel + (size_t)(g / 2) * kBlockBytes<S>;
    const uint8_t* lines = block + (g % 2) * 256;
    F16 s0[NC], s1[NC], s2[NC], s3[NC];
    for (int c = 0; c < NC; c++) s0[c] = s1[c] = s2[c] = s3[c] = zero();
    for (int b = 0; b < 8; b++) {
      B64 line = load_bytes(lines + (b / 2) * 64);
      B64 quad = b % 2 ? high_nibbles(line) : low_nibbles(line);
      F16 w0 = sub(byte_to_float<0>(quad), seven), w1 = sub(byte_to_float<1>(quad), seven);
      F16 w2 = sub(byte_to_float<2>(quad), seven), w3 = sub(byte_to_float<3>(quad), seven);
#pragma GCC unroll 4
      for (int c = 0; c < NC; c++) {
        s0[c] = fma(w0, set1(x[c]), s0[c]);
        s1[c] = fma(w1, set1(x[NC + c]), s1[c]);
        s2[c] = fma(w2, set1(x[2 * NC + c]), s2[c]);
        s3[c] = fma(w3, set1(x[3 * NC + c]), s3[c]);
      }
      x += 4 * NC;
    }
    F16 ws = load_number<S>(block + 512 + (g % 2) * kScaleBytes<S>);
    for (int c = 0; c < NC; c++) acc[c] = fma(add(add(s0[c], s1[c]), add(s2[c], s3[c])), ws, acc[c]);
  }
  for (int c = 0; c < NC; c++) result[c] = acc[c];
}

// float32 activations, plain weights: four running sums (inputs modulo 4), added as a tree.
template <int NC, Number S>
static inline void float_tile_plain(const uint8_t* panel, const float* x, int inputs, F16* result) {
  constexpr int step = kScaleBytes<S>;
  F16 s0[NC], s1[NC], s2[NC], s3[NC];
  for (int c = 0; c < NC; c++) s0[c] = s1[c] = s2[c] = s3[c] = zero();
  for (int k = 0; k < inputs; k += 4) {
    prefetch(panel + 2048);
    if constexpr (step == 64) {
      prefetch(panel + 2048 + 64);
      prefetch(panel + 2048 + 128);
      prefetch(panel + 2048 + 192);
    } else {
      prefetch(panel + 2048 + 64);
    }
    F16 w0 = load_number<S>(panel), w1 = load_number<S>(panel + step);
    F16 w2 = load_number<S>(panel + 2 * step), w3 = load_number<S>(panel + 3 * step);
#pragma GCC unroll 4
    for (int c = 0; c < NC; c++) {
      s0[c] = fma(w0, set1(x[c]), s0[c]);
      s1[c] = fma(w1, set1(x[NC + c]), s1[c]);
      s2[c] = fma(w2, set1(x[2 * NC + c]), s2[c]);
      s3[c] = fma(w3, set1(x[3 * NC + c]), s3[c]);
    }
    x += 4 * NC;
    panel += 4 * step;
  }
  for (int c = 0; c < NC; c++) result[c] = add(add(s0[c], s1[c]), add(s2[c], s3[c]));
}

static inline F16 silu(F16 g) { return div(g, add(set1(1.0f), exp(sub(zero(), g)))); }

// Writes rows [row, row + 16) of nc columns. up: the second panel of a gated pair.
static inline void finish(const Output& out, int row, int column, int nc, const F16* acc, const F16* up) {
  int n = min_int(kPanelRows, out.rows - row);
  F16 bias = out.bias ? load_n(out.bias + row, n) : zero();
  F16 up_bias = out.bias && up ? load_n(out.bias + out.rows + row, n) : zero();
  for (int c = 0; c < nc; c++) {
    float* y = out.y + (size_t)(column + c) * out.stride + row;
    F16 value = out.bias ? add(acc[c], bias) : acc[c];
    if (up) value = mul(silu(value), out.bias ? add(up[c], up_bias) : up[c]);
    if (n == kPanelRows) {
      if (out.epilogue == Epilogue::add) value = add(load(y), value);
      store(y, value);
    } else {
      if (out.epilogue == Epilogue::add) value = add(load_n(y, n), value);
      store_n(y, value, n);
    }
  }
}

template <Number S>
static void unpack_panel(const uint8_t* panel, int groups, uint8_t* unpacked) {
  for (int g = 0; g < groups; g++) {
    const uint8_t* lines = panel + (size_t)(g / 2) * kBlockBytes<S> + (g % 2) * 256;
    for (int b = 0; b < 4; b++) {
      B64 line = load_bytes(lines + b * 64);
      store_bytes(unpacked + b * 128, low_nibbles(line));
      store_bytes(unpacked + b * 128 + 64, high_nibbles(line));
    }
    unpacked += 512;
  }
}

// Calls f(integral_constant) with nc in 1 .. Max as a compile-time value.
template <int N>
struct Const {
  static constexpr int value = N;
};
template <int Max, class F>
static inline void with_columns(int nc, F&& f) {
  if (nc == Max) return f(Const<Max>{});
  if constexpr (Max > 1) with_columns<Max - 1>(nc, f);
}

template <Number S>
static void matmul_int_s(const Panels& w, int begin, int end, const IntTiles& x, const Output& out, uint8_t* scratch) {
  const int step = out.epilogue == Epilogue::gated ? 2 : 1;
  const bool unpacked = x.columns > kIntCols;
  const size_t codes_per_column = (size_t)x.groups * kGroup;
  for (int p = begin; p < end; p += step) {
    const uint8_t* panel = w.data + (size_t)p * w.panel_bytes;
    if (unpacked)
      for (int i = 0; i < step; i++)
        unpack_panel<S>(panel + i * w.panel_bytes, x.groups, scratch + i * codes_per_column * kPanelRows);
    for (int c0 = 0; c0 < x.columns; c0 += kIntCols) {
      int nc = min_int(kIntCols, x.columns - c0);
      const int8_t* codes = x.codes + c0 * codes_per_column;
      const float* scales = x.scales + (size_t)c0 * x.groups;
      const int32_t* init = x.init + (size_t)c0 * x.groups;
      F16 acc[2][kIntCols];
      with_columns<kIntCols>(nc, [&](auto n) {
        constexpr int NC = decltype(n)::value;
        for (int i = 0; i < step; i++) {
          if (unpacked)
            int_tile<NC, S, true>(panel + i * w.panel_bytes, scratch + i * codes_per_column * kPanelRows, codes, scales, init,
                                  x.groups, acc[i]);
          else
            int_tile<NC, S, false>(panel + i * w.panel_bytes, nullptr, codes, scales, init, x.groups, acc[i]);
        }
      });
      finish(out, p / step * kPanelRows, c0, nc, acc[0], step == 2 ? acc[1] : nullptr);
    }
  }
}

template <Number S>
static void matmul_float_s(const Panels& w, int begin, int end, const FloatTiles& x, const Output& out) {
  const int step = out.epilogue == Epilogue::gated ? 2 : 1;
  for (int p = begin; p < end; p += step) {
    const uint8_t* panel = w.data + (size_t)p * w.panel_bytes;
    for (int c0 = 0; c0 < x.columns; c0 += kFloatCols) {
      int nc = min_int(kFloatCols, x.columns - c0);
      const float* values = x.values + (size_t)c0 * x.inputs;
      F16 acc[2][kFloatCols];
      with_columns<kFloatCols>(nc, [&](auto n) {
        constexpr int NC = decltype(n)::value;
        for (int i = 0; i < step; i++) {
          if (w.quantized)
            float_tile_q4<NC, S>(panel + i * w.panel_bytes, values, w.groups, acc[i]);
          else
            float_tile_plain<NC, S>(panel + i * w.panel_bytes, values, (w.inputs + 3) / 4 * 4, acc[i]);
        }
      });
      finish(out, p / step * kPanelRows, c0, nc, acc[0], step == 2 ? acc[1] : nullptr);
    }
  }
}

static void matmul_int(const Panels& w, int begin, int end, const IntTiles& x, const Output& out, uint8_t* scratch) {
  switch (w.number) {
    case Number::f32: return matmul_int_s<Number::f32>(w, begin, end, x, out, scratch);
    case Number::f16: return matmul_int_s<Number::f16>(w, begin, end, x, out, scratch);
    case Number::bf16: return matmul_int_s<Number::bf16>(w, begin, end, x, out, scratch);
  }
}
static void matmul_float(const Panels& w, int begin, int end, const FloatTiles& x, const Output& out) {
  switch (w.number) {
    case Number::f32: return matmul_float_s<Number::f32>(w, begin, end, x, out);
    case Number::f16: return matmul_float_s<Number::f16>(w, begin, end, x, out);
    case Number::bf16: return matmul_float_s<Number::bf16>(w, begin, end, x, out);
  }
}

// Symmetric int8 per 32 inputs: scale = max|x| / 127, code = round half even(x * (127 / max|x|)).
static void quantize_column(const float* x, int inputs, int zero_point, const IntTiles& tiles, int column) {
  const int first = column / kIntCols * kIntCols, w = min_int(kIntCols, tiles.columns - first), c = column - first;
  int8_t* codes = tiles.codes + (size_t)first * tiles.groups * kGroup + c * 4;
  float* scales = tiles.scales + (size_t)first * tiles.groups + c;
  int32_t* init = tiles.init + (size_t)first * tiles.groups + c;
  for (int g = 0; g < tiles.groups; g++) {
    int at = g * kGroup, n = max_int(0, min_int(kGroup, inputs - at));
    F16 a, b;
    if (n == kGroup) {
      a = load(x + at), b = load(x + at + 16);
    } else {
      a = load_n(x + at, min_int(16, n)), b = n > 16 ? load_n(x + at + 16, n - 16) : zero();
    }
    float top = reduce_max(max(abs(a), abs(b)));
    float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    const F16 lo = set1(-127.0f), hi = set1(127.0f);
    I16 qa = round_to_int(min(max(mul(a, set1(inverse)), lo), hi)), qb = round_to_int(min(max(mul(b, set1(inverse)), lo), hi));
    int8_t q[kGroup];
    store_i8(q, qa);
    store_i8(q + 16, qb);
    for (int i = 0; i < kGroup / 4; i++) __builtin_memcpy(codes + i * 4 * w, q + 4 * i, 4);
    *scales = top / 127.0f;
    *init = -zero_point * (reduce_add(qa) + reduce_add(qb));
    codes += kGroup * w;
    scales += w;
    init += w;
  }
}

static void pack_column(const float* x, int inputs, const FloatTiles& tiles, int column) {
  const int first = column / kFloatCols * kFloatCols, w = min_int(kFloatCols, tiles.columns - first);
  float* values = tiles.values + (size_t)first * tiles.inputs + (column - first);
  for (int i = 0; i < tiles.inputs; i++) values[(size_t)i * w] = i < inputs ? x[i] : 0.0f;
}

}  // namespace KQ_ISA
}  // namespace kq
