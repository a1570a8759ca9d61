/* The KV cache of one model: a paged arena with a prefix tree.
 *
 * Pages hold KV_PAGE tokens of every layer and KV head, in f16, in an arena mapped once
 * (platform_map_anonymous: outside Redis' allocator, not seen by forks).
 * A sequence owns a list of pages. Pages are reference counted; those that hold known
 * tokens are kept after the sequence ends, in a tree keyed by token
 * prefix, and evicted least recently used when pages run out.
 *
 * A sequence that starts like a cached one takes over the cached full pages by
 * reference; where the match ends inside a page, the matching slots are copied
 * into a page of its own. Sharing changes no token: cached values are
 * bit-equal to recomputed ones (kernels.h).
 *
 * Layout of a page, f16: for each layer, for each KV head: K [k_dim, KV_PAGE], then
 * V [KV_PAGE, v_dim].
 *
 * Threads: kv_* calls are made by the conductor only, with the exception of
 * kv_stats, which any thread may call. */
#ifndef INFER_KV_H
#define INFER_KV_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "model.h"

struct kv_cache;

struct kv_page {
    uint16_t *data;
    int refs;                /* sequences that read it + 1 if the tree holds it */
    struct kv_node *node;    /* its place in the tree, or NULL */
};

/* One sequence's view. Fields are read by the forward pass. */
struct kv_seq {
    struct kv_cache *cache;
    struct kv_page **pages;  /* [n_pages]; page i holds positions i*KV_PAGE .. */
    int n_pages, cap_pages;
    int n_tokens;            /* positions whose K and V are stored */
};

struct kv_stats {
    size_t page_bytes, arena_bytes;
    int pages_total, pages_active /* referenced by a sequence */, pages_cached /* only by the tree */, pages_free;
    uint64_t hit_tokens, lookup_tokens, evicted_pages;
};

/* budget_bytes is rounded down to whole pages; an error if it holds none. */
struct kv_cache *kv_create(const struct hparams *hp, size_t budget_bytes, struct infer_error *err);
void kv_free(struct kv_cache *c);
size_t kv_page_bytes(const struct hparams *hp);
void kv_get_stats(struct kv_cache *c, struct kv_stats *s);

/* Starts a sequence with the longest cached prefix of tokens[0..n), at most n-1 tokens (the
 * last one must be computed to get logits). Returns the number of tokens matched
 * (== seq->n_tokens), or 0. use_cache 0: matches nothing. */
int kv_seq_start(struct kv_cache *c, struct kv_seq *s, const uint32_t *tokens, int n, int use_cache);

/* Makes room for positions up to n_tokens, evicting cached pages as needed.
 * -1 when the arena has no page left that could be freed; nothing changes then. */
int kv_seq_reserve(struct kv_seq *s, int n_tokens);

/* Ends a sequence. tokens[0..n_tokens) are those whose K/V it stores (n_tokens = s->n_tokens): they
 * enter the tree if keep. Safe on a sequence that was never started (zeroed). */
void kv_seq_end(struct kv_seq *s, const uint32_t *tokens, int keep);

/* Puts the full pages of a running sequence into the tree already, so that requests that
 * arrive meanwhile share them. Cheap when there is nothing new. */
void kv_seq_publish(struct kv_seq *s, const uint32_t *tokens);

/* Offsets within a page, in f16 elements. */
static inline size_t kv_k_offset(const struct hparams *hp, int layer, int head)
{
    return ((size_t)layer * (size_t)hp->n_head_kv + (size_t)head) * (size_t)KV_PAGE *
           (size_t)(hp->k_dim + hp->v_dim);
}
static inline size_t kv_v_offset(const struct hparams *hp, int layer, int head)
{
    return kv_k_offset(hp, layer, head) + (size_t)KV_PAGE * (size_t)hp->k_dim;
}

#endif
