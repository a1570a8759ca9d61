/* Splitting matrices of 16-bit floats into two of int8: how close both together are, and what is not split. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "gguf_writer.h"
#include "planes.h"

enum { ROWS = 40, COLUMNS = 96 };

static uint64_t seed = 3;

static uint16_t to_bits(enum tensor_type type, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return type == TYPE_F16 ? f32_to_f16(x) : (uint16_t)(bits >> 16);
}

static float from_bits(enum tensor_type type, uint16_t bits)
{
    return type == TYPE_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

/* Blocks of magnitudes from 2^-10 on, up to 2^13. */
static void fill(uint16_t w[ROWS][COLUMNS], enum tensor_type type)
{
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < COLUMNS; i++) {
            float x = (float)((double)(random_u64(&seed) >> 11) * 0x1p-52 - 1);
            w[r][i] = to_bits(type, ldexpf(x, (r + i / ACT_BLOCK) % 24 - 10));
        }
}

static struct weight matrix(enum tensor_type type, uint16_t w[ROWS][COLUMNS])
{
    return (struct weight){.type = type, .n_out = ROWS, .n_in = COLUMNS, .row_bytes = sizeof w[0], .data = w};
}

static void both_planes_together_are_the_matrix_to_15_bits(void)
{
    static const enum tensor_type types[] = {TYPE_F16, TYPE_BF16};
    for (int k = 0; k < 2; k++) {
        uint16_t w[ROWS][COLUMNS];
        fill(w, types[k]);
        memset(w[3], 0, sizeof w[3]);
        struct weight of = matrix(types[k], w), high, low;
        CHECK(planes_can_split(&of));
        void *memory = malloc(planes_bytes(&of));
        planes_split(&of, memory, &high, &low);
        CHECK(high.type == TYPE_Q8_0 && low.n_out == ROWS && low.n_in == COLUMNS);
        CHECK((const char *)low.data + ROWS * low.row_bytes == (const char *)memory + planes_bytes(&of));
        for (int r = 0; r < ROWS; r++) {
            float a[COLUMNS], b[COLUMNS];
            dequantize_row(high.type, (const char *)high.data + (size_t)r * high.row_bytes, a, COLUMNS);
            dequantize_row(low.type, (const char *)low.data + (size_t)r * low.row_bytes, b, COLUMNS);
            for (int block = 0; block < COLUMNS; block += ACT_BLOCK) {
                float most = 0, off = 0;
                for (int i = block; i < block + ACT_BLOCK; i++) {
                    float x = from_bits(types[k], w[r][i]);
                    most = fmaxf(most, fabsf(x));
                    off = fmaxf(off, fabsf(x - (a[i] + b[i] * PLANES_LOW)));
                }
                CHECKF(off <= most * 0x1p-15f, "%s, row %d: off by %g of %g", tensor_type_name(types[k]), r, (double)off,
                       (double)most);
            }
        }
        free(memory);
    }
}

static void what_cannot_be_split_is_left_alone(void)
{
    uint16_t w[ROWS][COLUMNS];
    fill(w, TYPE_BF16);
    struct weight of = matrix(TYPE_BF16, w), other = of;
    CHECK(planes_can_split(&of));
    other.type = TYPE_F32;
    CHECK(!planes_can_split(&other));
    other = of;
    other.n_in = 95;
    CHECK(!planes_can_split(&other));
    static const float bad[] = {INFINITY, -INFINITY, 70000, -1e30f, NAN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fill(w, TYPE_BF16);
        w[ROWS - 1][COLUMNS - 1] = to_bits(TYPE_BF16, bad[i]);
        CHECKF(!planes_can_split(&of), "%g", (double)bad[i]);
    }
}

int main(void)
{
    RUN(both_planes_together_are_the_matrix_to_15_bits);
    RUN(what_cannot_be_split_is_left_alone);
    return check_result();
}
