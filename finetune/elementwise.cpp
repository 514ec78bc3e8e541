// The parts of a decoder layer that are no matrix products, each as one pass over memory: a tensor is read once, computed
// on in fp32 and written once. The formulae are those of elementwise.py, which computes the same with torch.
// Rows are divided among `threads` beforehand and no sum crosses a row, so that no result depends on their number.

#include <vector>

#include "vectors.h"

namespace {

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

inline float sigmoid(float x) {
    float power = exponential(x < 0 ? x : -x);
    return (x < 0 ? power : 1) / (1 + power);
}

// The first numbers of a row, as many as registers take; says how many.
inline int64_t swiglu_by_lanes(const float *, const float *, float *, int64_t) { return 0; }
inline int64_t swiglu_backward_by_lanes(float *, float *, float *, int64_t) { return 0; }

#ifdef HAS_VECTORS

inline int64_t swiglu_by_lanes(const bf16 *gate, const bf16 *up, bf16 *act, int64_t F) {
    int64_t f = 0;
    for (; f + LANES <= F; f += LANES) {
        __m512 g = read(load(gate + f)), u = read(load(up + f));
        store(act + f, rounded(_mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u)));
    }
    return f;
}

inline int64_t swiglu_backward_by_lanes(bf16 *gate, bf16 *up, bf16 *slope, int64_t F) {
    int64_t f = 0;
    for (; f + LANES <= F; f += LANES) {
        __m512 g = read(load(gate + f)), u = read(load(up + f)), d = read(load(slope + f)), s = sigmoid(g);
        __m512 silu = _mm512_mul_ps(g, s), rest = _mm512_sub_ps(_mm512_set1_ps(1), s);
        store(up + f, rounded(_mm512_mul_ps(d, silu)));
        store(gate + f, rounded(_mm512_mul_ps(_mm512_mul_ps(d, u), _mm512_fmadd_ps(silu, rest, s))));
        store(slope + f, rounded(_mm512_mul_ps(silu, u)));
    }
    return f;
}

#else

inline int64_t swiglu_by_lanes(const bf16 *, const bf16 *, bf16 *, int64_t) { return 0; }
inline int64_t swiglu_backward_by_lanes(bf16 *, bf16 *, bf16 *, int64_t) { return 0; }

#endif

template <class Row>
void each_row(int64_t rows, int threads, Row compute) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) compute(row);
}

// `wide` is the step from one token to the next in y, which has zeros behind each.
template <class E>
void norm(const E *x, const E *weight, E *y, float *scale, int64_t T, int64_t D, int64_t wide, float epsilon,
          int threads) {
    each_row(T, threads, [=](int64_t t) {
        const E *from = x + t * D, *w = weight;
        E *to = y + t * wide;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < D; d++) sum += read(from[d]) * read(from[d]);
        float s = 1 / __builtin_sqrtf(sum / D + epsilon);
        scale[t] = s;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) write(to[d], read(from[d]) * s * read(w[d]));
        memset(static_cast<void *>(to + D), 0, (wide - D) * sizeof(E));
    });
}

// dx = (w dy - u (u . w dy) / D) s + what came past the norm, u = s x being the normed token before its weight; the token
// after its weight takes the place of dy.
template <class E>
void norm_backward(E *dy, const E *x, const E *weight, const float *scale, const E *past, E *dx, int64_t T, int64_t D,
                   int threads) {
    each_row(T, threads, [=](int64_t t) {
        const E *from = x + t * D, *beside = past + t * D, *w = weight;
        E *to = dx + t * D, *slope = dy + t * D;
        float s = scale[t], along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t d = 0; d < D; d++) along += read(slope[d]) * read(w[d]) * read(from[d]);
        float back = along * s * s / D;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) {
            write(to[d], (read(slope[d]) * read(w[d]) - read(from[d]) * back) * s + (past ? read(beside[d]) : 0));
            write(slope[d], read(from[d]) * s * read(w[d]));
        }
    });
}

// Gate and up of a token lie one behind the other.
template <class E>
void swiglu(const E *gates, E *act, int64_t T, int64_t F, int64_t wide, int threads) {
    each_row(T, threads, [=](int64_t t) {
        const E *gate = gates + t * 2 * F, *up = gate + F;
        E *to = act + t * wide;
        int64_t first = swiglu_by_lanes(gate, up, to, F);
#pragma omp simd
        for (int64_t f = first; f < F; f++) write(to[f], read(gate[f]) * sigmoid(read(gate[f])) * read(up[f]));
        memset(static_cast<void *>(to + F), 0, (wide - F) * sizeof(E));
    });
}

// Gradients take the place of what they belong to, and silu(gate) up that of its own.
template <class E>
void swiglu_backward(E *gates, E *dact, int64_t T, int64_t F, int threads) {
    each_row(T, threads, [=](int64_t t) {
        E *gate = gates + t * 2 * F, *up = gate + F, *slope = dact + t * F;
        int64_t first = swiglu_backward_by_lanes(gate, up, slope, F);
#pragma omp simd
        for (int64_t f = first; f < F; f++) {
            float g = read(gate[f]), u = read(up[f]), d = read(slope[f]), s = sigmoid(g);
            write(up[f], d * g * s);
            write(gate[f], d * u * s * (1 + g * (1 - s)));
            write(slope[f], g * s * u);
        }
    });
}

