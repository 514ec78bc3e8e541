// The output head by the tiles of a processor that has AMX: its row that is expected after each token, whose logits stay in
// the cache of a core. Tokens and their numbers come in multiples of 32, words do not. A token is computed by one thread, and
// alone, so that no result depends on how many there are.

#include "tiles.h"

#ifdef HAS_TILES

#include <algorithm>

namespace {

constexpr int64_t MOST_WORDS = 256;       // rows of the head that are laid out at a time
constexpr int64_t CACHE_BYTES = 2000000;  // of words laid out twice, tokens and their means

// Words that are laid out at a time, and tokens that they then pass by: both fill half of the cache, whatever a token's size.
int64_t words_at_once(int64_t D) { return std::clamp<int64_t>(CACHE_BYTES / 2 / (4 * D) / 32 * 32, 32, MOST_WORDS); }

int64_t tokens_at_once(int64_t D) {
    return std::max<int64_t>(32, (CACHE_BYTES - 4 * D * words_at_once(D)) / (6 * D) / 32 * 32);
}

// Rows (rows, D) of 32 tokens after 32 tokens, as tiles: 32 numbers of each, and then the next 32.
void lay_out_rows(const bf16 *x, bf16 *to, int64_t rows, int64_t D) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < D; d += 32)
            _mm512_store_si512(to + row / 32 * 32 * D + d * 32 + row % 32 * 32, _mm512_loadu_si512(x + row * D + d));
}

// 32 rows (32, D), of which `there` are there and the others zero, as tiles of pairs of columns: the second factor of logits.
void pair_columns_of_words(const bf16 *head, uint32_t *pairs, int64_t there, int64_t D) {
    __m512i rows[LANES];
    for (int64_t d = 0; d < D; d += 32)
        for (int64_t half = 0; half < 32; half += LANES) {
            for (int64_t i = 0; i < LANES; i++)
                rows[i] = half + i < there ? _mm512_loadu_si512(head + (half + i) * D + d) : _mm512_setzero_si512();
            turn(rows);
            for (int64_t i = 0; i < LANES; i++) _mm512_store_si512(pairs + (d + half + i) * LANES, rows[i]);
        }
}

// 32 columns of `words` rows, D apart, as tiles of pairs of rows, up to a multiple of 32 with zeros: of the mean.
void pair_words(const bf16 *head, uint32_t *pairs, int64_t words, int64_t D) {
    for (int64_t w = 0; w < up_to(words, 32); w += 2) {
        __m512i upper = w < words ? _mm512_loadu_si512(head + w * D) : _mm512_setzero_si512();
        __m512i lower = w + 1 < words ? _mm512_loadu_si512(head + (w + 1) * D) : _mm512_setzero_si512();
        uint32_t *to = pairs + w / 32 * 512 + w % 32 * 8;
        _mm512_store_si512(to, beside(_mm512_castsi512_si256(upper), _mm512_castsi512_si256(lower)));
        _mm512_store_si512(to + 256, beside(_mm512_extracti64x4_epi64(upper, 1), _mm512_extracti64x4_epi64(lower, 1)));
    }
}

