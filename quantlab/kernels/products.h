/* Products of quantized inputs and weights. The integers are widened to 16 bits and multiplied in pairs, and the
   pairs are summed in 32 bits: nothing saturates, on any processor. */
#define CHUNK 48 /* rows that one thread widens at a time, a multiple of TILE; they stay in its L2 cache */

/* sums + a0 b0 + a1 b1, where each element of a and b is a pair of 16-bit integers. */
static inline Sums add_products(Sums sums, Sums a, Sums b) {
#if defined(__AVX512VNNI__)
    return (Sums)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return (Sums)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16((__m512i)a, (__m512i)b));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (Sums)_mm256_add_epi32((__m256i)sums, _mm256_madd_epi16((__m256i)a, (__m256i)b));
#else
    for (int i = 0; i < LANES; i++)
        sums[i] += (int16_t)a[i] * (int16_t)b[i] + (a[i] >> 16) * (b[i] >> 16);
    return sums;
#endif
}

/* The instructions that multiply. */
const char *instructions(void) {
#if defined(__AVX512VNNI__)
    return "avx512_vnni";
#elif defined(__AVX512BW__)
    return "avx512";
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return "avx2";
#else
    return "plain C";
#endif
}

/* sums[r][c] = sum over all pairs of x[r] and the c-th column of a panel of the weight. */
static inline void tile_sums(const int16_t *x, const int16_t *panel, int64_t pairs,
                             Sums sums[TILE][PANEL / LANES]) {
    Sums running[TILE][PANEL / LANES] = {0};
    for (int64_t p = 0; p < pairs; p++)
#pragma GCC unroll 12
        for (int r = 0; r < TILE; r++) {
            int32_t pair;
            memcpy(&pair, x + 2 * (r * pairs + p), sizeof pair);
#pragma GCC unroll 2
            for (int c = 0; c < PANEL / LANES; c++)
                running[r][c] = add_products(running[r][c], pair - (Sums){0},
                                             *(const Sums *)(panel + 2 * (p * PANEL + c * LANES)));
        }
    memcpy(sums, running, sizeof running);
}

/* The GELU, 0.5 x (1 + erf(x / sqrt 2)), within 2e-7 |x|: Abramowitz and Stegun 1964, equation 7.1.26. */
static inline float gelu(float x) {
    const float t = 1.f / fmaf(0.3275911f * 0.707106781f, fabsf(x), 1.f);
    float p = 1.061405429f;
    p = fmaf(p, t, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f);
    const float tail = 0.5f * p * t * exp_of_negative(-0.5f * x * x); /* the normal distribution's at |x| */
    return x * (x < 0 ? tail : 1.f - tail);
}

/* The outputs of one row and panel. They are rounded twice, as oneDNN does, so that both give the same bits. */
__attribute__((noinline, optimize("fp-contract=off"))) static void
scale_sums(const int32_t *sums, const float *scale, const float *bias, float *values) {
    for (int c = 0; c < PANEL; c++) values[c] = (float)sums[c] * scale[c] + bias[c];
}

static void gelu_bytes(const float *values, uint8_t *bytes, Grid grid, int32_t zero_point) {
#pragma omp simd
    for (int c = 0; c < PANEL; c++)
        bytes[c] = (uint8_t)((int32_t)integer_of(gelu(values[c]), grid) + zero_point);
}

/* y = s x W^T + bias for x (rows, inputs), minus its zero point, and W (outputs, inputs), which is given in panels
   of 16 outputs, each (pairs of inputs, 16, 2) and filled up with zeros. scale s is one for each output, and bias
   may be null. If onto is not null, the GELU of y is quantized on that grid instead, and its integers plus
   byte_zero_point go to bytes. Returns 1 if memory runs out, else 0. */
int multiply(const uint8_t *x, const int16_t *weight, const float *scale, const float *bias, float *y,
             uint8_t *bytes, int64_t rows, int64_t inputs, int64_t outputs, int32_t zero_point,
             const Grid *onto, int32_t byte_zero_point, int threads) {
    const int64_t pairs = (inputs + 1) / 2, share = (rows + threads - 1) / threads;
    const int64_t chunk = share < CHUNK ? (share + TILE - 1) / TILE * TILE : CHUNK;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        int16_t *wide = calloc(chunk * pairs, 2 * sizeof(int16_t));
        failed |= !wide;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows; i += chunk) {
            if (!wide) continue;
            const int64_t count = rows - i < chunk ? rows - i : chunk;
            for (int64_t r = 0; r < count; r++)
                for (int64_t k = 0; k < inputs; k++)
                    wide[2 * r * pairs + k] = (int16_t)(x[(i + r) * inputs + k] - zero_point);
            for (int64_t o = 0; o < outputs; o += PANEL) {
                const int64_t width = outputs - o < PANEL ? outputs - o : PANEL;
                float scales[PANEL] = {0}, biases[PANEL] = {0};
                memcpy(scales, scale + o, width * sizeof(float));
                if (bias) memcpy(biases, bias + o, width * sizeof(float));
                for (int64_t r = 0; r < count; r += TILE) {
                    int32_t sums[TILE][PANEL];
                    tile_sums(wide + 2 * r * pairs, weight + 2 * o * pairs, pairs, (void *)sums);
                    for (int64_t q = 0; q < TILE && r + q < count; q++) {
                        const int64_t to = (i + r + q) * outputs + o;
                        float values[PANEL];
                        uint8_t quantized[PANEL];
                        scale_sums(sums[q], scales, biases, values);
                        if (onto) gelu_bytes(values, quantized, *onto, byte_zero_point);
                        if (onto)
                            memcpy(bytes + to, quantized, width);
                        else
                            memcpy(y + to, values, width * sizeof(float));
                    }
                }
            }
        }
        free(wide);
    }
    return failed;
}