// One head of a token, turned by the token's angle; sines are negative in the first half of a head.
template <class E>
void turn(const E *from, const E *cosine, const E *sine, E *to, int64_t width, float way) {
    int64_t half = width / 2;
#pragma omp simd
    for (int64_t e = 0; e < half; e++) {
        float low = read(from[e]), high = read(from[e + half]);
        write(to[e], low * read(cosine[e]) + way * high * read(sine[e]));
        write(to[e + half], high * read(cosine[e + half]) + way * low * read(sine[e + half]));
    }
}

// Tokens to heads, (T, K, G, E) -> (B, K, L, G, E), zero past a document's end; tokens are `wide` apart.
template <class E>
void spread(const E *x, const E *cosine, const E *sine, E *out, const int64_t *starts, const int64_t *lengths, int64_t B,
            int64_t K, int64_t L, int64_t G, int64_t width, int64_t wide, int threads) {
    each_row(B * K * L * G, threads, [=](int64_t row) {
        int64_t g = row % G, l = row / G % L, k = row / (G * L) % K, b = row / (G * L * K), t = starts[b] + l;
        const E *from = x + t * wide + (k * G + g) * width;
        E *to = out + row * width;
        if (l >= lengths[b])
            memset(static_cast<void *>(to), 0, width * sizeof(E));
        else if (cosine)
            turn(from, cosine + t * width, sine + t * width, to, width, 1);
        else
            memcpy(static_cast<void *>(to), from, width * sizeof(E));
    });
}

// Heads to tokens, turned the other way.
template <class E>
void gather(const E *x, const E *cosine, const E *sine, E *out, const int64_t *starts, const int64_t *lengths, int64_t B,
            int64_t K, int64_t L, int64_t G, int64_t width, int64_t wide, int threads) {
    each_row(B * K * L * G, threads, [=](int64_t row) {
        int64_t g = row % G, l = row / G % L, k = row / (G * L) % K, b = row / (G * L * K), t = starts[b] + l;
        E *to = out + t * wide + (k * G + g) * width;
        if (l >= lengths[b]) return;
        if (cosine)
            turn(x + row * width, cosine + t * width, sine + t * width, to, width, -1);
        else
            memcpy(static_cast<void *>(to), x + row * width, width * sizeof(E));
    });
}

// Softmax of the scores of `block` queries of `G` heads each on `keys` keys, in place, and the logarithm of its sum; the
// first query is number `first` of its document.
template <class E>
void softmax(E *scores, float *normalizer, int64_t rows, int64_t block, int64_t G, int64_t first, int64_t keys,
             int threads) {
    each_row(rows, threads, [=](int64_t row) {
        E *own = scores + row * keys;
        int64_t seen = first + row / G % block + 1;
        float most = -__builtin_inff(), sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t k = 0; k < seen; k++) most = read(own[k]) > most ? read(own[k]) : most;
        std::vector<float> power(seen);
        float *to = power.data();
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < seen; k++) sum += to[k] = exponential(read(own[k]) - most);
        float share = 1 / sum;
#pragma omp simd
        for (int64_t k = 0; k < seen; k++) write(own[k], to[k] * share);
        if (seen < keys) memset(static_cast<void *>(own + seen), 0, (keys - seen) * sizeof(E));
        normalizer[row] = most + __builtin_logf(sum);
    });
}

// p = e^(score - normalizer) in place of the scores, and ds = p (dp - p . dp) in place of dp.
template <class E>
void softmax_backward(E *scores, E *slopes, const float *normalizer, int64_t rows, int64_t block, int64_t G, int64_t first,
                      int64_t keys, int threads) {
    each_row(rows, threads, [=](int64_t row) {
        E *own = scores + row * keys, *slope = slopes + row * keys;
        int64_t seen = first + row / G % block + 1;
        std::vector<float> probability(seen);
        float *p = probability.data(), along = 0, norm = normalizer[row];
#pragma omp simd reduction(+ : along)
        for (int64_t k = 0; k < seen; k++) {
            p[k] = exponential(read(own[k]) - norm);
            along += p[k] * read(slope[k]);
        }
#pragma omp simd
        for (int64_t k = 0; k < seen; k++) {
            write(own[k], p[k]);
            write(slope[k], p[k] * (read(slope[k]) - along));
        }
        if (seen < keys) {
            memset(static_cast<void *>(own + seen), 0, (keys - seen) * sizeof(E));
            memset(static_cast<void *>(slope + seen), 0, (keys - seen) * sizeof(E));
        }
    });
}

// Sixteen numbers at a time, in whatever registers there are.
typedef float sixteen __attribute__((vector_size(64)));
typedef uint32_t sixteen_bits __attribute__((vector_size(64)));
typedef uint16_t sixteen_halves __attribute__((vector_size(32)));

