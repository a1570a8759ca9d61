/* Writing one token's K and V of one head into a page. The caller's memory; any thread. */
#include "kv_head.h"

#include <string.h>

#include "kernels_math.h"
#include "loader.h"

static uint16_t upper_half(float scale) { return (uint16_t)(kbits_of_float(scale) >> 16); }

void kv_head_store(const struct kernels *kernels, const struct kv_head *head, const float *k, const float *v, int k_dim, int v_dim,
                   int slot)
{
    int16_t narrow[LOADER_MAX_HEAD_DIM], *out = head->data + kv_k_at(k_dim, slot, 0);
    head->scale[slot] = upper_half(kernels->narrow(narrow, k, k_dim, NARROW_BY_LENGTH));
    for (int d = 0; d < k_dim; d += 2, out += 2 * KV_STRIP) memcpy(out, narrow + d, 2 * sizeof *out);
    head->scale[KV_PAGE + slot] = upper_half(kernels->narrow(narrow, v, v_dim, NARROW_BY_LARGEST));
    for (int d = 0; d < v_dim;) {
        out = head->data + kv_k_count(k_dim) + kv_v_at(v_dim, slot, d);
        for (int end = d + KV_STRIP < v_dim ? d + KV_STRIP : v_dim; d < end; d++, out += 2) *out = narrow[d];
    }
}
