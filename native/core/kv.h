/* The KV cache of one model: a paged arena with a prefix tree.
 *
 * Pages hold KV_PAGE tokens of every layer and KV head, as 16-bit integers, in an arena mapped once
 * (platform_map_anonymous: outside Redis' allocator, not seen by forks).
 * A sequence owns a list of pages. Pages are reference counted; those that hold known
 * tokens are kept after the sequence ends, in a tree keyed by token
 * prefix, and evicted when pages run out.
 *
 * Pages that another sequence took over go after those that none ever did, and among
 * both the least recently used goes first. For the end of a request is rarely asked for again, and
 * by last use alone such ends would drive out beginnings that many requests have in common, just because those
 * were not wanted lately. What was found once does not stay for ever either (KV_FOUND_SHARE, KV_FOUND_TURNS).
 * Only whole pages are found: a part that is copied does not count.
 *
 * A sequence that starts like a cached one takes over the cached full pages by
 * reference; where the match ends inside a page, that page is copied into one of its own. Sharing
 * changes no token: cached values are bit-equal to recomputed ones (kernels.h).
 *
 * A sequence says at its start how long it may become and is started only when that many
 * pages are sure to be had, so that a running sequence never runs out of them. The promise
 * takes no page out of the cache: pages are evicted when they are needed.
 *
 * Layout of a page: for each layer, for each KV head its integers, then likewise its scales (struct kv_head, kernels.h).
 *
 * Threads: kv_* calls are made by the conductor only, with the exception of
 * kv_get_stats, which any thread may call. A cache has a thread of its own that fetches memory ahead (prefault.h). */
#ifndef INFER_KV_H
#define INFER_KV_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "kernels.h"
#include "model.h"
#include "stats.h"

struct kv_cache;

enum {
    KV_FOUND_SHARE = 2, /* of the pages, 1/KV_FOUND_SHARE at most are kept because they were found once */
    KV_FOUND_TURNS = 8, /* one that nobody uses is so for at most n_pages * KV_FOUND_TURNS evictions */
};

struct kv_page {
    char *data;           /* [kv_page_bytes] */
    int refs;             /* sequences that read it + 1 if the tree holds it */
    struct kv_node *node; /* its place in the tree, or NULL */
};

/* One sequence's view. Fields are read by the forward pass. */
struct kv_seq {
    struct kv_cache *cache;  /* NULL: not started */
    struct kv_page **pages;  /* [n_pages]; page i holds positions i*KV_PAGE .. */
    int n_pages, max_pages;  /* held, and promised at the start */
    int n_tokens;            /* positions whose K and V are stored */
};

/* budget_bytes is rounded down to whole pages; an error if it holds none. */
struct kv_cache *kv_create(const struct hparams *hp, size_t budget_bytes, struct infer_error *err);
void kv_free(struct kv_cache *c);
size_t kv_page_bytes(const struct hparams *hp);
void kv_get_stats(struct kv_cache *c, struct kv_stats *s);

enum { KV_NO_ROOM = -1, KV_NO_MEMORY = -2 };

/* Starts a sequence that will hold at most n_max positions, with the longest cached prefix of
 * tokens[0..n), at most n-1 tokens (the last one must be computed to get logits). Returns
 * the number of tokens matched (== s->n_tokens), or 0. use_cache 0: matches nothing.
 * KV_NO_ROOM: other sequences may still need the pages that this one would; try again when one
 * has ended (it cannot happen while none runs, if n_max fits the arena). KV_NO_MEMORY: no
 * memory for the page list. Nothing changes in both cases. */
int kv_seq_start(struct kv_cache *c, struct kv_seq *s, const uint32_t *tokens, int n, int n_max, int use_cache);

/* Looks again, for a sequence that is still working on its prompt: pages that others have published
 * since may carry it further. Returns the number of tokens gained. */
int kv_seq_match(struct kv_seq *s, const uint32_t *tokens, int n);

/* Makes room for positions up to n_tokens, evicting cached pages as needed.
 * -1 only beyond the n_max of the start; nothing changes then. */
int kv_seq_reserve(struct kv_seq *s, int n_tokens);

/* Ends a sequence. tokens[0..n_tokens) are those whose K/V it stores (n_tokens = s->n_tokens): they
 * enter the tree if keep. Safe on a sequence that was never started (zeroed). */
void kv_seq_end(struct kv_seq *s, const uint32_t *tokens, int keep);

/* Puts the full pages of a running sequence into the tree already, so that requests that
 * arrive meanwhile share them; where the tree has a page of the same tokens, the sequence
 * takes that one and gives its own back. Cheap when there is nothing new. */
void kv_seq_publish(struct kv_seq *s, const uint32_t *tokens);

static inline struct kv_head kv_head_of(const struct hparams *hp, const struct kv_page *page, int layer, int head)
{
    size_t at = (size_t)(layer * hp->n_head_kv + head), heads = (size_t)(hp->n_layer * hp->n_head_kv);
    int16_t *data = (int16_t *)(void *)page->data;
    size_t count = kv_count(hp->k_dim, hp->v_dim);
    return (struct kv_head){.data = data + at * count, .scale = (uint16_t *)(data + heads * count) + at * KV_SCALES};
}

#endif
