/* Softmax attention with quantized scores and probabilities; the scores stay in the processor's cache. */
/* e^x for x <= 0, within 2 units in the last place: e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2.
   ln 2 is split into two floats, so that r is exact enough; e^r is its Taylor series up to r^7 / 7!. */
static inline float exp_of_negative(float x) {
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, x));
    float p = 1.f / 5040;
    p = fmaf(p, r, 1.f / 720);
    p = fmaf(p, r, 1.f / 120);
    p = fmaf(p, r, 1.f / 24);
    p = fmaf(p, r, 1.f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.f);
    p = fmaf(p, r, 1.f);
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)(n < -126.f ? -126.f : n) + 127) << 23};
    return x < -87.f ? 0.f : p * power.value;
}

/* Turns one row of attention scores into probabilities: scale, quantize (before), mask, softmax, quantize
   (after). A null grid skips its step. NaN and infinite scores give a row of NaN, as in torch. */
SPECIALIZED void softmax(float *x, int64_t keys, float scaling, const Grid *before, const float *mask,
                         const Grid *after) {
    float largest = -INFINITY, sum = 0;
    int nan = 0;
#pragma omp simd reduction(max : largest) reduction(| : nan)
    for (int64_t k = 0; k < keys; k++) {
        float s = (before ? snapped(x[k] * scaling, *before) : x[k] * scaling) + mask[k];
        nan |= s != s;
        largest = s > largest ? s : largest;
        x[k] = s;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < keys; k++) sum += x[k] = exp_of_negative(x[k] - largest);
    const float inverse = nan || !isfinite(largest) ? NAN : 1 / sum;
#pragma omp simd
    for (int64_t k = 0; k < keys; k++) x[k] = after ? snapped(x[k] * inverse, *after) : x[k] * inverse;
}

static void to_probabilities(float *x, int64_t keys, float scaling, const Grid *before, const float *mask,
                             const Grid *after) {
    if (before && after) {
        softmax(x, keys, scaling, before, mask, after);
    } else if (after) {
        softmax(x, keys, scaling, 0, mask, after);
    } else if (before) {
        softmax(x, keys, scaling, before, mask, 0);
    } else {
        softmax(x, keys, scaling, 0, mask, 0);
    }
}

/* sums[r][c] = sum over i of x[r * x_stride + i] * rows[i * stride + c], in the order of i. */
static inline void tile_products(const float *x, int64_t x_stride, const float *rows, int64_t stride,
                                 int64_t count, Lanes sums[TILE][PANEL / LANES]) {
    Lanes running[TILE][PANEL / LANES] = {0};
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 12
        for (int r = 0; r < TILE; r++)
#pragma GCC unroll 2
            for (int c = 0; c < PANEL / LANES; c++)
                running[r][c] += x[r * x_stride + i] * *(const Lanes *)(rows + i * stride + c * LANES);
    memcpy(sums, running, sizeof running);
}

#define CLOSED -1e38f /* a mask at or below it closes a key: its probability is 0 if any key is open */
#define TAME 1e13f /* scores of keys and queries up to it are far smaller than any gap at CLOSED */

typedef struct {
    int64_t batch, head, token;
} Strides; /* in elements; those of the width are 1 */

static inline const float *at(const float *x, Strides by, int64_t batch, int64_t head, int64_t token) {
    return x + batch * by.batch + head * by.head + token * by.token;
}

/* Whether all elements are finite and at most `most`. */
static inline int all_within(const float *x, int64_t count, float most) {
    int beyond = 0;
#pragma omp simd reduction(| : beyond)
    for (int64_t i = 0; i < count; i++) beyond |= !(fabsf(x[i]) <= most);
    return !beyond;
}

/* The number of keys that a block of queries has to see: up to the last one that is open to any of them, or
   all of them if a query has none, for its probabilities are those of equal scores. */
static int64_t keys_seen(const float *mask, int64_t rows, int64_t stride, int64_t keys) {
    int64_t seen = 1;
    for (int64_t r = 0; r < rows; r++) {
        const float *row = mask + r * stride;
        int64_t last = keys;
        while (last > seen && row[last - 1] <= CLOSED) last--;
        if (last == seen) { /* what the rows before see may be closed to this one */
            int64_t open = seen;
            while (open > 0 && row[open - 1] <= CLOSED) open--;
            if (!open) return keys;
        }
        seen = last;
    }
    return seen;
}

