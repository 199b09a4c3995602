// The kernels as a table of function pointers, one table per instruction set, all bit-identical (see simd.h).
//
// Weights live in panels of 16 output rows. A group-quantized panel is a run of blocks, each two groups: the 64-byte lines
// of codes of both, then 2 x 16 scales, then, where every group has a zero point of its own, 2 x 16 zero points (bytes).
// Codes of up to four bits: line b holds inputs 8b .. 8b+7 of 16 rows; byte j of row r has input 8b + j in its low nibble and
// 8b + 4 + j in its high one. Eight-bit codes: line b holds inputs 4b .. 4b+3, byte j of row r is input 4b + j.
// A plain panel is [input][16 rows]. Rows and groups are padded with zero scales (zero weights), which add exactly nothing.
//
// Activation columns (tokens) stand in tiles of at most int_cols or float_cols columns, the last tile narrower; inside a tile columns
// are innermost, so a pass reads its activations in one straight run.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace kq {

constexpr int kGroup = 32;       // inputs that share a scale, unless Panels::group says otherwise
constexpr size_t kFetchAhead = 24 << 10;  // bytes of cached weights on their way to the second cache
constexpr int kTokensAhead = 128;  // the same of a sequence's keys and values, in tokens
constexpr int kPanelRows = 16;   // output rows of a panel
constexpr int kPageTokens = 64;  // tokens of a KV page
constexpr int kLaneTokens = 16;  // tokens that stand side by side in a page's keys

enum class Number : int { f32 = 0, f16 = 1, bf16 = 2 };
inline size_t size_of(Number n) { return n == Number::f32 ? 4 : 2; }
// Of keys and values. i8: codes, with a bfloat16 scale per token and head.
enum class KvNumber : int { f32 = 0, f16 = 1, i8 = 2 };
constexpr size_t size_of(KvNumber n) { return n == KvNumber::f32 ? 4 : n == KvNumber::f16 ? 2 : 1; }

// A weight matrix in panels. quantized: number is the dtype of the scales; else of the weights.
struct Panels {
  const uint8_t* data = nullptr;
  size_t panel_bytes = 0;
  int rows = 0;        // logical output rows
  int inputs = 0;      // logical inputs
  int groups = 0;      // groups of inputs, padded to an even number
  int group = kGroup;  // inputs of a group: 32, or 40 (3-bit modes)
  int code_bits = 4;   // 4, or 8
  int zero_point = 7;  // value = (code - zero_point) * scale
  bool has_zeros = false;  // every group and row has its own zero point instead
  int num_panels = 0;  // rows / 16, rounded up; twice that of one half when interleaved
  Number number = Number::f32;
  bool quantized = false;
  bool interleaved = false;  // panels alternate: gate 0, up 0, gate 1, up 1, …
  bool cached = false;       // all weights of the model are about as large as the last cache, so most come from there
  // What is asked for ahead goes on `fetch_jump` bytes further once it comes here: where the same thread reads next.
  const uint8_t* fetch_end = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
  ptrdiff_t fetch_jump = 0;

  int lines() const { return group * code_bits / 32; }                        // 64-byte lines of a group's codes
  int padded_inputs() const { return groups * group; }
  size_t scale_bytes() const { return kPanelRows * size_of(number); }         // of one group
  size_t block_bytes() const { return 2 * (lines() * 64 + scale_bytes() + (has_zeros ? kPanelRows : 0)); }
};

// int8 activations: per group of inputs and column a scale and init = -zero_point * (sum of the group's codes).
struct IntTiles {
  int8_t* codes;  // tile: [input / 4][column][4]
  float* scales;  // tile: [group][column]
  int32_t* init;  // tile: [group][column]
  int columns;
  int groups;
  int group;  // inputs of a group
};
struct FloatTiles {
  float* values;  // tile: [input][column]
  int columns;
  int inputs;  // padded, zeros behind the logical ones
};

// Where a product goes: y[column * stride + row], row < rows. "add": y += scale * product. "activate": y = f(product).
// "gated" consumes panel pairs: y = f(gate) * up.
enum class Epilogue : int { store = 0, add = 1, gated = 2, activate = 3 };
enum class Activation : int { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu2 = 4 };
struct Output {
  float* y;
  size_t stride;
  int rows;           // rows of y (of one half when gated)
  const float* bias;  // one value a row, or null; when gated: gate biases, then up biases
  Epilogue epilogue;
  float scale = 1.0f;  // on the product, bias included
  Activation activation = Activation::silu;
};

