// Causal attention within documents by the tiles of a processor that has AMX, forward and backward: scores stay in the
// cache of a core, where products of single calls write them to memory and read them again. Lengths and the width of a
// head are multiples of 32. A head is computed by one thread, so that no result depends on how many there are.

#include "tiles.h"

#ifdef HAS_TILES

#include <sys/syscall.h>
#include <unistd.h>

namespace {

// The sum of G heads the other way round, from (G, E, L) to (L, E).
void add_heads(const float *x, bf16 *sum, int64_t G, int64_t L, int64_t E, int64_t wide) {
    __m512i rows[LANES];
    for (int64_t l = 0; l < L; l += LANES)
        for (int64_t e = 0; e < E; e += LANES) {
            for (int64_t i = 0; i < LANES; i++) {
                __m512 all = _mm512_loadu_ps(x + (e + i) * wide + l);
                for (int64_t g = 1; g < G; g++) all = _mm512_add_ps(all, _mm512_loadu_ps(x + (g * E + e + i) * wide + l));
                rows[i] = _mm512_castps_si512(all);
            }
            turn(rows);
            for (int64_t i = 0; i < LANES; i++) store(sum + (l + i) * E + e, rounded(_mm512_castsi512_ps(rows[i])));
        }
}

void round_row(const float *x, float times, bf16 *to, int64_t numbers) {
    __m512 all = _mm512_set1_ps(times);
    for (int64_t i = 0; i < numbers; i += LANES) store(to + i, rounded(_mm512_mul_ps(_mm512_loadu_ps(x + i), all)));
}

constexpr int64_t LONGEST_BLOCK = 64;

// Queries that are computed at once: of a short document few, so that little is computed of what they may not see.
int64_t block_of(int64_t L) { return L <= 64 ? 32 : LONGEST_BLOCK; }

struct Weights {
    float share, normalizer;  // 1 / sum, and the logarithm of the sum of e^score
};

// Turns a row of scores into what it weighs its values with, not yet divided by their sum, zero behind `seen`.
Weights weigh(const float *scores, bf16 *weights, int64_t seen, int64_t keys) {
    __m512 lowest = _mm512_set1_ps(-__builtin_inff()), most = lowest, sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < seen; k += LANES)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, lanes_seen(k, seen), scores + k));
    float largest = _mm512_reduce_max_ps(most);
    __m512 above = _mm512_set1_ps(largest);
    int64_t k = 0;
    for (; k < seen; k += LANES) {
        __mmask16 lanes = lanes_seen(k, seen);
        __m512 power = _mm512_maskz_mov_ps(lanes, exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + k), above)));
        sum = _mm512_add_ps(sum, power);
        store(weights + k, rounded(power));
    }
    for (; k < keys; k += LANES) store(weights + k, _mm256_setzero_si256());
    float all = _mm512_reduce_add_ps(sum);
    return {1 / all, largest + __builtin_logf(all)};
}

// p = e^(score - normalizer) in place of the scores, zero behind `seen`; returns p . dp.
float probabilities(float *scores, const float *slope, float normalizer, int64_t seen, int64_t keys) {
    __m512 above = _mm512_set1_ps(normalizer), along = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k < seen; k += LANES) {
        __mmask16 lanes = lanes_seen(k, seen);
        __m512 p = _mm512_maskz_mov_ps(lanes, exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + k), above)));
        along = _mm512_fmadd_ps(p, _mm512_loadu_ps(slope + k), along);
        _mm512_storeu_ps(scores + k, p);
    }
    for (; k < keys; k += LANES) _mm512_storeu_ps(scores + k, _mm512_setzero_ps());
    return _mm512_reduce_add_ps(along);
}

// Of two rows ds = p (dp - p . dp), as rows, and both p and ds as pairs.
void slopes_of_scores(const float *p, const float *dp, int64_t wide, const float *along, bf16 *ds, uint32_t *p_pairs,
                      uint32_t *ds_pairs, int64_t keys) {
    __m512 upper_along = _mm512_set1_ps(along[0]), lower_along = _mm512_set1_ps(along[1]);
    for (int64_t k = 0; k < keys; k += LANES) {
        __m512 upper_p = _mm512_loadu_ps(p + k), lower_p = _mm512_loadu_ps(p + wide + k);
        __m512 upper = _mm512_mul_ps(upper_p, _mm512_sub_ps(_mm512_loadu_ps(dp + k), upper_along));
        __m512 lower = _mm512_mul_ps(lower_p, _mm512_sub_ps(_mm512_loadu_ps(dp + wide + k), lower_along));
        __m256i upper_ds = rounded(upper), lower_ds = rounded(lower);
        store(ds + k, upper_ds);
        store(ds + wide + k, lower_ds);
        _mm512_storeu_si512(p_pairs + k, beside(rounded(upper_p), rounded(lower_p)));
        _mm512_storeu_si512(ds_pairs + k, beside(upper_ds, lower_ds));
    }
}

// What the backward pass of a head works with.
struct Head {
    const bf16 *q, *slope;
    const float *normalizer;
    const uint32_t *key_columns, *key_rows, *value_columns;
    bf16 *dq;
    float *dk, *dv;  // the other way round, (E, L)
};

