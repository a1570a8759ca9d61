/* How many threads a run should have while something else wants the processors too.
 *
 * All threads meet at barriers, so a run is as slow as the one whose processor is taken away most:
 * two threads on two processors, one of them busy with something else, are slower than one thread. What tells
 * is the time that a thread neither worked nor was parked: then somebody else ran in its place.
 *
 * Memory: the struct is the caller's. One thread at a time. No clock of its own: times are arguments. */
#ifndef INFER_CONTENTION_H
#define INFER_CONTENTION_H

#include <stdint.h>

struct contention {
    int max;     /* threads there are, at least 1 */
    int threads; /* that the next run should have: 1 to max */
    uint64_t wall_us; /* of the runs since the last decision */
    /* while threads < max */
    uint64_t retry_at_us; /* on the clock of `now_us` below */
    uint64_t pause_us;    /* before the retry; doubles as long as retries fail */
};

/* A thread's part of a run or of several, from the start to its own end. */
struct contention_part {
    uint64_t worked_us; /* processor time */
    uint64_t lost_us;   /* neither worked nor parked */
    uint64_t preemptions;
};

void contention_init(struct contention *c, int threads);

/* After a run of c->threads threads that took wall_us: parts[c->threads] hold what they did since the
 * last decision, and are zeroed by one. Sets c->threads for the next run. */
void contention_after_run(struct contention *c, uint64_t now_us, uint64_t wall_us, struct contention_part *parts);

#endif
