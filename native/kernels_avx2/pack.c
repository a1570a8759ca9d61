/* Packing a slab of weight rows for the multiplication of many activation rows.
 *
 * The destination is the calling thread's scratch. Any thread. */
#include "formats.h"
#include "pack_sink.h"

#include "unpack8.h"

EXPAND_FORMAT(DEFINE_PACK, Q4_0_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q4_1_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q5_0_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q5_1_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q8_0_FORMAT(128))
EXPAND_FORMAT(DEFINE_PACK, Q2_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q3_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q4_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q5_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q6_K_FORMAT)

EXPAND_FORMAT(DEFINE_PACK_AS, avx2_pack_q8_0_signed, true, Q8_0_FORMAT(0))

#define FORMAT(name, elements, sub_elements, n_bits, offset_by, min) \
    {.block = elements, .sub = sub_elements, .bits = n_bits, .zero = offset_by, .has_min = min, \
     .block_bytes = sizeof(struct block_##name), .pack = pack_##name}

const struct avx2_format avx2_formats[TYPE_COUNT] = {
    [TYPE_Q4_0] = EXPAND_FORMAT(FORMAT, Q4_0_FORMAT),
    [TYPE_Q4_1] = EXPAND_FORMAT(FORMAT, Q4_1_FORMAT),
    [TYPE_Q5_0] = EXPAND_FORMAT(FORMAT, Q5_0_FORMAT),
    [TYPE_Q5_1] = EXPAND_FORMAT(FORMAT, Q5_1_FORMAT),
    [TYPE_Q8_0] = EXPAND_FORMAT(FORMAT, Q8_0_FORMAT(128)),
    [TYPE_Q2_K] = EXPAND_FORMAT(FORMAT, Q2_K_FORMAT),
    [TYPE_Q3_K] = EXPAND_FORMAT(FORMAT, Q3_K_FORMAT),
    [TYPE_Q4_K] = EXPAND_FORMAT(FORMAT, Q4_K_FORMAT),
    [TYPE_Q5_K] = EXPAND_FORMAT(FORMAT, Q5_K_FORMAT),
    [TYPE_Q6_K] = EXPAND_FORMAT(FORMAT, Q6_K_FORMAT),
};
