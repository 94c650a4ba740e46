// What the operators share: registers of sixteen float32 values.

#pragma once

#include <immintrin.h>
#include <stdint.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

constexpr int kLanes = 16;  // float32 values in a register

inline int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

inline __mmask16 lanes(int64_t left) {
  return left >= kLanes ? __mmask16(0xffff) : left <= 0 ? __mmask16(0) : __mmask16((1u << left) - 1);
}

// 2^x to a ten-thousandth, a twentieth of what rounding to bfloat16 costs; 0 for minus infinity.
inline __m512 exp2_of(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // what is above the next lower integer
  __m512 power = _mm512_set1_ps(0.078024552f);
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.226067185f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.695833491f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.999925228f));
  return _mm512_scalef_ps(power, x);  // which takes that integer by itself
}

// Sixteen bfloat16 numbers as float32, those outside the mask as 0.
inline __m512 load_bf16(__mmask16 mask, const uint16_t* at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at)), 16));
}

// Sixteen float32 values, rounded to bfloat16.
inline void store_bf16(uint16_t* at, __mmask16 mask, __m512 values) {
  _mm256_mask_storeu_epi16(at, mask, (__m256i)_mm512_cvtneps_pbh(values));
}
