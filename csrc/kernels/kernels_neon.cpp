#define KQ_ISA neon
#define KQ_ISA_NEON 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
