// What the units at the baseline instruction set share: the chosen kernels.

#pragma once

#include <cstdint>

#include "kernels.h"

namespace pagewire {

const Kernels *kernels();

}  // namespace pagewire
