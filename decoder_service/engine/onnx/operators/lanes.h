// The registers that the operators compute in.

#pragma once

#include <immintrin.h>
#include <stddef.h>

constexpr size_t kLanes = 16;  // float32 values in one

// Those of a register's lanes that `left` values fill.
inline __mmask16 lanes(size_t left) { return left < kLanes ? (1u << left) - 1 : 0xffff; }
