// Weight panels times activation columns. Every output is computed in one order whatever the number of columns, the tile
// it falls in, or the thread: over groups (int8) or inputs modulo 4 (float32) from first to last.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace kq {
namespace KQ_ISA {

template <bool B, class X, class Y>
struct If {
  using type = X;
};
template <class X, class Y>
struct If<false, X, Y> {
  using type = Y;
};
template <class T>
constexpr bool is_void = false;
template <>
constexpr bool is_void<void> = true;

template <Number S>
static inline F16 load_number(const uint8_t* p) {
  if constexpr (S == Number::f32) return load((const float*)p);
  if constexpr (S == Number::f16) return load_f16((const uint16_t*)p);
  if constexpr (S == Number::bf16) return load_bf16((const uint16_t*)p);
}
// The layout of a group-quantized panel (kernels.h), known at compile time.
template <Number S, int LINES, bool BYTES, bool ZEROS>
struct Format {
  static constexpr Number scale = S;
  static constexpr int lines = LINES;
  static constexpr bool bytes = BYTES;  // a line is one quad of inputs, else two in nibbles
  static constexpr bool zeros = ZEROS;
  static constexpr int quads = BYTES ? LINES : 2 * LINES;
  static constexpr int group = 4 * quads;
  static constexpr int code_bytes = 64 * LINES;
  static constexpr int scale_bytes = kPanelRows * (S == Number::f32 ? 4 : 2);
  static constexpr int block = 2 * (code_bytes + scale_bytes + (ZEROS ? kPanelRows : 0));
  static inline const uint8_t* codes_of(const uint8_t* panel, int g) { return panel + (size_t)(g / 2) * block + (g % 2) * code_bytes; }
  static inline F16 scale_of(const uint8_t* panel, int g) {
    return load_number<S>(panel + (size_t)(g / 2) * block + 2 * code_bytes + (g % 2) * scale_bytes);
  }
  static inline I16 zeros_of(const uint8_t* panel, int g) {
    return load_u8(panel + (size_t)(g / 2) * block + 2 * (code_bytes + scale_bytes) + (g % 2) * kPanelRows);
  }
};

// int8: acc = fma(float(exact dot of the group), weight scale * activation scale, acc), group after group.
template <int NC, class F, bool UNPACKED>
static inline void int_tile(const uint8_t* panel, const uint8_t* unpacked, const int8_t* codes, const float* scales,
                            const int32_t* init, int groups, F16* result) {
  using Dot = typename If<F::bytes, GroupDotWide, GroupDot>::type;
  F16 acc[NC];
  for (int c = 0; c < NC; c++) acc[c] = zero();
  for (int g = 0; g < groups; g++) {
    const uint8_t* lines = F::codes_of(panel, g);
    if constexpr (!UNPACKED) {
      // 2 KiB ahead; past the end of the weights this is harmless.
      for (int i = 0; i < F::block / 2; i += 64) prefetch(lines + 2048 + i);
    }
    Dot dot[NC];
#pragma GCC unroll 16
    for (int c = 0; c < NC; c++) dot[c].start(F::zeros ? 0 : init[c]);
#pragma GCC unroll 8
    for (int b = 0; b < F::lines; b++) {
      if constexpr (F::bytes) {
        add_columns<NC>(dot, load_bytes(lines + b * 64), codes + b * NC * 4);
      } else {
        B64 low, high;
        if constexpr (UNPACKED) {
          low = load_bytes(unpacked + ((size_t)g * F::quads + 2 * b) * 64);
          high = load_bytes(unpacked + ((size_t)g * F::quads + 2 * b + 1) * 64);
        } else {
          B64 line = load_bytes(lines + b * 64);
          low = low_nibbles(line);
          high = high_nibbles(line);
        }
        add_columns<NC>(dot, low, codes + b * 2 * NC * 4);
        add_columns<NC>(dot, high, codes + (b * 2 + 1) * NC * 4);
      }
    }
    F16 ws = F::scale_of(panel, g);
    if constexpr (F::zeros) {
      I16 z = F::zeros_of(panel, g);
      for (int c = 0; c < NC; c++)
        acc[c] = fma(to_float(iadd(dot[c].sum(0), imul(z, iset1(init[c])))), mul(ws, set1(scales[c])), acc[c]);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < NC; c++) acc[c] = fma(to_float(dot[c].sum(init[c])), mul(ws, set1(scales[c])), acc[c]);
    }
    codes += F::group * NC;
    scales += NC;
    init += NC;
  }
  for (int c = 0; c < NC; c++) result[c] = acc[c];
}

