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

#include "grids.h"
#include "attention.h"
#include "products.h"
