/* Tensor types: their names, block sizes and scalar dequantization.
 *
 * The numbers are those of the GGUF format. A row of n elements is n/block
 * consecutive blocks. Pure functions, any thread. */
#ifndef INFER_QUANT_H
#define INFER_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_type {
    TYPE_F32 = 0,
    TYPE_F16 = 1,
    TYPE_Q4_0 = 2,
    TYPE_Q4_1 = 3,
    TYPE_Q5_0 = 6,
    TYPE_Q5_1 = 7,
    TYPE_Q8_0 = 8,
    TYPE_Q2_K = 10,
    TYPE_Q3_K = 11,
    TYPE_Q4_K = 12,
    TYPE_Q5_K = 13,
    TYPE_Q6_K = 14,
    TYPE_BF16 = 30,
    TYPE_COUNT = 31,
};

struct tensor_type_info {
    const char *name; /* "Q4_K"; NULL for a number that is not supported */
    int block;        /* elements of a block */
    int block_bytes;
};

/* Supported types only have a name; t may be any number from a file. */
const struct tensor_type_info *tensor_type_info(uint32_t t);
bool tensor_type_supported(uint32_t t);
/* The name that GGUF gives the number, supported or not ("IQ4_XS", "MXFP4"), or "unknown". */
const char *tensor_type_name(uint32_t t);

/* Bytes of a row of n elements; n must be a multiple of the block. */
size_t tensor_row_bytes(enum tensor_type t, int64_t n);

/* y[0..n) = the row's values as float32, exactly as the format defines them
 * (bit-equal to gguf.quants.dequantize of the `gguf` package). */
void dequantize_row(enum tensor_type t, const void *row, float *y, int64_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); /* round to nearest even */
float bf16_to_f32(uint16_t h);

#endif
