/* Matrices of 16-bit floats as two of int8.
 *
 *     w ~ high + low * PLANES_LOW
 *
 * high is w in Q8_0 and low, in Q8_0 too, what that leaves over: together some 15 bits of a block's largest weight. A
 * product with both, and with the rounding errors of int8 activations (act_quantize_error), is about as exact as one
 * in float32; three int8 products are faster than a float one wherever the processor has instructions for bytes. */
#ifndef INFER_PLANES_H
#define INFER_PLANES_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels.h"

/* Keeps low's scales, which are float16 and some 250 times smaller than high's, out of the denormal numbers. */
#define PLANES_LOW 0x1p-12f

/* True for F16 and BF16, if rows are whole blocks of ACT_BLOCK and all weights are within what Q8_0 can hold. */
bool planes_can_split(const struct weight *w);

/* Bytes of both planes together. */
size_t planes_bytes(const struct weight *w);

/* Splits w, which planes_can_split, into memory of planes_bytes, which both planes point into. */
void planes_split(const struct weight *w, void *memory, struct weight *high, struct weight *low);

#endif
