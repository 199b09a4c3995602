#define KQ_ISA avx2
#define KQ_ISA_AVX2 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