// The same for one or two columns and codes in nibbles, where weights are read as fast as memory gives them: low and high
// nibbles have a sum each, so that chains of dot products are short, and the loop steps by blocks. It looks far enough ahead to
// keep the processor's own prefetchers busy; prefetching into the first cache, as above, would only take their miss buffers.
// Weights that mostly live in the last cache are asked for early, into the second; from DRAM that costs more than it gives.
template <int NC, class F, bool CACHED>
static inline void few_tile(const Panels& w, const uint8_t* block, const int8_t* codes, const float* scales, const int32_t* init, int groups,
                            F16* result) {
  F16 acc[NC];
  for (int c = 0; c < NC; c++) acc[c] = zero();
  for (int g = 0; g < groups; g += 2, block += F::block) {
    if constexpr (CACHED) {
      const uint8_t* ahead = block + kFetchAhead;
      if (ahead >= w.fetch_end) ahead += w.fetch_jump;
#pragma GCC unroll 16
      for (int i = 0; i < F::block; i += 64) prefetch_near(ahead + i);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      NibbleDot dot[NC];
#pragma GCC unroll 2
      for (int c = 0; c < NC; c++) dot[c].start(F::zeros ? 0 : init[c]);
#pragma GCC unroll 8
      for (int b = 0; b < F::lines; b++) {
        B64 line = load_bytes(block + h * F::code_bytes + b * 64);
#pragma GCC unroll 2
        for (int c = 0; c < NC; c++) dot[c].add(line, codes + (b * 2 * NC + c) * 4, codes + ((b * 2 + 1) * NC + c) * 4);
      }
      F16 ws = F::scale_of(block, h);
#pragma GCC unroll 2
      for (int c = 0; c < NC; c++) {
        I16 sum = dot[c].sum(F::zeros ? 0 : init[c]);
        if constexpr (F::zeros) sum = iadd(sum, imul(F::zeros_of(block, h), iset1(init[c])));
        acc[c] = fma(to_float(sum), mul(ws, set1(scales[c])), acc[c]);
      }
      codes += F::group * NC;
      scales += NC;
      init += NC;
    }
  }
  for (int c = 0; c < NC; c++) result[c] = acc[c];
}

// float32 activations, quantized weights: per group four running sums (inputs modulo 4) of (code - zero) * x, added as a tree,
// then one multiply-add by the scale.
template <int NC, class F>
static inline void float_tile_groups(const uint8_t* panel, const float* x, int groups, int zero_point, F16* result) {
  F16 acc[NC];
  for (int c = 0; c < NC; c++) acc[c] = zero();
  F16 z = set1((float)zero_point);
  for (int g = 0; g < groups; g++) {
    const uint8_t* lines = F::codes_of(panel, g);
    if constexpr (F::zeros) z = to_float(F::zeros_of(panel, g));
    F16 s0[NC], s1[NC], s2[NC], s3[NC];
    for (int c = 0; c < NC; c++) s0[c] = s1[c] = s2[c] = s3[c] = zero();
    for (int b = 0; b < F::quads; b++) {
      B64 line = load_bytes(lines + (F::bytes ? b : b / 2) * 64);
      B64 quad = F::bytes ? line : b % 2 ? high_nibbles(line) : low_nibbles(line);
      F16 w0 = sub(byte_to_float<0>(quad), z), w1 = sub(byte_to_float<1>(quad), z);
      F16 w2 = sub(byte_to_float<2>(quad), z), w3 = sub(byte_to_float<3>(quad), z);
#pragma GCC unroll 4
      for (int c = 0; c < NC; c++) {
        s0[c] = fma(w0, set1(x[c]), s0[c]);
        s1[c] = fma(w1, set1(x[NC + c]), s1[c]);
        s2[c] = fma(w2, set1(x[2 * NC + c]), s2[c]);
        s3[c] = fma(w3, set1(x[3 * NC + c]), s3[c]);
      }
      x += 4 * NC;
    }
    F16 ws = F::scale_of(panel, g);
    for (int c = 0; c < NC; c++) acc[c] = fma(add(add(s0[c], s1[c]), add(s2[c], s3[c])), ws, acc[c]);
  }
  for (int c = 0; c < NC; c++) result[c] = acc[c];
}

