// The products of low-rank adapters by the tiles of a processor that has AMX: one pass over the tokens each, where oneDNN
// first copies them to lay them out anew. Tokens, inputs and outputs are multiples of 32, ranks are even.

#include "tiles.h"

#ifdef HAS_TILES

#include <algorithm>

namespace {

constexpr int64_t MOST_PADDED = 64;  // ranks that are turned round at once
constexpr int64_t MOST_RANKS = 48;  // of three tiles, that are summed while a strip of 32 columns is read once

// Pairs of rows of 32 rows (32, 32), each beside the next.
inline void pair_block(const bf16 *x, int64_t wide, uint32_t *pairs) {
    alignas(64) uint16_t first[32], second[32];
    for (int i = 0; i < 16; i++) {
        first[2 * i] = i, first[2 * i + 1] = i + 32;
        second[2 * i] = i + 16, second[2 * i + 1] = i + 48;
    }
    __m512i left = _mm512_load_si512(first), right = _mm512_load_si512(second);
    for (int64_t i = 0; i < 16; i++) {
        const bf16 *from = x + 2 * i * wide;
        __m512i upper = _mm512_loadu_si512(from), lower = _mm512_loadu_si512(from + wide);
        _mm_prefetch(from + 32, _MM_HINT_T1);
        _mm_prefetch(from + 32 + wide, _MM_HINT_T1);
        _mm512_store_si512(pairs + i * 32, _mm512_permutex2var_epi16(upper, left, lower));
        _mm512_store_si512(pairs + i * 32 + 16, _mm512_permutex2var_epi16(upper, right, lower));
    }
}

// Sums (16 COUNT, 32) = turned (16 COUNT, T) x (T, 32).
template <int COUNT>
void strip(const bf16 *turned, int64_t turned_wide, const bf16 *x, int64_t x_wide, float *sums, int64_t T) {
    alignas(64) uint32_t pairs[16 * 32];
    const int64_t step = turned_wide * 2;
    _tile_zero(0);
    _tile_zero(1);
    if (COUNT > 1) {
        _tile_zero(2);
        _tile_zero(3);
    }
    if (COUNT > 2) {
        _tile_zero(4);
        _tile_zero(5);
    }
    for (int64_t t = 0; t < T; t += 32) {
        pair_block(x + t * x_wide, x_wide, pairs);
        written();
        for (int half = 0; half < 2; half++) {
            _tile_loadd(7, pairs + 16 * half, 128);
            _tile_loadd(6, turned + t, step);
            if (half)
                _tile_dpbf16ps(1, 6, 7);
            else
                _tile_dpbf16ps(0, 6, 7);
            if (COUNT > 1) {
                _tile_loadd(6, turned + 16 * turned_wide + t, step);
                if (half)
                    _tile_dpbf16ps(3, 6, 7);
                else
                    _tile_dpbf16ps(2, 6, 7);
            }
            if (COUNT > 2) {
                _tile_loadd(6, turned + 32 * turned_wide + t, step);
                if (half)
                    _tile_dpbf16ps(5, 6, 7);
                else
                    _tile_dpbf16ps(4, 6, 7);
            }
        }
        written();  // what comes next goes to the same place, and not before it was loaded
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    if (COUNT > 1) {
        _tile_stored(2, sums + 16 * 32, 128);
        _tile_stored(3, sums + 16 * 32 + 16, 128);
    }
    if (COUNT > 2) {
        _tile_stored(4, sums + 32 * 32, 128);
        _tile_stored(5, sums + 32 * 32 + 16, 128);
    }
}

// Rows (rows, S) to rows of `wide` numbers, zero behind them.
inline void pad_rows(const bf16 *x, int64_t x_wide, bf16 *to, int64_t wide, int64_t rows, int64_t S) {
    for (int64_t row = 0; row < rows; row++) {
        memcpy(static_cast<void *>(to + row * wide), x + row * x_wide, S * sizeof(bf16));
        memset(static_cast<void *>(to + row * wide + S), 0, (wide - S) * sizeof(bf16));
    }
}

}  // namespace

extern "C" {

// out (R, N) in fp32 = times aᵀ x, of a (T, R) and x (T, N), whose rows are `wide` apart; where it is `across`, (N, R).
void turned_product(const bf16 *a, int64_t a_wide, const bf16 *x, int64_t x_wide, float *out, float times, int across,
                    int64_t T, int64_t R, int64_t N, int threads) {
    int64_t ranks = up_to(R, 32), wide = T + 32;
    auto turned = room<bf16>(ranks * wide);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t += 32) {
            alignas(64) bf16 padded[32 * MOST_PADDED];
            for (int64_t r = 0; r < ranks; r += MOST_PADDED) {
                int64_t own = std::min(MOST_PADDED, ranks - r);
                pad_rows(a + t * a_wide + r, a_wide, padded, own, 32, std::clamp<int64_t>(R - r, 0, own));
                turn_round(padded, turned.get() + r * wide + t, 32, own, wide);
            }
        }
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n += 32) {
            alignas(64) float sums[MOST_RANKS * 32];
            for (int64_t r = 0; r < R; r += MOST_RANKS) {
                int64_t own = std::min(MOST_RANKS, R - r);
                const bf16 *from = turned.get() + r * wide;
                if (own > 32)
                    strip<3>(from, wide, x + n, x_wide, sums, T);
                else if (own > 16)
                    strip<2>(from, wide, x + n, x_wide, sums, T);
                else
                    strip<1>(from, wide, x + n, x_wide, sums, T);
                for (int64_t row = 0; row < own; row++)
                    for (int64_t i = 0; i < 32; i++)
                        out[across ? (n + i) * R + r + row : (r + row) * N + n + i] = times * sums[row * 32 + i];
            }
        }
    }
}