// One key/value head of one layer in the pages of one sequence.
struct KvHead {
  uint8_t* pool;
  size_t page_bytes;
  const int32_t* pages;
  size_t key_offset, value_offset, scale_offset;  // inside a page; scales: of an int8 cache
  int head_dim;                                   // logical
  int padded_dim;                                 // a multiple of 16
  KvNumber number;
};
inline int quad_dim(int head_dim) { return (head_dim + 3) / 4 * 4; }  // dimensions of an int8 cache's keys

// Query rows that share a key/value head. q: (rows, head_dim), already scaled; row i sees tokens first[i] .. last[i].
// cap: soft cap on the scores, 0 for none.
struct AttentionRows {
  const float* q;
  size_t q_stride;
  const int *first, *last;
  int rows;
  float cap;
};

struct Kernels {
  const char* name;
  int int_cols, float_cols;

  // One column into its tile. x: (inputs,). column: its index among all columns.
  // quantize_column: only groups [begin, end).
  void (*quantize_column)(const float* x, int inputs, int zero_point, const IntTiles& tiles, int column, int begin, int end);
  void (*pack_column)(const float* x, int inputs, const FloatTiles& tiles, int column);

  // Sixteen rows of 4-bit groups of 32 as stored (null: a row that does not exist) into a zeroed panel.
  void (*pack_rows)(const uint8_t* const* codes, const uint8_t* const* scales, int words, int scale_size, size_t block, uint8_t* panel);

  // Panels [begin, end) times all columns. scratch: 32 * padded inputs bytes (unpacked codes).
  void (*matmul_int)(const Panels& w, int begin, int end, const IntTiles& x, const Output& out, uint8_t* scratch);
  void (*matmul_float)(const Panels& w, int begin, int end, const FloatTiles& x, const Output& out);

  // Norms of one row; bias may be null.
  void (*rms_norm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int n, float eps);
  // Rotates pairs of x by cos[i], sin[i]: (i, i + half), or (2i, 2i + 1) when interleaved.
  void (*rope)(float* x, int half, const float* cos, const float* sin, bool interleaved);
  // x = cap * tanh(x / cap)
  void (*soft_cap)(float* x, int n, float cap);
  // May overwrite key.
  void (*write_kv)(const KvHead& kv, int token, float* key, const float* value);

  // y: (rows, head_dim) at the given row offsets. scratch: attention_scratch(rows, padded_dim) floats.
  void (*attend)(const KvHead& kv, const AttentionRows& rows, float* y, const size_t* y_offsets, float* scratch);
  // The same in two parts, so that several threads may share a long context: chunks [first_chunk, last_chunk) into parts
  // (attention_part(rows, padded_dim) floats for each chunk, counted from the sequence's first token), then all of them joined.
  void (*attend_chunks)(const KvHead& kv, const AttentionRows& rows, int first_chunk, int last_chunk, float* parts, float* scratch);
  void (*join_chunks)(const KvHead& kv, const AttentionRows& rows, float* parts, float* y, const size_t* y_offsets, float* scratch);

  // Token choice: index of the largest value (the first of equals); largest value; sum of exp(x - shift) in one order,
  // optionally stored.
  int (*argmax)(const float* x, int n);
  double (*exp_sum)(const float* x, int n, float shift, float inverse_temperature, float* stored);
};

constexpr int kChunkTokens = 256;  // tokens whose weights are summed together
// A multiple of 16: what stands behind it begins a cache line too.
inline size_t attention_part(int rows, int padded_dim) { return (size_t)rows * padded_dim + (2 * (size_t)rows + 15) / 16 * 16; }
inline size_t attention_scratch(int rows, int padded_dim) {
  return 2 * attention_part(rows, padded_dim) + 16 * kChunkTokens + (size_t)(rows + 1) * (padded_dim + 8);
}

// Kernels of an instruction set by its name in cpu/isa.h; null when this build or machine lacks it.
const Kernels* kernels_named(const char* name);
}  // namespace kq
