/* The one shape of all quantized formats: sub-blocks of small integers.
 *
 * Every format stands for w = d*q - m with one d (and one m, where it has minimums) for each
 * sub-block of 32 elements, or for w = d*factor*q - m with a small integer factor (and one m) for
 * each sub-block of 16. Formats differ only in how their bits unpack into that, and this is the
 * definition of how. Pure functions, any thread. */
#ifndef INFER_UNPACK_H
#define INFER_UNPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

/* One block, unpacked. Sub-block j holds elements j*sub .. (j+1)*sub-1. */
struct unpacked {
    int8_t q[256];  /* the format's fixed offset is already taken off */
    float d[8];         /* of each 32 elements */
    int8_t factor[16];  /* of each sub-block; formats with sub-blocks of 16 only */
    float m[16];        /* of each sub-block; formats with a minimum only */
};

struct quant_format {
    int block;          /* elements of a block; 0: no such format */
    int sub;            /* elements of a sub-block: 16 or 32 */
    bool has_min;
    size_t block_bytes;
    void (*unpack)(struct unpacked *u, const void *block);
};

/* NULL for types that are not quantized (F32, F16, BF16). */
const struct quant_format *quant_format(enum tensor_type t);

#endif
