// Products by the tiles of a processor that has AMX, and laying numbers out for them.
//
// A tile holds 16 rows of 64 bytes. A product takes its second factor with pairs of rows lying beside each other, two bf16
// in a number of four bytes (Intel, Architecture Instruction Set Extensions, TDPBF16PS).

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(HAS_VECTORS)
#define HAS_TILES

#include <memory>
#include <new>

namespace {

constexpr int64_t EDGE = 32;   // rows and columns of a product that are computed at once, by four tiles of the sum
constexpr int64_t APART = 32;  // numbers between rows, so that they do not all fall on the same places of a cache
constexpr std::align_val_t LINE{64};  // bytes: a row of a tile that begins elsewhere takes two lines of the cache

struct Freed {
    void operator()(void *numbers) const { ::operator delete(numbers, LINE); }
};

template <class E>
std::unique_ptr<E[], Freed> room(int64_t numbers) {
    return std::unique_ptr<E[], Freed>(static_cast<E *>(::operator new(numbers * sizeof(E), LINE)));
}

// What was written is in memory before tiles are loaded from there, which GCC's macros up to 13 do not tell it: it may leave
// stores out or move them behind (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=114098).
inline void written() { asm volatile("" ::: "memory"); }

// Numbers up to the next multiple.
inline int64_t up_to(int64_t numbers, int64_t multiple) { return (numbers + multiple - 1) / multiple * multiple; }

struct alignas(64) TileShapes {
    uint8_t palette = 1, first = 0, unused[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Shapes of the tiles of the thread that calls; every tile is whole.
struct Tiles {
    Tiles() {
        TileShapes shapes;
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    ~Tiles() { _tile_release(); }
};

// The sums of a block, (32, 32) and rows `wide` apart, in the first four tiles: what is there already, or zeros.
template <bool ADDED>
inline void load_sums(const float *upper, int64_t wide) {
    const float *lower = upper + 16 * wide;
    if (ADDED) {
        _tile_loadd(0, upper, wide * 4);
        _tile_loadd(1, upper + 16, wide * 4);
        _tile_loadd(2, lower, wide * 4);
        _tile_loadd(3, lower + 16, wide * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

inline void store_sums(float *upper, int64_t wide) {
    float *lower = upper + 16 * wide;
    _tile_stored(0, upper, wide * 4);
    _tile_stored(1, upper + 16, wide * 4);
    _tile_stored(2, lower, wide * 4);
    _tile_stored(3, lower + 16, wide * 4);
}

// c (M, N) = a (M, K) b (K, N), or that added to c; `wide` is the step from one row to the next, of b from one pair.
template <bool ADDED>
void product(const bf16 *a, int64_t a_wide, const uint32_t *b, int64_t b_wide, float *c, int64_t c_wide, int64_t M,
             int64_t N, int64_t K) {
    written();
    for (int64_t n = 0; n < N; n += EDGE)
        for (int64_t m = 0; m < M; m += EDGE) {
            load_sums<ADDED>(c + m * c_wide + n, c_wide);
            for (int64_t k = 0; k < K; k += EDGE) {
                _tile_loadd(4, a + m * a_wide + k, a_wide * 2);
                _tile_loadd(5, a + (m + 16) * a_wide + k, a_wide * 2);
                _tile_loadd(6, b + k / 2 * b_wide + n, b_wide * 4);
                _tile_loadd(7, b + k / 2 * b_wide + n + 16, b_wide * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            store_sums(c + m * c_wide + n, c_wide);
        }
}

inline uint32_t beside(bf16 first, bf16 second) { return uint32_t(first.bits) | uint32_t(second.bits) << 16; }

inline __m512i beside(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// Rows (L, E) as pairs of rows (L / 2, E).
void pair_rows(const bf16 *x, uint32_t *pairs, int64_t L, int64_t E) {
    for (int64_t l = 0; l < L; l += 2) {
        const bf16 *upper = x + l * E, *lower = upper + E;
        uint32_t *to = pairs + l / 2 * E;
#pragma omp simd
        for (int64_t e = 0; e < E; e++) to[e] = beside(upper[e], lower[e]);
    }
}

// Turns 16 rows of 16 numbers of four bytes the other way round.
inline void turn(__m512i *rows) {
    __m512i two[16], four[16];
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            four[i + 2 * j] = _mm512_unpacklo_epi64(two[i + j], two[i + j + 2]);
            four[i + 2 * j + 1] = _mm512_unpackhi_epi64(two[i + j], two[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        __m512i even_upper = _mm512_shuffle_i32x4(four[i], four[i + 4], 0x88);
        __m512i even_lower = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0x88);
        __m512i odd_upper = _mm512_shuffle_i32x4(four[i], four[i + 4], 0xdd);
        __m512i odd_lower = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(even_upper, even_lower, 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(even_upper, even_lower, 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0xdd);
    }
}

// Pairs of columns of 16 rows (16, E), from pair `e` on, the other way round.
inline void load_turned(const bf16 *x, int64_t E, int64_t e, __m512i *rows) {
    for (int64_t l = 0; l < LANES; l++) rows[l] = _mm512_loadu_si512(x + l * E + 2 * e);
    turn(rows);
}

// Rows (L, E) the other way round, as pairs (E / 2, L) that are `wide` apart.
void pair_columns(const bf16 *x, uint32_t *pairs, int64_t L, int64_t E, int64_t wide) {
    __m512i rows[LANES];
    for (int64_t l = 0; l < L; l += LANES)
        for (int64_t e = 0; e < E / 2; e += LANES) {
            load_turned(x + l * E, E, e, rows);
            for (int64_t i = 0; i < LANES; i++) _mm512_storeu_si512(pairs + (e + i) * wide + l, rows[i]);
        }
}

// Rows (L, E) the other way round, (E, L), that are `wide` apart.
void turn_round(const bf16 *x, bf16 *turned, int64_t L, int64_t E, int64_t wide) {
    __m512i rows[LANES];
    for (int64_t l = 0; l < L; l += LANES)
        for (int64_t e = 0; e < E / 2; e += LANES) {
            load_turned(x + l * E, E, e, rows);
            for (int64_t i = 0; i < LANES; i++) {
                bf16 *even = turned + 2 * (e + i) * wide + l;
                store(even, _mm512_cvtepi32_epi16(rows[i]));
                store(even + wide, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rows[i], 16)));
            }
        }
}

}  // namespace

#endif