// float32 activations, plain weights: four running sums (inputs modulo 4), added as a tree.
template <int NC, Number S>
static inline void float_tile_plain(const uint8_t* panel, const float* x, int inputs, F16* result) {
  constexpr int step = kPanelRows * (S == Number::f32 ? 4 : 2);
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

static inline F16 activate(F16 x, Activation f) {
  switch (f) {
    case Activation::silu: return silu(x);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::relu: return relu(x);
    case Activation::relu2: return mul(relu(x), relu(x));
  }
  return x;
}

// Writes rows [row, row + 16) of nc columns. up: the second panel of a gated pair.
static inline void finish(const Output& out, int row, int column, int nc, const F16* acc, const F16* up) {
  int n = min_int(kPanelRows, out.rows - row);
  F16 bias = out.bias ? load_n(out.bias + row, n) : zero();
  F16 up_bias = out.bias && up ? load_n(out.bias + out.rows + row, n) : zero();
  for (int c = 0; c < nc; c++) {
    float* y = out.y + (size_t)(column + c) * out.stride + row;
    F16 value = out.bias ? add(acc[c], bias) : acc[c];
    if (up) value = mul(activate(value, out.activation), out.bias ? add(up[c], up_bias) : up[c]);
    if (out.epilogue == Epilogue::activate) value = activate(value, out.activation);
    if (out.scale != 1.0f) value = mul(value, set1(out.scale));
    if (n == kPanelRows) {
      if (out.epilogue == Epilogue::add) value = add(load(y), value);
      store(y, value);
    } else {
      if (out.epilogue == Epilogue::add) value = add(load_n(y, n), value);
      store_n(y, value, n);
    }
  }
}

template <int NC, class F, bool CACHED>
static void few_columns(const Panels& w, int begin, int end, const IntTiles& x, const Output& out) {
  const int step = out.epilogue == Epilogue::gated ? 2 : 1;
  const uint8_t* panel = w.data + (size_t)begin * w.panel_bytes;
  for (int p = begin; p < end; p += step, panel += step * w.panel_bytes) {
    F16 acc[2][NC];
    for (int i = 0; i < step; i++)
      few_tile<NC, F, CACHED>(w, panel + i * w.panel_bytes, x.codes, x.scales, x.init, x.groups, acc[i]);
    finish(out, p / step * kPanelRows, 0, NC, acc[0], step == 2 ? acc[1] : nullptr);
  }
}

template <class F>
static void unpack_panel(const uint8_t* panel, int groups, uint8_t* unpacked) {
  for (int g = 0; g < groups; g++)
    for (int b = 0; b < F::lines; b++, unpacked += 128) {
      B64 line = load_bytes(F::codes_of(panel, g) + b * 64);
      store_bytes(unpacked, low_nibbles(line));
      store_bytes(unpacked + 64, high_nibbles(line));
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

template <class F>
static void matmul_int_as(const Panels& w, int begin, int end, const IntTiles& x, const Output& out, uint8_t* scratch) {
  if constexpr (!F::bytes) {
    if (x.columns == 1) return w.cached ? few_columns<1, F, true>(w, begin, end, x, out) : few_columns<1, F, false>(w, begin, end, x, out);
    if (x.columns == 2) return few_columns<2, F, false>(w, begin, end, x, out);
  }
  const int step = out.epilogue == Epilogue::gated ? 2 : 1;
  // With few columns to a pass nibbles are unpacked once for all passes. With many it costs more than it saves: the loop is
  // bound by dot products, and half as many bytes come from the caches.
  constexpr bool kUnpacks = !F::bytes && kIntCols < 8;
  const bool unpacked = kUnpacks && x.columns > kIntCols;
  const size_t codes_per_column = (size_t)x.groups * F::group;
  for (int p = begin; p < end; p += step) {
    const uint8_t* panel = w.data + (size_t)p * w.panel_bytes;
    if (unpacked)
      for (int i = 0; i < step; i++)
        unpack_panel<F>(panel + i * w.panel_bytes, x.groups, scratch + i * codes_per_column * kPanelRows);
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
            int_tile<NC, F, kUnpacks>(panel + i * w.panel_bytes, scratch + i * codes_per_column * kPanelRows, codes, scales, init,
                                       x.groups, acc[i]);
          else
            int_tile<NC, F, false>(panel + i * w.panel_bytes, nullptr, codes, scales, init, x.groups, acc[i]);
        }
      });
      finish(out, p / step * kPanelRows, c0, nc, acc[0], step == 2 ? acc[1] : nullptr);
    }
  }
}

