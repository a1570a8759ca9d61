/* Splitting of matrices: see planes.h. Memory is the caller's; any thread. */
#include "planes.h"

#include <math.h>

enum { BLOCK_BYTES = 2 + ACT_BLOCK }; /* Q8_0: a float16 scale, 32 integers */

#define MOST 65504.0f /* the largest float16 */

bool planes_can_split(const struct weight *w)
{
    if ((w->type != TYPE_F16 && w->type != TYPE_BF16) || w->n_in % ACT_BLOCK) return false;
    for (int r = 0; r < w->n_out; r++)
        for (int i = 0; i < w->n_in; i += ACT_BLOCK) {
            float x[ACT_BLOCK];
            dequantize_row(w->type, (const char *)w->data + (size_t)r * w->row_bytes + 2 * (size_t)i, x, ACT_BLOCK);
            for (int j = 0; j < ACT_BLOCK; j++)
                if (!(fabsf(x[j]) <= MOST)) return false;
        }
    return true;
}

static size_t plane_row_bytes(const struct weight *w)
{
    return tensor_row_bytes(TYPE_Q8_0, w->n_in);
}

size_t planes_bytes(const struct weight *w)
{
    return 2 * (size_t)w->n_out * plane_row_bytes(w);
}

/* A block of Q8_0 that is nearest to x / unit; x becomes what is left of it. */
static void take_block(unsigned char *block, float x[ACT_BLOCK], float unit)
{
    float most = 0;
    for (int i = 0; i < ACT_BLOCK; i++) most = fmaxf(most, fabsf(x[i]));
    uint16_t half = f32_to_f16(most / 127.0f / unit);
    float scale = f16_to_f32(half) * unit, inv = scale > 0 ? 1 / scale : 0;
    block[0] = (unsigned char)(half & 0xff);
    block[1] = (unsigned char)(half >> 8);
    for (int i = 0; i < ACT_BLOCK; i++) {
        float q = fminf(fmaxf(x[i] * inv, -127), 127);
        int n = (int)lrintf(q);
        block[2 + i] = (unsigned char)(int8_t)n;
        x[i] -= (float)n * scale;
    }
}

void planes_split(const struct weight *w, void *memory, struct weight *high, struct weight *low)
{
    size_t row_bytes = plane_row_bytes(w);
    *high = (struct weight){.type = TYPE_Q8_0, .n_out = w->n_out, .n_in = w->n_in, .row_bytes = row_bytes, .data = memory};
    *low = *high;
    low->data = (unsigned char *)memory + (size_t)w->n_out * row_bytes;
    unsigned char *to_high = memory, *to_low = to_high + (size_t)w->n_out * row_bytes;
    for (int r = 0; r < w->n_out; r++)
        for (int i = 0; i < w->n_in; i += ACT_BLOCK, to_high += BLOCK_BYTES, to_low += BLOCK_BYTES) {
            float x[ACT_BLOCK];
            dequantize_row(w->type, (const char *)w->data + (size_t)r * w->row_bytes + 2 * (size_t)i, x, ACT_BLOCK);
            take_block(to_high, x, 1);
            take_block(to_low, x, PLANES_LOW);
        }
}