// out (T, I) = x + low a, of x (T, I) and low (T, S) beside each other, and a (S, I); rows of both are `wide` apart.
void add_low_rank(const bf16 *x_low, const bf16 *a, bf16 *out, int64_t T, int64_t I, int64_t S, int64_t wide,
                  int threads) {
    int64_t ranks = up_to(S, 32);
    auto rows = room<bf16>(ranks * I);
    auto pairs = room<uint32_t>(ranks / 2 * I);
    pad_rows(a, wide, rows.get(), I, S, I);
    memset(static_cast<void *>(rows.get() + S * I), 0, (ranks - S) * I * sizeof(bf16));
    pair_rows(rows.get(), pairs.get(), ranks, I);
#pragma omp parallel num_threads(threads)
    {
        auto low = room<bf16>(32 * ranks);
        alignas(64) float sums[32 * 32];
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t += 32) {
            const bf16 *from = x_low + t * wide;
            pad_rows(from + I, wide, low.get(), ranks, 32, S);
            for (int64_t i = 0; i < I; i += 32) {
                product<false>(low.get(), ranks, pairs.get() + i, I, sums, 32, 32, 32, ranks);
                for (int64_t row = 0; row < 32; row++)
                    for (int64_t half = 0; half < 32; half += LANES) {
                        __m512 x = read(load(from + row * wide + i + half));
                        __m512 sum = _mm512_add_ps(x, _mm512_load_ps(sums + row * 32 + half));
                        store(out + (t + row) * I + i + half, rounded(sum));
                    }
            }
        }
    }
}

// low (T, S) = x aᵀ, of x (T, I) and a (S, I), rows of both being `wide` apart; also written behind x.
void project_low(bf16 *x, const bf16 *a, bf16 *low, int64_t T, int64_t I, int64_t S, int64_t wide, int threads) {
    int64_t ranks = up_to(S, 32);
    auto rows = room<bf16>(ranks * I);
    auto pairs = room<uint32_t>(I / 2 * ranks);
    pad_rows(a, wide, rows.get(), I, S, I);
    memset(static_cast<void *>(rows.get() + S * I), 0, (ranks - S) * I * sizeof(bf16));
    pair_columns(rows.get(), pairs.get(), ranks, I, ranks);
#pragma omp parallel num_threads(threads)
    {
        auto sums = room<float>(32 * ranks);
        auto all = room<bf16>(32 * ranks);
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t += 32) {
            bf16 *from = x + t * wide;
            product<false>(from, wide, pairs.get(), ranks, sums.get(), ranks, 32, ranks, I);
            for (int64_t i = 0; i < 32 * ranks; i += LANES) store(all.get() + i, rounded(_mm512_loadu_ps(sums.get() + i)));
            for (int64_t row = 0; row < 32; row++) {
                const bf16 *own = all.get() + row * ranks;
                memcpy(static_cast<void *>(from + row * wide + I), own, S * sizeof(bf16));
                memcpy(static_cast<void *>(low + (t + row) * S), own, S * sizeof(bf16));
            }
        }
    }
}
}

#endif