// One pass of float32 activations over a panel, of whatever layout F stands for (void: plain values).
template <class F, Number S>
static void matmul_float_as(const Panels& w, int begin, int end, const FloatTiles& x, const Output& out) {
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
          if constexpr (is_void<F>)
            float_tile_plain<NC, S>(panel + i * w.panel_bytes, values, (w.inputs + 3) / 4 * 4, acc[i]);
          else
            float_tile_groups<NC, F>(panel + i * w.panel_bytes, values, w.groups, w.zero_point, acc[i]);
        }
      });
      finish(out, p / step * kPanelRows, c0, nc, acc[0], step == 2 ? acc[1] : nullptr);
    }
  }
}

// Calls f(format) for the layout of w. Every layout that pack() can make is here (pack.cpp: check_layout).
template <class Call>
static inline void with_format(const Panels& w, Call&& call) {
  if (w.has_zeros) return call(Format<Number::f16, 4, false, true>{});
  if (w.code_bits == 8)
    return w.number == Number::bf16 ? call(Format<Number::bf16, 8, true, false>{}) : call(Format<Number::f16, 8, true, false>{});
  if (w.group == 40) return call(Format<Number::f16, 5, false, false>{});
  switch (w.number) {
    case Number::f32: return call(Format<Number::f32, 4, false, false>{});
    case Number::f16: return call(Format<Number::f16, 4, false, false>{});
    case Number::bf16: return call(Format<Number::bf16, 4, false, false>{});
  }
}

static void matmul_int(const Panels& w, int begin, int end, const IntTiles& x, const Output& out, uint8_t* scratch) {
  with_format(w, [&](auto format) { matmul_int_as<decltype(format)>(w, begin, end, x, out, scratch); });
}
static void matmul_float(const Panels& w, int begin, int end, const FloatTiles& x, const Output& out) {
  if (w.quantized)
    return with_format(w, [&](auto format) { matmul_float_as<decltype(format), Number::f32>(w, begin, end, x, out); });
  switch (w.number) {
    case Number::f32: return matmul_float_as<void, Number::f32>(w, begin, end, x, out);
    case Number::f16: return matmul_float_as<void, Number::f16>(w, begin, end, x, out);
    case Number::bf16: return matmul_float_as<void, Number::bf16>(w, begin, end, x, out);
  }
}

// The next groups of one column of a tile, w columns wide.
struct TileColumn {
  int8_t* codes;
  float* scales;
  int32_t* init;
  int w;
};

static inline I16 int8_codes(F16 x, F16 inverse) { return round_to_int(min(max(mul(x, inverse), set1(-127.0f)), set1(127.0f))); }

