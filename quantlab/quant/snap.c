/* Quantize and dequantize in one pass over memory, to the bit as torch's round, clamp and multiply do it.
   What makes bytes returns whether x holds a NaN: no byte stands for one. */
#include <math.h>
#include <stdint.h>

static inline float on_grid(float x, float inverse, float lower, float upper) {
    float q = rintf(x * inverse);
    q = q < lower ? lower : q;
    return q > upper ? upper : q;
}

/* One range for all: y = step * clamp(round(x * inverse)), and the whole numbers plus zero_point. y or bytes may be 0. */
int snap(const float *x, float *y, uint8_t *bytes, int64_t count, float inverse, float lower, float upper, float step,
         int32_t zero_point, int threads) {
    int nan = 0;
#pragma omp parallel num_threads(threads) reduction(| : nan)
    if (y && bytes) {
#pragma omp for simd reduction(| : nan)
        for (int64_t i = 0; i < count; i++) {
            float q = on_grid(x[i], inverse, lower, upper);
            nan |= x[i] != x[i];
            y[i] = q * step;
            bytes[i] = (uint8_t)((int32_t)q + zero_point);
        }
    } else if (y) {
#pragma omp for simd
        for (int64_t i = 0; i < count; i++) y[i] = on_grid(x[i], inverse, lower, upper) * step;
    } else {
#pragma omp for simd reduction(| : nan)
        for (int64_t i = 0; i < count; i++) {
            nan |= x[i] != x[i];
            bytes[i] = (uint8_t)((int32_t)on_grid(x[i], inverse, lower, upper) + zero_point);
        }
    }
    return nan;
}

/* A range for each of the channels, which are the last dimension. y or bytes may be 0. */
int snap_channels(const float *x, float *y, uint8_t *bytes, int64_t rows, int64_t channels, const float *inverse,
                  const float *lower, const float *upper, const float *step, const int32_t *zero_point, int threads) {
    int nan = 0;
#pragma omp parallel for num_threads(threads) reduction(| : nan)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * channels;
        if (y) {
            float *to = y + row * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) to[c] = on_grid(from[c], inverse[c], lower[c], upper[c]) * step[c];
        }
        if (bytes) {
            uint8_t *to = bytes + row * channels;
#pragma omp simd reduction(| : nan)
            for (int64_t c = 0; c < channels; c++) {
                nan |= from[c] != from[c];
                to[c] = (uint8_t)((int32_t)on_grid(from[c], inverse[c], lower[c], upper[c]) + zero_point[c]);
            }
        }
    }
    return nan;
}
