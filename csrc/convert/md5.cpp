#include "convert/md5.h"

#include <string.h>

#include <utility>

namespace kq {
namespace {

// One word of every stream.
template <size_t Lanes>
struct WordsOf {
  typedef uint32_t type __attribute__((vector_size(4 * Lanes)));
};
template <>
struct WordsOf<1> {
  typedef uint32_t type;
};

constexpr uint32_t kSines[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};
constexpr int kRotations[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
constexpr int kFirstWord[4] = {0, 1, 5, 0}, kStride[4] = {1, 5, 3, 7};  // which word of the message a step takes

template <int Step, typename Words>
inline void step(Words* s, const Words* message) {
  constexpr int round = Step / 16, rotation = kRotations[round][Step % 4];
  // The four words take turns; the one that is replaced is a.
  Words& a = s[(64 - Step) % 4];
  const Words b = s[(65 - Step) % 4], c = s[(66 - Step) % 4], d = s[(67 - Step) % 4];
  Words f;
  if constexpr (round == 0) f = d ^ (b & (c ^ d));
  if constexpr (round == 1) f = c ^ (d & (b ^ c));
  if constexpr (round == 2) f = b ^ c ^ d;
  if constexpr (round == 3) f = c ^ (b | ~d);
  const Words sum = (message[(kFirstWord[round] + kStride[round] * (Step % 16)) % 16] + kSines[Step] + a) + f;
  a = b + (sum << rotation | sum >> (32 - rotation));
}

template <typename Words, int... Steps>
inline void all_steps(Words* s, const Words* message, std::integer_sequence<int, Steps...>) {
  (step<Steps>(s, message), ...);
}

template <size_t Lanes>
void update(uint32_t* state, const uint8_t* const* data, size_t count, size_t blocks) {
  using Words = typename WordsOf<Lanes>::type;
  const uint8_t* source[Lanes];
  uint32_t gathered[16][Lanes];
  Words s[4], message[16], before[4];
  for (size_t lane = 0; lane < Lanes; lane++) {
    const size_t stream = lane < count ? lane : 0;  // idle lanes repeat the first stream
    source[lane] = data[stream];
    for (int i = 0; i < 4; i++) gathered[i][lane] = state[4 * stream + i];
  }
  memcpy(s, gathered, sizeof s);
  for (size_t block = 0; block < blocks; block++) {
    for (size_t lane = 0; lane < Lanes; lane++)
      for (int i = 0; i < 16; i++) memcpy(&gathered[i][lane], source[lane] + kMd5Block * block + 4 * i, 4);
    memcpy(message, gathered, sizeof message);
    memcpy(before, s, sizeof before);
    all_steps(s, message, std::make_integer_sequence<int, 64>());
    for (int i = 0; i < 4; i++) s[i] += before[i];
  }
  memcpy(gathered, s, sizeof s);
  for (size_t stream = 0; stream < count; stream++)
    for (int i = 0; i < 4; i++) state[4 * stream + i] = gathered[i][stream];
}
}  // namespace

void md5_update(uint32_t* state, const uint8_t* const* data, size_t count, size_t blocks) {
  if (count == 1) return update<1>(state, data, count, blocks);
  if (count <= 4) return update<4>(state, data, count, blocks);
  update<8>(state, data, count, blocks);
}
}  // namespace kq
