#include "runtime/embedding.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace kq {

Embedding::~Embedding() {
  if (file >= 0) close(file);
}

void Embedding::open_file(const std::string& path, int64_t codes, int64_t scales) {
  if (file >= 0) close(file);
  file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  codes_at = codes;
  scales_at = scales;
}

bool Embedding::read_from_file(int row, float* y, uint8_t* bytes) const {
  if (source == Source::plain) {
    const size_t size = row_bytes();
    if (pread(file, bytes, size, codes_at + (int64_t)(row * size)) != (ssize_t)size) return false;
    read_row(PlainRows{bytes, plain.number, 1, plain.inputs}, 0, y);
    return true;
  }
  QuantizedRows one = quantized;
  const size_t codes = (size_t)one.words() * 4, scales = (size_t)one.groups() * size_of(one.scale_number);
  if (pread(file, bytes, codes, codes_at + (int64_t)(row * codes)) != (ssize_t)codes ||
      pread(file, bytes + codes, scales, scales_at + (int64_t)(row * scales)) != (ssize_t)scales)
    return false;
  one.codes = bytes;
  one.scales = bytes + codes;
  one.rows = 1;
  read_row(one, 0, y);
  return true;
}

size_t Embedding::row_bytes() const {
  if (file < 0) return 0;
  return source == Source::plain ? (size_t)plain.inputs * size_of(plain.number)
                                 : (size_t)quantized.words() * 4 + (size_t)quantized.groups() * size_of(quantized.scale_number);
}

bool Embedding::read(int row, float* y, Scratch& bytes) const {
  if (file >= 0) {
    if (read_from_file(row, y, bytes.get<uint8_t>(row_bytes()))) return true;
    std::fill(y, y + (source == Source::plain ? plain.inputs : quantized.inputs), 0.0f);
    return false;
  }
  switch (source) {
    case Source::panels: read_row(*panels, row, y); break;
    case Source::quantized: read_row(quantized, row, y); break;
    case Source::plain: read_row(plain, row, y); break;
    case Source::none: break;
  }
  return true;
}

int Embedding::rows() const {
  return source == Source::panels ? panels->rows : source == Source::quantized ? quantized.rows : source == Source::plain ? plain.rows : 0;
}

int Embedding::inputs() const {
  return source == Source::panels      ? panels->inputs
         : source == Source::quantized ? quantized.inputs
         : source == Source::plain     ? plain.inputs
                                       : 0;
}
}  // namespace kq
