#define KQ_ISA portable
#include "kernels/quantize_impl.h"
