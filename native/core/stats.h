/* What engines count, for people who watch a server. Plain numbers, copied out. */
#ifndef INFER_STATS_H
#define INFER_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "histogram.h"

struct kv_stats {
    size_t page_bytes, arena_bytes;
    int pages_total, pages_active /* referenced by a sequence */, pages_cached /* only by the tree */, pages_free;
    uint64_t hit_tokens, lookup_tokens, evicted_pages;
};

struct engine_stats { /* all since load */
    struct kv_stats kv;      /* zero where the engine has no KV cache */
    size_t activation_bytes; /* of the forward pass */
    int running, queued;
    uint64_t requests, finished, cancelled, timed_out, failed; /* the first is the sum of the rest and of those under way */
    uint64_t prompt_tokens, cached_tokens, output_tokens, steps;
    struct histogram_summary queue;       /* admission to start */
    struct histogram_summary first_token; /* admission to first output; score and embed: to the result */
    struct histogram_summary token;       /* one output token to the next of the same request */
    struct histogram_summary step;
};

#endif
