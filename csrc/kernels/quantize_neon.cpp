#define KQ_ISA neon
#define KQ_ISA_NEON 1
#include "kernels/quantize_impl.h"
