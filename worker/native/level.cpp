// All kernels for one instruction set. Compiled once per set, with PW_LEVEL naming it.

#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "linear_int8.h"
#include "logits.h"

#if defined(__AVX512BF16__)
#include "linear_compact.h"
#define PW_COMPACT compactable, compact_panel_bytes, pack_compact, unpack_compact, linear_compact
#else
#define PW_COMPACT nullptr, nullptr, nullptr, nullptr, nullptr
#endif

#define PW_JOIN_(a, b) a##b
#define PW_JOIN(a, b) PW_JOIN_(a, b)
#define PW_TEXT_(a) #a
#define PW_TEXT(a) PW_TEXT_(a)

namespace pagewire {

extern const Kernels PW_JOIN(kernels_, PW_LEVEL);
const Kernels PW_JOIN(kernels_, PW_LEVEL) = {
    PW_TEXT(PW_LEVEL), attend, rotate_and_store, norm, silu_mul,
    kPanel, linear, pack, unpack,
    PW_COMPACT,
    int8_panel_bytes, int8_row_bytes, quantize_rows, linear_int8, pack_int8, row_maxima, row_weights, at_least, widen,
};

}  // namespace pagewire
