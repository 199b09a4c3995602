// The one file that knows Python: checks shapes and types, releases the interpreter lock, translates errors.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_native, m) { m.doc() = "Kumquant's native core"; }
