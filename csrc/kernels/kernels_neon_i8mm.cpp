#define KQ_ISA neon_i8mm
#define KQ_ISA_NEON 1
#define KQ_NEON_I8MM 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