// sums (32, 32), whose rows are `wide` apart, = x (32, deep) pairs (deep / 2, 32), or that added, of factors laid out.
template <bool ADDED>
void laid_product(const bf16 *x, const uint32_t *pairs, float *sums, int64_t wide, int64_t deep) {
    written();
    load_sums<ADDED>(sums, wide);
    for (int64_t k = 0; k < deep; k += 32) {
        _tile_loadd(4, x + k * 32, 64);
        _tile_loadd(6, pairs + k * 16, 64);
        _tile_loadd(7, pairs + k * 16 + 256, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, x + k * 32 + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    store_sums(sums, wide);
}

struct SoFar {
    float largest = -__builtin_inff(), sum = 0;  // of the logits, and of e^(logit - largest)
};

// Turns a token's logits of some words into weights of their rows, and rescales what went before to the new largest.
void weigh_words(const float *logits, bf16 *weights, int64_t words, SoFar &of_token, float *mean, int64_t D) {
    __m512 most = _mm512_set1_ps(of_token.largest), sum = _mm512_setzero_ps();
    for (int64_t w = 0; w < words; w += LANES)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(most, lanes_seen(w, words), logits + w));
    float largest = _mm512_reduce_max_ps(most);
    __m512 above = _mm512_set1_ps(largest);
    if (of_token.sum > 0 && largest > of_token.largest) {
        __m512 factor = exponential(_mm512_set1_ps(of_token.largest - largest));
        for (int64_t d = 0; d < D; d += LANES) _mm512_storeu_ps(mean + d, _mm512_mul_ps(factor, _mm512_loadu_ps(mean + d)));
        of_token.sum *= _mm512_cvtss_f32(factor);
    }
    for (int64_t w = 0; w < up_to(words, 32); w += LANES) {
        __m512 power = exponential(_mm512_sub_ps(_mm512_loadu_ps(logits + w), above));
        power = _mm512_maskz_mov_ps(w < words ? lanes_seen(w, words) : __mmask16(0), power);
        sum = _mm512_add_ps(sum, power);
        store(weights + w / 32 * 1024 + w % 32, rounded(power));
    }
    of_token.largest = largest;
    of_token.sum += _mm512_reduce_add_ps(sum);
}

// What a thread works with.
struct Scratch {
    int64_t most_words, wide;
    std::unique_ptr<bf16[], Freed> tokens, weights;
    std::unique_ptr<uint32_t[], Freed> columns, rows;
    std::unique_ptr<float[], Freed> logits;
    std::unique_ptr<SoFar[], Freed> so_far;

    Scratch(int64_t most_tokens, int64_t D)
        : most_words(words_at_once(D)), wide(most_words + LANES), tokens(room<bf16>(most_tokens * D)),
          weights(room<bf16>(32 * most_words)), columns(room<uint32_t>(most_words / 2 * D)),
          rows(room<uint32_t>(most_words / 2 * D)), logits(room<float>(32 * wide)), so_far(room<SoFar>(most_tokens)) {}
};

// Adds what some words contribute to the means of some tokens.
void add_words(const bf16 *head, int64_t words, Scratch &with, float *mean, int64_t tokens, int64_t D) {
    for (int64_t w = 0; w < words; w += 32)
        pair_columns_of_words(head + w * D, with.columns.get() + w / 2 * D, std::min<int64_t>(32, words - w), D);
    for (int64_t d = 0; d < D; d += 32) pair_words(head + d, with.rows.get() + d / 2 * with.most_words, words, D);
    float *logits = with.logits.get();
    for (int64_t n = 0; n < tokens; n += 32) {
        for (int64_t w = 0; w < words; w += 32)
            laid_product<false>(with.tokens.get() + n * D, with.columns.get() + w / 2 * D, logits + w, with.wide, D);
        for (int64_t row = 0; row < 32; row++)
            weigh_words(logits + row * with.wide, with.weights.get() + row * 32, words, with.so_far[n + row],
                        mean + (n + row) * D, D);
        for (int64_t d = 0; d < D; d += 32)
            laid_product<true>(with.weights.get(), with.rows.get() + d / 2 * with.most_words, mean + n * D + d, D,
                               up_to(words, 32));
    }
}

}  // namespace

extern "C" {

// mean (N, D) = softmax(hidden headᵀ) head and normalizer (N) = log sum e^(hidden headᵀ), of hidden (N, D) and head (V, D).
void expected_row(const bf16 *hidden, const bf16 *head, float *mean, float *normalizer, int64_t N, int64_t D, int64_t V,
                  int threads) {
    if (N == 0) return;
    int64_t each = up_to(N / 32, threads) / threads * 32, most = tokens_at_once(D), parts = (each + most - 1) / most;
    int64_t rows = up_to(each / 32, parts) / parts * 32;
#pragma omp parallel num_threads(threads)
    {
        Scratch with(rows, D);
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < N; first += rows) {
            int64_t own = std::min(rows, N - first);
            std::fill_n(with.so_far.get(), own, SoFar());
            std::fill_n(mean + first * D, own * D, 0.f);
            lay_out_rows(hidden + first * D, with.tokens.get(), own, D);
            for (int64_t v = 0; v < V; v += with.most_words)
                add_words(head + v * D, std::min(with.most_words, V - v), with, mean + first * D, own, D);
            for (int64_t n = 0; n < own; n++) {
                SoFar of_token = with.so_far[n];
                normalizer[first + n] = of_token.largest + __builtin_logf(of_token.sum);
                for (int64_t d = 0; d < D; d++) mean[(first + n) * D + d] /= of_token.sum;
            }
        }
    }
}
}

#endif