// Symmetric int8 per group: scale = max|x| / 127, code = round half even(x * (127 / max|x|)).
// V: vectors of a group, of which n values are there.
template <int V>
static inline void quantize_group(const float* x, int n, int group, int zero_point, TileColumn& to) {
  F16 v[V];
  F16 top16 = zero();
#pragma GCC unroll 3
  for (int i = 0; i < V; i++) {
    const int m = min_int(16, n - 16 * i);
    v[i] = m == 16 ? load(x + 16 * i) : m > 0 ? load_n(x + 16 * i, m) : zero();
    top16 = max(top16, abs(v[i]));
  }
  const float top = reduce_max(top16), inverse = top > 0.0f ? 127.0f / top : 0.0f;
  int8_t q[16 * V];
  I16 sum = iset1(0);
#pragma GCC unroll 3
  for (int i = 0; i < V; i++) {
    const I16 code = int8_codes(v[i], set1(inverse));
    store_i8(q + 16 * i, code);
    sum = iadd(sum, code);
  }
#pragma GCC unroll 12
  for (int i = 0; i < (V == 2 ? 8 : group / 4); i++) __builtin_memcpy(to.codes + i * 4 * to.w, q + 4 * i, 4);
  *to.scales = top / 127.0f;
  *to.init = -zero_point * reduce_add(sum);
  to.codes += group * to.w;
  to.scales += to.w;
  to.init += to.w;
}

// `count` whole groups of 32, at most sixteen: their divisions and sums together.
static inline void quantize_many(const float* x, int count, int zero_point, TileColumn& to) {
  F16 tops[16];
  for (int g = 0; g < count; g++) tops[g] = max(abs(load(x + 32 * g)), abs(load(x + 32 * g + 16)));
  for (int g = count; g < 16; g++) tops[g] = zero();
  float top[16], inverse[16], scale[16];
  reduce_max_each(tops, top);
  const F16 all = load(top);
  store(inverse, select_lt(zero(), all, div(set1(127.0f), all), zero()));
  store(scale, div(all, set1(127.0f)));
  I16 sums[16];
  for (int g = 0; g < count; g++) {
    int8_t q[32];
    const I16 low = int8_codes(load(x + 32 * g), set1(inverse[g])), high = int8_codes(load(x + 32 * g + 16), set1(inverse[g]));
    store_i8(q, low);
    store_i8(q + 16, high);
    sums[g] = iadd(low, high);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) __builtin_memcpy(to.codes + i * 4 * to.w, q + 4 * i, 4);
    to.codes += 32 * to.w;
  }
  for (int g = count; g < 16; g++) sums[g] = iset1(0);
  int32_t sum[16];
  reduce_add_each(sums, sum);
  for (int g = 0; g < count; g++, to.scales += to.w, to.init += to.w) {
    *to.scales = scale[g];
    *to.init = -zero_point * sum[g];
  }
}

static void quantize_column(const float* x, int inputs, int zero_point, const IntTiles& tiles, int column, int begin, int end) {
  const int first = column / kIntCols * kIntCols, w = min_int(kIntCols, tiles.columns - first), c = column - first;
  const int group = tiles.group;
  const size_t before = (size_t)first * tiles.groups + (size_t)begin * w;  // groups of columns
  TileColumn to{tiles.codes + before * group + c * 4, tiles.scales + before + c, tiles.init + before + c, w};
  int g = begin;
  const int whole = group == 32 ? min_int(end, inputs / 32) : g;
  while (whole - g >= kTogether) {
    const int count = min_int(16, whole - g);
    quantize_many(x + g * 32, count, zero_point, to);
    g += count;
  }
  for (; g < end; g++) {
    const int n = max_int(0, min_int(group, inputs - g * group));
    if (group == 32)
      quantize_group<2>(x + g * group, n, group, zero_point, to);
    else  // 40
      quantize_group<3>(x + g * group, n, group, zero_point, to);
  }
}

static void pack_column(const float* x, int inputs, const FloatTiles& tiles, int column) {
  const int first = column / kFloatCols * kFloatCols, w = min_int(kFloatCols, tiles.columns - first);
  float* values = tiles.values + (size_t)first * tiles.inputs + (column - first);
  for (int i = 0; i < tiles.inputs; i++) values[(size_t)i * w] = i < inputs ? x[i] : 0.0f;
}

}  // namespace KQ_ISA
}  // namespace kq
