#define KQ_ISA neon_dotprod
#define KQ_ISA_NEON 1
#define KQ_NEON_DOTPROD 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
