/* Writing one token's K and V of one head into a page (struct kv_head, kernels.h). */
#ifndef INFER_KV_HEAD_H
#define INFER_KV_HEAD_H

#include "kernels.h"

/* Puts k [k_dim] and v [v_dim], at most LOADER_MAX_HEAD_DIM elements each, into slot `slot`, 0..KV_PAGE-1, with k's kernels.
 * Writes nothing of another slot: several threads may fill a page. */
void kv_head_store(const struct kernels *kernels, const struct kv_head *head, const float *k, const float *v, int k_dim, int v_dim,
                   int slot);

#endif
