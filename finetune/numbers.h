// Numbers of two bytes, and the exponential, for the functions compiled here.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float read(float x) { return x; }

inline float read(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void write(float &to, float x) { to = x; }

inline void write(bf16 &to, float x) {  // to the nearest, ties to even, as torch does; not a number stays one
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// e^x for x <= 0: 2^n e^r with |r| <= ln 2 / 2, and the Taylor series of e^r to its seventh power, which leaves out 5e-9.
inline float exponential(float x) {
    x = x < -87.f ? -87.f : x;
    const float magic = 12582912.f;  // 1.5 x 2^23: adding it rounds to a whole number
    float n = (x * 1.44269504f + magic) - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in 9 bits
    float series = 1.98412698e-4f;                          // 1 / 7!
    series = series * r + 1.38888889e-3f;
    series = series * r + 8.33333333e-3f;
    series = series * r + 4.16666667e-2f;
    series = series * r + 1.66666667e-1f;
    series = series * r + 0.5f;
    series = series * r + 1;
    series = series * r + 1;
    uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return series * power;
}

}  // namespace
