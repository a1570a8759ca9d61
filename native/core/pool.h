/* The thread pool: n threads that run one function at a time, all together.
 *
 * The caller of pool_run is thread 0; n-1 workers join it. Inside the function,
 * threads meet at barriers and share out work with a counter whose chunks do
 * not depend on the number of threads, which is why that number never changes a result.
 *
 * A worker spins for some microseconds at a barrier, and between runs, then
 * parks in the kernel. Idle costs no CPU.
 *
 * One pool_run at a time (the runtime's conductor calls it). Not reentrant. */
#ifndef INFER_POOL_H
#define INFER_POOL_H

#include <stddef.h>

#include "error.h"

struct pool;

enum {
    POOL_MAX_THREADS = 256,
    POOL_STACK_BYTES = 1024 * 1024, /* of each thread: the forward pass keeps small tiles there; musl's default is 128 KB */
};

struct pool_thread {
    struct pool *pool;
    int index, count; /* 0 <= index < count */
    void *scratch;    /* scratch_bytes, 64-byte aligned, its own */
    unsigned phase;   /* pool.c: barriers passed */
    int victim;       /* pool.c: pool_share takes from thread (index + victim) % count */
};

typedef void pool_fn(struct pool_thread *t, void *arg);

/* Threads are named "<name>-<index>" (the caller of pool_run keeps its own name), have POOL_STACK_BYTES of stack, and
 * are set up by platform_worker_thread. Fails when the system gives no thread or memory. */
struct pool *pool_create(int n_threads, size_t scratch_bytes, const char *name, struct infer_error *err);
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);

/* Runs fn once on every thread and returns when all have returned. */
void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Inside fn, called by every thread in the same order: waits for all of them. */
void pool_barrier(struct pool_thread *t);

/* Inside fn: work-sharing over [0, n) in chunks. All threads call
 * pool_share(t, n, chunk, &begin, &end) with the same n and chunk in a loop until it returns 0, and then
 * go through pool_barrier, which also makes the counters ready for the next loop: one loop between two barriers. */
int pool_share(struct pool_thread *t, int n, int chunk, int *begin, int *end);

#endif