void head_backward(const Head &head, int64_t L, int64_t E) {
    int64_t block = block_of(L), wide = L + APART;
    auto scores = room<float>(block * wide), slopes = room<float>(block * wide), dq = room<float>(block * E);
    auto ds = room<bf16>(block * wide);
    auto p_pairs = room<uint32_t>(block / 2 * wide), ds_pairs = room<uint32_t>(block / 2 * wide);
    auto q_turned = room<bf16>(E * block), slope_turned = room<bf16>(E * block);
    for (int64_t first = (L - 1) / block * block; first >= 0; first -= block) {
        int64_t rows = L - first < block ? L - first : block, keys = first + rows;
        const bf16 *q = head.q + first * E, *slope = head.slope + first * E;
        product<false>(q, E, head.key_columns, wide, scores.get(), wide, rows, keys, E);
        product<false>(slope, E, head.value_columns, wide, slopes.get(), wide, rows, keys, E);
        for (int64_t row = 0; row < rows; row += 2) {
            float *p = scores.get() + row * wide, *dp = slopes.get() + row * wide, along[2];
            for (int64_t i = 0; i < 2; i++)
                along[i] = probabilities(p + i * wide, dp + i * wide, head.normalizer[first + row + i],
                                         first + row + i + 1, keys);
            slopes_of_scores(p, dp, wide, along, ds.get() + row * wide, p_pairs.get() + row / 2 * wide,
                             ds_pairs.get() + row / 2 * wide, keys);
        }
        product<false>(ds.get(), wide, head.key_rows, E, dq.get(), E, rows, E, keys);
        round_row(dq.get(), 1, head.dq + first * E, rows * E);
        turn_round(q, q_turned.get(), rows, E, block);
        turn_round(slope, slope_turned.get(), rows, E, block);
        if (first + rows == L) {  // the last block, which sees all keys, comes first
            product<false>(slope_turned.get(), block, p_pairs.get(), wide, head.dv, wide, E, keys, rows);
            product<false>(q_turned.get(), block, ds_pairs.get(), wide, head.dk, wide, E, keys, rows);
        } else {
            product<true>(slope_turned.get(), block, p_pairs.get(), wide, head.dv, wide, E, keys, rows);
            product<true>(q_turned.get(), block, ds_pairs.get(), wide, head.dk, wide, E, keys, rows);
        }
    }
}

}  // namespace

extern "C" {

// Says whether the processor has tiles of bf16 and the system lets this process use them, which it has to be asked.
int tiles_ready() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA (asm/prctl.h of Linux)
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// q and out (H, L, E), k and v (H / G, L, E), normalizer (H, L).
void attend(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *normalizer, int64_t H, int64_t G, int64_t L,
            int64_t E, int threads) {
    int64_t keyed = H / G, wide = L + APART, block = block_of(L), blocks = (L + block - 1) / block;
    auto key_columns = room<uint32_t>(keyed * E / 2 * wide), value_rows = room<uint32_t>(keyed * L / 2 * E);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t own = 0; own < keyed; own++) {
        pair_columns(k + own * L * E, key_columns.get() + own * E / 2 * wide, L, E, wide);
        pair_rows(v + own * L * E, value_rows.get() + own * L / 2 * E, L, E);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = H * blocks - 1; task >= 0; task--) {
        int64_t head = task % H, first = task / H * block, own = head / G;
        int64_t rows = L - first < block ? L - first : block, keys = first + rows;
        auto scores = room<float>(block * wide), heard = room<float>(block * E);
        auto weights = room<bf16>(block * wide);
        Tiles tiles;
        product<false>(q + (head * L + first) * E, E, key_columns.get() + own * E / 2 * wide, wide, scores.get(), wide,
                       rows, keys, E);
        Weights of_row[LONGEST_BLOCK];
        for (int64_t row = 0; row < rows; row++)
            of_row[row] = weigh(scores.get() + row * wide, weights.get() + row * wide, first + row + 1, keys);
        product<false>(weights.get(), wide, value_rows.get() + own * L / 2 * E, E, heard.get(), E, rows, E, keys);
        for (int64_t row = 0; row < rows; row++) {
            round_row(heard.get() + row * E, of_row[row].share, out + (head * L + first + row) * E, E);
            normalizer[head * L + first + row] = of_row[row].normalizer;
        }
    }
}

// slope and dq as q, dk and dv as k.
void attend_backward(const bf16 *slope, const bf16 *q, const bf16 *k, const bf16 *v, const float *normalizer, bf16 *dq,
                     bf16 *dk, bf16 *dv, int64_t H, int64_t G, int64_t L, int64_t E, int threads) {
    int64_t keyed = H / G, wide = L + APART, columns = E / 2 * wide, pairs = L / 2 * E, sums = E * wide;
    auto key_columns = room<uint32_t>(keyed * columns), value_columns = room<uint32_t>(keyed * columns);
    auto key_rows = room<uint32_t>(keyed * pairs);
    auto key_sums = room<float>(H * sums), value_sums = room<float>(H * sums);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t own = 0; own < keyed; own++) {
        pair_columns(k + own * L * E, key_columns.get() + own * columns, L, E, wide);
        pair_columns(v + own * L * E, value_columns.get() + own * columns, L, E, wide);
        pair_rows(k + own * L * E, key_rows.get() + own * pairs, L, E);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t head = 0; head < H; head++) {
        int64_t own = head / G, at = head * L * E;
        Tiles tiles;
        head_backward({q + at, slope + at, normalizer + head * L, key_columns.get() + own * columns,
                       key_rows.get() + own * pairs, value_columns.get() + own * columns, dq + at,
                       key_sums.get() + head * sums, value_sums.get() + head * sums},
                      L, E);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t own = 0; own < keyed; own++) {
        add_heads(key_sums.get() + own * G * sums, dk + own * L * E, G, L, E, wide);
        add_heads(value_sums.get() + own * G * sums, dv + own * L * E, G, L, E, wide);
    }
}
}

#else

extern "C" int tiles_ready() { return 0; }

#endif
