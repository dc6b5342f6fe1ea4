/* What quantized networks compute on a CPU, in one pass over memory; torch makes one pass per operator. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512")
#define LANES 16
#else
#define LANES 8
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Sums __attribute__((vector_size(4 * LANES), aligned(4)));

/* A matrix product makes TILE rows and PANEL columns together: as many running sums as the registers hold. */
#define TILE (6 * LANES / 8)
#define PANEL 16

#include "grids.h"
#include "attention.h"
#include "products.h"
