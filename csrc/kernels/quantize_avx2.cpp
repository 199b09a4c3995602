#define KQ_ISA avx2
#define KQ_ISA_AVX2 1
#include "kernels/quantize_impl.h"
