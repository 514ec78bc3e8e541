// Registers of 16 numbers, on processors that round to bf16 themselves (AVX-512): what a compiler makes of loops over bf16
// rounds in nine steps, and divides.

#pragma once

#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512DQ__)
#define HAS_VECTORS

#include <immintrin.h>

namespace {

constexpr int64_t LANES = 16;  // numbers of fp32 in a register

inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline __m256i load(const bf16 *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }

inline __m512 read(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

inline void store(bf16 *to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), x); }

// Those of the lanes from `first` on that are before `seen`.
inline __mmask16 lanes_seen(int64_t first, int64_t seen) {
    int64_t left = seen - first;
    return left >= LANES ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
}

// e^x for x <= 0, as good as 0 below -104: 2^n e^r with |r| <= ln 2 / 2, and the Taylor series of e^r to its sixth power,
// which leaves out 1.2e-7.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104), x);  // the second where one is no number
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147182f), x);
    __m512 series = _mm512_set1_ps(1.38888889e-3f);  // 1 / 6!
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(8.33333333e-3f));
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(4.16666667e-2f));
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(1.66666667e-1f));
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(0.5f));
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(1));
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(series, n);
}

// 1 / (1 + e^-x), by an estimate of 14 bits and one step of Newton's method.
inline __m512 sigmoid(__m512 x) {
    __m512 power = exponential(_mm512_or_ps(_mm512_set1_ps(-0.f), x)), one = _mm512_set1_ps(1);  // of -|x|
    __m512 under = _mm512_add_ps(one, power), share = _mm512_rcp14_ps(under);
    share = _mm512_mul_ps(share, _mm512_fnmadd_ps(under, share, _mm512_set1_ps(2)));
    return _mm512_mul_ps(share, _mm512_mask_mov_ps(one, _mm512_movepi32_mask(_mm512_castps_si512(x)), power));
}

}  // namespace

#endif
