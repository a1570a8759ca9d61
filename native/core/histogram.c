/* Durations on a logarithmic scale: eight buckets for each power of two.
 *
 * The structure is its owner's; every access is atomic, so any thread may call. */
#include "histogram.h"

#include <stdatomic.h>
#include <string.h>

static int bucket_of(uint64_t us)
{
    if (us < HISTOGRAM_EXACT) return (int)us;
    int octave = 63 - __builtin_clzll(us); /* >= 4 */
    int i = HISTOGRAM_EXACT + 8 * (octave - 4) + (int)(us >> (octave - 3) & 7);
    return i < HISTOGRAM_BUCKETS ? i : HISTOGRAM_BUCKETS - 1;
}

static uint64_t middle_of(int bucket)
{
    if (bucket < HISTOGRAM_EXACT) return (uint64_t)bucket;
    int octave = (bucket - HISTOGRAM_EXACT) / 8 + 4, eighth = (bucket - HISTOGRAM_EXACT) % 8;
    uint64_t width = 1ull << (octave - 3);
    return (uint64_t)(8 + eighth) * width + width / 2;
}

static void raise_max(struct histogram *h, uint64_t us)
{
    uint64_t max = atomic_load_explicit(&h->max_us, memory_order_relaxed);
    while (us > max &&
           !atomic_compare_exchange_weak_explicit(&h->max_us, &max, us, memory_order_relaxed, memory_order_relaxed)) {
    }
}

void histogram_add(struct histogram *h, uint64_t us)
{
    atomic_fetch_add_explicit(&h->buckets[bucket_of(us)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
    raise_max(h, us);
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        uint64_t n = atomic_load_explicit(&from->buckets[i], memory_order_relaxed);
        if (n) atomic_fetch_add_explicit(&to->buckets[i], n, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&to->sum_us, atomic_load_explicit(&from->sum_us, memory_order_relaxed),
                              memory_order_relaxed);
    raise_max(to, atomic_load_explicit(&from->max_us, memory_order_relaxed));
}

/* The value that `permille` of the counted ones do not exceed. */
static uint64_t percentile(const uint64_t *buckets, uint64_t count, uint64_t max, uint64_t permille)
{
    uint64_t rank = (count * permille + 999) / 1000, below = 0;
    for (int i = 0; i < HISTOGRAM_BUCKETS && count > 0; i++) {
        below += buckets[i];
        if (below >= rank) return middle_of(i) < max ? middle_of(i) : max;
    }
    return max;
}

void histogram_read(const struct histogram *h, struct histogram_summary *s)
{
    uint64_t buckets[HISTOGRAM_BUCKETS];
    memset(s, 0, sizeof *s);
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        buckets[i] = atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        s->count += buckets[i];
    }
    if (s->count == 0) return;
    s->max_us = atomic_load_explicit(&h->max_us, memory_order_relaxed);
    s->mean_us = atomic_load_explicit(&h->sum_us, memory_order_relaxed) / s->count;
    s->p50_us = percentile(buckets, s->count, s->max_us, 500);
    s->p90_us = percentile(buckets, s->count, s->max_us, 900);
    s->p99_us = percentile(buckets, s->count, s->max_us, 990);
}
