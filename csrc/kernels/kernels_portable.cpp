#define KQ_ISA portable
#define KQ_ISA_PORTABLE 1
#include "kernels/matmul.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
