/* What the kernels' templates have to know of each quantized format: name, elements of a block and of a sub-block, bits of an
 * unsigned integer (4 or fewer), what is to be taken off it, whether there is a minimum. */
#ifndef INFER_AVX2_FORMATS_H
#define INFER_AVX2_FORMATS_H

#define Q4_0_FORMAT q4_0, 32, 32, 4, 8, false
#define Q4_1_FORMAT q4_1, 32, 32, 4, 0, true
#define Q5_0_FORMAT q5_0, 32, 32, 5, 16, false
#define Q5_1_FORMAT q5_1, 32, 32, 5, 0, true
#define Q8_0_FORMAT(offset_by) q8_0, 32, 32, 8, offset_by, false /* signed; some kernels give it an offset */
#define Q2_K_FORMAT q2_K, 256, 16, 4, 0, true
#define Q3_K_FORMAT q3_K, 256, 16, 4, 4, false
#define Q4_K_FORMAT q4_K, 256, 32, 4, 0, true
#define Q5_K_FORMAT q5_K, 256, 32, 5, 0, true
#define Q6_K_FORMAT q6_K, 256, 16, 6, 32, false

/* X(name, elements, sub_elements, n_bits, offset_by, min, ...), of a format. */
#define EXPAND_FORMAT(X, ...) X(__VA_ARGS__)

#endif
