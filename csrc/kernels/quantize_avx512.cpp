#define KQ_ISA avx512
#define KQ_ISA_AVX512 1
#include "kernels/quantize_impl.h"