inline void put(float *to, sixteen x) { memcpy(to, &x, sizeof x); }

inline void put(bf16 *to, sixteen x) {  // of numbers that bf16 holds
    sixteen_halves halves = __builtin_convertvector((sixteen_bits)x >> 16, sixteen_halves);
    memcpy(static_cast<void *>(to), &halves, sizeof halves);
}

inline void round_to(float *, sixteen &) {}

inline void round_to(bf16 *, sixteen &x) {  // as `write` does
    sixteen_bits bits = (sixteen_bits)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    x = (sixteen)((bits & 0x7fffffff) > 0x7f800000 ? (bits & 0) + 0x7fc00000 : rounded);
}

// Weights in four bits each, the first of a byte in its upper half, to rows that are `wide` apart: a level times the scale
// of its block. Scales are in `scales`, or levels themselves (`scale_bytes`), each times the scale of a block of blocks.
template <class E>
void unpack(const uint8_t *packed, const float *levels, const float *scales, const uint8_t *scale_bytes,
            const float *scale_levels, E *out, int64_t O, int64_t I, int64_t wide, int64_t block, int64_t blocks,
            float offset, int threads) {
    sixteen_bits shifts = {4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24};
    sixteen unscaled;
    memcpy(&unscaled, levels, sizeof unscaled);
    each_row(O, threads, [=](int64_t o) {
        const uint8_t *from = packed + o * I / 2;
        E *to = out + o * wide;
        for (int64_t first = 0; first < I; first += block) {
            int64_t n = (o * I + first) / block;
            float scale = scales[scale_bytes ? n / blocks : n];
            if (scale_bytes) {
                volatile float rounded = scale_levels[scale_bytes[n]] * scale;  // before the sum, as two calls do
                scale = rounded + offset;
            }
            sixteen scaled = unscaled * scale;
            round_to(to, scaled);
            for (int64_t i = first; i < first + block; i += 16) {
                uint32_t words[2];
                memcpy(words, from + i / 2, 8);
                sixteen_bits both = {words[0], words[0], words[0], words[0], words[0], words[0], words[0], words[0],
                                     words[1], words[1], words[1], words[1], words[1], words[1], words[1], words[1]};
                put(to + i, __builtin_shuffle(scaled, (both >> shifts) & 15));
            }
        }
    });
}

}  // namespace

#define EXPORT(E, name)                                                                                                \
    extern "C" {                                                                                                       \
    void norm_##name(const E *x, const E *w, E *y, float *s, int64_t T, int64_t D, int64_t wide, float e, int n) {     \
        norm(x, w, y, s, T, D, wide, e, n);                                                                            \
    }                                                                                                                  \
    void norm_backward_##name(E *dy, const E *x, const E *w, const float *s, const E *past, E *dx, int64_t T,          \
                              int64_t D, int n) {                                                                      \
        norm_backward(dy, x, w, s, past, dx, T, D, n);                                                                 \
    }                                                                                                                  \
    void swiglu_##name(const E *gates, E *act, int64_t T, int64_t F, int64_t wide, int n) {                            \
        swiglu(gates, act, T, F, wide, n);                                                                             \
    }                                                                                                                  \
    void swiglu_backward_##name(E *gates, E *dact, int64_t T, int64_t F, int n) {                                      \
        swiglu_backward(gates, dact, T, F, n);                                                                         \
    }                                                                                                                  \
    void spread_##name(const E *x, const E *c, const E *s, E *out, const int64_t *starts, const int64_t *l, int64_t B, \
                       int64_t K, int64_t L, int64_t G, int64_t width, int64_t wide, int n) {                          \
        spread(x, c, s, out, starts, l, B, K, L, G, width, wide, n);                                                   \
    }                                                                                                                  \
    void gather_##name(const E *x, const E *c, const E *s, E *out, const int64_t *starts, const int64_t *l, int64_t B, \
                       int64_t K, int64_t L, int64_t G, int64_t width, int64_t wide, int n) {                          \
        gather(x, c, s, out, starts, l, B, K, L, G, width, wide, n);                                                   \
    }                                                                                                                  \
    void softmax_##name(E *x, float *s, int64_t rows, int64_t block, int64_t G, int64_t first, int64_t keys, int n) {  \
        softmax(x, s, rows, block, G, first, keys, n);                                                                 \
    }                                                                                                                  \
    void softmax_backward_##name(E *x, E *dp, const float *s, int64_t rows, int64_t block, int64_t G, int64_t first,   \
                                 int64_t keys, int n) {                                                                \
        softmax_backward(x, dp, s, rows, block, G, first, keys, n);                                                    \
    }                                                                                                                  \
    void unpack_##name(E *out, const uint8_t *packed, const float *levels, const float *scales, const uint8_t *bytes,  \
                       const float *scale_levels, int64_t O, int64_t I, int64_t wide, int64_t block, int64_t blocks,   \
                       float offset, int n) {                                                                          \
        unpack(packed, levels, scales, bytes, scale_levels, out, O, I, wide, block, blocks, offset, n);                \
    }                                                                                                                  \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
