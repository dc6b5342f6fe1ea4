/* Quantize-dequantize on static grids and on a grid for each token, in one pass over memory. */
typedef struct {
    float inverse, lower, upper, step;
} Grid; /* x becomes step * clamp(round(x * inverse), lower, upper); the bounds include the zero point */

/* Equal to torch's multiply, round and clamp to the bit. NaN stays NaN. */
static inline float integer_of(float x, Grid grid) {
    float q = rintf(x * grid.inverse);
    q = q < grid.lower ? grid.lower : q;
    return q > grid.upper ? grid.upper : q;
}

static inline float snapped(float x, Grid grid) { return integer_of(x, grid) * grid.step; }

/* Inner loops are functions of their own, inlined once for each case of their arguments: branches in the
   loop, and variables that OpenMP's threads share, would keep the compiler from vectorizing it. */
#define SPECIALIZED static inline __attribute__((always_inline))
#define BLOCK 16384 /* elements that one thread takes at a time */

/* Writes the quantized values to y and the integers plus zero_point to bytes. Either may be null, and y may
   be x. If bytes is given, returns whether x holds NaN, which no byte represents. */
SPECIALIZED int snap_block(const float *x, float *y, uint8_t *bytes, int64_t count, Grid grid,
                           int32_t zero_point) {
    int nan = 0;
#pragma omp simd reduction(| : nan)
    for (int64_t i = 0; i < count; i++) {
        float q = integer_of(x[i], grid);
        if (bytes) nan |= q != q, bytes[i] = (uint8_t)((int32_t)q + zero_point);
        if (y) y[i] = q * grid.step;
    }
    return nan;
}

static int snap_part(const float *x, float *y, uint8_t *bytes, int64_t count, Grid grid, int32_t zero_point) {
    if (y && bytes) return snap_block(x, y, bytes, count, grid, zero_point);
    return y ? snap_block(x, y, 0, count, grid, 0) : snap_block(x, 0, bytes, count, grid, zero_point);
}

int snap(const float *x, float *y, uint8_t *bytes, int64_t count, float inverse, float lower, float upper,
         float step, int32_t zero_point, int threads) {
    int nan = 0;
#pragma omp parallel for num_threads(threads) reduction(| : nan)
    for (int64_t i = 0; i < count; i += BLOCK)
        nan |= snap_part(x + i, y ? y + i : 0, bytes ? bytes + i : 0, count - i < BLOCK ? count - i : BLOCK,
                         (Grid){inverse, lower, upper, step}, zero_point);
    return nan;
}

SPECIALIZED int snap_row(const float *x, float *y, uint8_t *bytes, int64_t channels, const float *inverse,
                         const float *lower, const float *upper, const float *step,
                         const int32_t *zero_point) {
    int nan = 0;
#pragma omp simd reduction(| : nan)
    for (int64_t c = 0; c < channels; c++) {
        float q = integer_of(x[c], (Grid){inverse[c], lower[c], upper[c], step[c]});
        if (bytes) nan |= q != q, bytes[c] = (uint8_t)((int32_t)q + zero_point[c]);
        if (y) y[c] = q * step[c];
    }
    return nan;
}

/* snap with one grid per channel; channels are the last dimension. */
int snap_channels(const float *x, float *y, uint8_t *bytes, int64_t rows, int64_t channels,
                  const float *inverse, const float *lower, const float *upper, const float *step,
                  const int32_t *zero_point, int threads) {
    int nan = 0;
#pragma omp parallel for num_threads(threads) reduction(| : nan)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * channels;
        float *values = y ? y + row * channels : 0;
        uint8_t *to = bytes ? bytes + row * channels : 0;
        if (values && to)
            nan |= snap_row(from, values, to, channels, inverse, lower, upper, step, zero_point);
        else if (values)
            snap_row(from, values, 0, channels, inverse, lower, upper, step, zero_point);
        else
            nan |= snap_row(from, 0, to, channels, inverse, lower, upper, step, zero_point);
    }
    return nan;
}

/* The grid of one token, from its extremes, as AffineGrid.parameters computes it: its scale is FP32 and its
   zero point whole. most is the largest integer; symmetric integers go down to -most, others to 0. */
static inline Grid token_grid(const float *x, int64_t channels, float most, int symmetric, float *zero_point) {
    float lo = 0, hi = 0;
    int nan = 0;
#pragma omp simd reduction(min : lo) reduction(max : hi) reduction(| : nan)
    for (int64_t c = 0; c < channels; c++) {
        nan |= x[c] != x[c];
        lo = x[c] < lo ? x[c] : lo;
        hi = x[c] > hi ? x[c] : hi;
    }
    const double low = lo, high = hi, width = symmetric ? (-low > high ? -low : high) : high - low;
    const double least = 1.17549435e-38; /* the least normal number */
    const float scale = nan || !(width > 0) ? 1.f : (float)fmax(width / most, least);
    *zero_point = symmetric ? 0.f : (float)fmin(fmax(rint(-low / scale), 0), most);
    return (Grid){1.f / scale, (symmetric ? -most : 0.f) - *zero_point, most - *zero_point, scale};
}

/* snap with the grid of each row's own extremes, which it writes to scales and zero_points. */
int snap_tokens(const float *x, float *y, uint8_t *bytes, float *scales, float *zero_points, int64_t rows,
                int64_t channels, float most, int symmetric, int32_t shift, int threads) {
    int nan = 0;
#pragma omp parallel for num_threads(threads) reduction(| : nan)
    for (int64_t row = 0; row < rows; row++) {
        float zero_point;
        const float *from = x + row * channels;
        const Grid grid = token_grid(from, channels, most, symmetric, &zero_point);
        nan |= snap_part(from, y ? y + row * channels : 0, bytes ? bytes + row * channels : 0, channels, grid,
                         (int32_t)zero_point + shift);
        scales[row] = grid.step;
        zero_points[row] = zero_point + shift;
    }
    return nan;
}
