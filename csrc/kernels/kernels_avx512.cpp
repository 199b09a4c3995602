#define KQ_ISA avx512
#define KQ_ISA_AVX512 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
