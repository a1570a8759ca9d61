/* A histogram of durations on a logarithmic scale, for percentiles since the start.
 *
 * Fixed size, no lock: any thread may add and any thread may read, at any time. A reading taken while
 * others add is off by those few at the most. Values (microseconds) below 16 are
 * exact, larger ones known to 1/8. */
#ifndef INFER_HISTOGRAM_H
#define INFER_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_EXACT = 16,                                     /* buckets of one value */
    HISTOGRAM_OCTAVES = 36,                                   /* 2^4 .. 2^40 us: 12 days */
    HISTOGRAM_BUCKETS = HISTOGRAM_EXACT + 8 * HISTOGRAM_OCTAVES,
};

struct histogram { /* zeroed: empty */
    _Atomic uint64_t sum_us, max_us;
    _Atomic uint64_t buckets[HISTOGRAM_BUCKETS];
};

struct histogram_summary {
    uint64_t count, mean_us, p50_us, p90_us, p99_us, max_us;
};

void histogram_add(struct histogram *h, uint64_t us);
void histogram_read(const struct histogram *h, struct histogram_summary *s);
/* Adds what `from` has counted to `to`. */
void histogram_merge(struct histogram *to, const struct histogram *from);

#endif