/* Softmax attention. query (batch, queries, heads), key and value (batch, keys, kv_heads) lie in memory as
   their strides say, each element `width` floats, a multiple of PANEL; kv_heads divides heads. context is
   contiguous, (batch, queries, heads, width). mask is added to the scaled scores, or null; mask_strides are
   its elements per batch and per query. before and after are the grids of scores and probabilities, one per
   head, or null. Keys that a mask closes to a whole block of queries are not computed if that changes
   nothing. Returns 1 if memory runs out, else 0. */
int attend(const float *query, const float *key, const float *value, const float *mask, float *context,
           int64_t batch, int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t width,
           const Strides *strides, const int64_t *mask_strides, float scaling, const Grid *before,
           const Grid *after, int threads) {
    const int64_t padded = (keys + PANEL - 1) / PANEL * PANEL, blocks = (queries + TILE - 1) / TILE;
    const int may_skip = mask && width * fabsf(scaling) <= 1e4f;
    int64_t *seen = malloc(batch * blocks * sizeof(int64_t));
    if (!seen) return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *panels = calloc(padded * (2 * width + TILE + 1) + TILE * width, sizeof(float)); /* of keys */
        float *values = panels + padded * width, *block = values + padded * width;
        float *scores = block + TILE * width, *masked = scores + padded * TILE;
        failed |= !panels;
        for (int64_t j = keys; j < padded && panels; j++) masked[j] = -INFINITY;
#pragma omp for
        for (int64_t n = 0; n < batch * blocks; n++) {
            const int64_t b = n / blocks, i = n % blocks * TILE;
            seen[n] = !may_skip ? keys
                                : keys_seen(mask + b * mask_strides[0] + i * mask_strides[1],
                                            queries - i < TILE ? queries - i : TILE, mask_strides[1], keys);
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t head = 0; head < heads; head++) {
                if (!panels) continue;
                const int64_t kv_head = head / (heads / kv_heads);
                int tame = 1;
                for (int64_t j = 0; j < keys; j++) {
                    const float *k = at(key, strides[1], b, kv_head, j);
                    const float *v = at(value, strides[2], b, kv_head, j);
                    float *to = panels + j / PANEL * PANEL * width + j % PANEL;
                    for (int64_t d = 0; d < width; d++) to[d * PANEL] = k[d];
                    memcpy(values + j * width, v, width * sizeof(float));
                    tame &= all_within(k, width, TAME) & all_within(v, width, 3e38f);
                }
                for (int64_t i = 0; i < queries; i += TILE) {
                    const int rows = queries - i < TILE ? queries - i : TILE;
                    Lanes sums[TILE][PANEL / LANES];
                    int skips = tame;
                    for (int r = 0; r < rows; r++) { /* rows beyond the last query keep others; dropped */
                        const float *q = at(query, strides[0], b, head, i + r);
                        memcpy(block + r * width, q, width * sizeof(float));
                        skips &= all_within(q, width, TAME);
                    }
                    const int64_t sees = skips ? seen[b * blocks + i / TILE] : keys;
                    const int64_t end = (sees + PANEL - 1) / PANEL * PANEL, count = end < keys ? end : keys;
                    for (int64_t j = 0; j < end; j += PANEL) {
                        tile_products(block, width, panels + j * width, PANEL, width, sums);
                        for (int r = 0; r < TILE; r++) memcpy(scores + r * padded + j, sums[r], sizeof sums[r]);
                    }
                    for (int r = 0; r < rows; r++) {
                        if (mask) {
                            const float *from = mask + b * mask_strides[0] + (i + r) * mask_strides[1];
                            memcpy(masked, from, count * sizeof(float));
                        }
                        to_probabilities(scores + r * padded, end, scaling, before ? before + head : 0,
                                         masked, after ? after + head : 0);
                    }
                    for (int64_t d = 0; d < width; d += PANEL) {
                        tile_products(scores, padded, values + d, width, count, sums);
                        float *to = context + ((b * queries + i) * heads + head) * width + d;
                        for (int r = 0; r < rows; r++) memcpy(to + r * heads * width, sums[r], sizeof sums[r]);
                    }
                }
            }
        free(panels);
    }
    free(seen);
    return failed;
}
