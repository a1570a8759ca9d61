/* The thread pool: n threads that run one function at a time, all together.
 *
 * The caller of pool_run is thread 0; n-1 workers join it. Inside the function,
 * threads meet at barriers and share out work with a counter whose chunks do
 * not depend on the number of threads, which is why that number never changes a result.
 *
 * A worker spins for some microseconds at a barrier, and between runs, then
 * parks in the kernel. Idle costs no CPU.
 *
 * A pool that follows the load (pool_follow_load) leaves threads out of a run while something else
 * keeps their processors busy: see contention.h.
 *
 * One pool_run at a time (the runtime's conductor calls it). Not reentrant. */
#ifndef INFER_POOL_H
#define INFER_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct pool;

enum {
    POOL_MAX_THREADS = 256,
    /* Of each thread. The forward passes keep tiles there, up to 260 KB; ThreadSanitizer takes 770 KB of it for itself, and
     * musl's default is 128 KB. */
    POOL_STACK_BYTES = 2 << 20,
};

struct pool_thread {
    struct pool *pool;
    int index, count; /* 0 <= index < count, the threads of this run */
    void *scratch;    /* scratch_bytes, 64-byte aligned, its own */
    /* pool.c's own */
    unsigned phase;       /* barriers passed */
    int victim;           /* pool_share takes from thread (index + victim) % count */
    uint64_t parked_us;   /* in this run, for want of the others */
    uint64_t preemptions; /* of the thread, up to its last run's end */
};

typedef void pool_fn(struct pool_thread *t, void *arg);

/* Threads are named "<name>-<index>" (the caller of pool_run keeps its own name), have POOL_STACK_BYTES of stack, and
 * are set up by platform_worker_thread. Fails when the system gives no thread or memory. */
struct pool *pool_create(int n_threads, size_t scratch_bytes, const char *name, struct infer_error *err);
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);

/* From the next run on; off at first. Not during a run. */
void pool_follow_load(struct pool *p, bool on);
/* Threads of the next run: pool_threads, or fewer if the pool follows the load. Not during a run. */
int pool_threads_now(const struct pool *p);

/* Runs fn once on each thread of the run and returns when all have returned. */
void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Inside fn, called by every thread in the same order: waits for all of them. */
void pool_barrier(struct pool_thread *t);

/* Inside fn: work-sharing over [0, n) in chunks. All threads call
 * pool_share(t, n, chunk, &begin, &end) with the same n and chunk in a loop until it returns 0, and then
 * go through pool_barrier, which also makes the counters ready for the next loop: one loop between two barriers. */
int pool_share(struct pool_thread *t, int n, int chunk, int *begin, int *end);
/* The same, for work that is done faster in long pieces: up to `most` chunks at once. Towards the end of a share they are
 * fewer, so that the threads end together: three quarters of what is left, and all of it once that is half of `most`. */
int pool_share_long(struct pool_thread *t, int n, int chunk, int most, int *begin, int *end);

#endif
