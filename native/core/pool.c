/* The thread pool: barriers that spin a little and then park, and work-sharing by stealing.
 *
 * The pool owns its threads and their scratch; fn and arg are the caller's and are
 * only read between the two barriers of one pool_run. pool_create, pool_run and
 * pool_free are called by one thread at a time (any); the rest by the pool's threads inside fn.
 *
 * A run starts with a word to each worker that takes part, and ends at a barrier:
 *
 *     thread 0:  set fn,arg ── go ── fn ── barrier ── return
 *     worker:    ┌──────────── go ── fn ── barrier ─┐
 *                └──────────────────────────────────┘
 *
 * A barrier counts arrivals; the last one clears the count and advances `phase`,
 * which the others watch. Whoever finds that the wait is long (its peers are
 * idle between steps, or were descheduled) parks on `phase`, so that the scheduler may
 * run the peer on this processor instead of letting us burn it.
 *
 * Work-sharing gives each thread a contiguous run of chunks, taken through a
 * counter on a cache line of its own; a thread that is out of chunks takes from the
 * others' counters. So the counters are contended only at the end of a loop,
 * and a thread sees the same rows of a matrix step after step. */
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "contention.h"
#include "platform.h"

enum {
    LINE = 128,               /* bytes: two cache lines, since processors prefetch pairs */
    SPIN_US = 50,             /* longer than the phases of a step differ, far shorter than a time slice */
    SPIN_BURST = 64,          /* looks at the phase between two looks at the clock */
};

/* The chunks of one thread. Phase p uses next[p % 2]; meanwhile the owner zeroes the other one for p + 1. */
struct share {
    _Alignas(LINE) _Atomic uint32_t next[2];
};

struct worker {
    _Alignas(LINE) _Atomic uint32_t go; /* one more: take part in a run */
    _Atomic bool waits;                 /* parked on go */
    pthread_t thread;
    struct pool_thread self;
    char name[16];
};

struct pool {
    /* Read-only during a run: written by thread 0 before it says go. */
    int n;
    uint64_t spin_us;
    int active; /* threads of this run */
    pool_fn *fn;
    void *arg;
    uint64_t began_us;
    bool stop;
    struct worker *workers;         /* [n]; [0] has no thread */
    struct share *shares;           /* [n] */
    struct contention_part *parts;  /* [n], each its thread's until the end of a run */
    char *scratch;
    size_t scratch_bytes;           /* of all threads */
    bool follow_load;
    struct contention contention;   /* thread 0's */

    _Alignas(LINE) _Atomic uint32_t arrived;
    _Alignas(LINE) _Atomic uint32_t phase;
    _Alignas(LINE) _Atomic uint32_t parked;
    _Atomic uint64_t released_us; /* when the parked were last released */
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is a no-op on most cores; isb waits about as long as pause */
#endif
}

/* True when the word changed within the spin limit. */
static bool spin(const struct pool *p, _Atomic uint32_t *word, uint32_t old)
{
    if (p->spin_us == 0) return false;
    uint64_t give_up = 0;
    for (;;) {
        for (int i = 0; i < SPIN_BURST; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != old) return true;
            relax();
        }
        uint64_t now = platform_now_us();
        if (give_up == 0)
            give_up = now + p->spin_us;
        else if (now >= give_up)
            return false;
    }
}

void pool_barrier(struct pool_thread *t)
{
    struct pool *p = t->pool;
    uint32_t phase = t->phase;
    /* Nobody takes from the next phase's counters before all have arrived, nor from the last one's any more. */
    atomic_store_explicit(&p->shares[t->index].next[(phase + 1) % 2], 0, memory_order_relaxed);
    t->phase = phase + 1;
    t->victim = 0;

    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)t->count) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        if (atomic_load_explicit(&p->parked, memory_order_relaxed))
            atomic_store_explicit(&p->released_us, platform_now_us(), memory_order_relaxed);
        /* Sequentially consistent, as is the other side: either we see the parked
         * thread or it sees the new phase. */
        atomic_store(&p->phase, phase + 1);
        if (atomic_load(&p->parked)) platform_wake(&p->phase, 1);
        return;
    }
    if (spin(p, &p->phase, phase)) return;
    uint64_t since_us = platform_now_us();
    atomic_fetch_add(&p->parked, 1);
    while (atomic_load(&p->phase) == phase) platform_park(&p->phase, phase, 0);
    atomic_fetch_sub(&p->parked, 1);
    /* What comes after the release, until a processor is free for us, is no waiting for the others. */
    uint64_t released_us = atomic_load_explicit(&p->released_us, memory_order_relaxed);
    if (released_us > since_us) t->parked_us += released_us - since_us;
}

/* How many of the `left` chunks of a share are taken at once, as pool.h says. */
static uint32_t take(uint32_t left, int most)
{
    uint32_t n = 2 * left <= (uint32_t)most ? left : (3 * left + 3) / 4;
    return n < (uint32_t)most ? n : (uint32_t)most;
}

int pool_share_long(struct pool_thread *t, int n, int chunk, int most, int *begin, int *end)
{
    struct pool *p = t->pool;
    int64_t n_chunks = ((int64_t)n + chunk - 1) / chunk;
    for (; t->victim < t->count; t->victim++) {
        int owner = t->index + t->victim;
        if (owner >= t->count) owner -= t->count;
        int64_t first = n_chunks * owner / t->count, last = n_chunks * (owner + 1) / t->count;
        uint32_t size = (uint32_t)(last - first);
        _Atomic uint32_t *next = &p->shares[owner].next[t->phase % 2];
        uint32_t i = atomic_load_explicit(next, memory_order_relaxed), taken;
        do {
            taken = take(size - i, most);
        } while (taken > 0 && !atomic_compare_exchange_weak_explicit(next, &i, i + taken, memory_order_relaxed, memory_order_relaxed));
        if (taken == 0) continue;
        int64_t from = (first + i) * chunk, to = from + (int64_t)taken * chunk;
        *begin = (int)from;
        *end = to < n ? (int)to : n;
        return 1;
    }
    return 0;
}

int pool_share(struct pool_thread *t, int n, int chunk, int *begin, int *end)
{
    return pool_share_long(t, n, chunk, 1, begin, end);
}

/* One thread's part of a run. */
static void take_part(struct pool_thread *t)
{
    struct pool *p = t->pool;
    t->count = p->active;
    t->phase = atomic_load(&p->phase); /* it stays, until all have arrived at the next barrier */
    t->victim = 0;
    t->parked_us = 0;
    uint64_t before = platform_thread_cpu_us();
    p->fn(t, p->arg);
    struct contention_part *part = &p->parts[t->index];
    uint64_t worked_us = platform_thread_cpu_us() - before, took_us = platform_now_us() - p->began_us;
    part->worked_us += worked_us;
    if (took_us > worked_us + t->parked_us) part->lost_us += took_us - worked_us - t->parked_us;
    uint64_t preemptions = platform_thread_preemptions();
    part->preemptions += preemptions - t->preemptions;
    t->preemptions = preemptions;
    pool_barrier(t);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->self.pool;
    platform_worker_thread(w->name);
    for (uint32_t seen = 0;; seen++) { /* it cannot go on by more: the run would wait for us */
        if (!spin(p, &w->go, seen)) {
            atomic_store(&w->waits, true);
            while (atomic_load(&w->go) == seen) platform_park(&w->go, seen, 0);
            atomic_store(&w->waits, false);
        }
        if (p->stop) return NULL;
        take_part(&w->self);
    }
}

static void go(struct worker *w)
{
    atomic_fetch_add(&w->go, 1); /* sequentially consistent: we see that it waits, or it sees this */
    if (atomic_load(&w->waits)) platform_wake(&w->go, 1);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg)
{
    p->fn = fn;
    p->arg = arg;
    p->active = p->contention.threads;
    p->began_us = platform_now_us();
    uint32_t phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
    for (int i = 0; i < p->active; i++) /* those of threads that were left out are of another time */
        atomic_store_explicit(&p->shares[i].next[phase % 2], 0, memory_order_relaxed);
    for (int i = 1; i < p->active; i++) go(&p->workers[i]);
    take_part(&p->workers[0].self);
    if (p->follow_load) {
        uint64_t now_us = platform_now_us();
        contention_after_run(&p->contention, now_us, now_us - p->began_us, p->parts);
    }
}

/* Lets the started workers return, joins them and frees everything. */
static void finish(struct pool *p, int started)
{
    p->stop = true;
    for (int i = 1; i < started; i++) go(&p->workers[i]);
    for (int i = 1; i < started; i++) pthread_join(p->workers[i].thread, NULL);
    platform_unmap(p->scratch, p->scratch_bytes);
    free(p->parts);
    free(p->shares);
    free(p->workers);
    free(p);
}

struct pool *pool_create(int n_threads, size_t scratch_bytes, const char *name, struct infer_error *err)
{
    if (n_threads < 1 || n_threads > POOL_MAX_THREADS) {
        infer_fail(err, INFER_ERR, "%d threads asked for, 1 to %d are possible", n_threads, POOL_MAX_THREADS);
        return NULL;
    }
    size_t n = (size_t)n_threads;
    size_t stride = (scratch_bytes + 4095) / 4096 * 4096; /* each its own pages */
    struct pool *p = aligned_alloc(LINE, sizeof *p);
    struct worker *workers = aligned_alloc(LINE, n * sizeof *workers);
    struct share *shares = aligned_alloc(LINE, n * sizeof *shares);
    struct contention_part *parts = calloc(n, sizeof *parts);
    void *scratch = stride && stride <= SIZE_MAX / n ? platform_map_anonymous(n * stride) : NULL;
    if (!p || !workers || !shares || !parts || (scratch_bytes && !scratch)) {
        platform_unmap(scratch, n * stride);
        free(parts);
        free(shares);
        free(workers);
        free(p);
        infer_fail(err, INFER_ERR, "no memory for %d threads with %zu bytes of scratch each", n_threads, scratch_bytes);
        return NULL;
    }
    memset(workers, 0, n * sizeof *workers);
    memset(shares, 0, n * sizeof *shares);
    memset(p, 0, sizeof *p);
    p->n = n_threads;
    /* More threads than processors: the one we wait for may need ours. */
    p->spin_us = n_threads <= platform_cpu_count() ? SPIN_US : 0;
    p->workers = workers;
    p->shares = shares;
    p->parts = parts;
    contention_init(&p->contention, n_threads);
    p->scratch = scratch;
    p->scratch_bytes = n * stride;
    for (int i = 0; i < n_threads; i++) {
        struct worker *w = &workers[i];
        snprintf(w->name, sizeof w->name, "%s-%d", name, i);
        w->self = (struct pool_thread){.pool = p, .index = i, .count = n_threads,
                                       .scratch = scratch ? p->scratch + (size_t)i * stride : NULL};
    }

    int started = 1, failed = 0;
    while (started < n_threads && !failed) {
        failed = platform_thread_start(&workers[started].thread, POOL_STACK_BYTES, worker_main, &workers[started]);
        if (!failed) started++;
    }
    if (failed) {
        finish(p, started);
        infer_fail(err, INFER_ERR, "thread %d of %d could not be started: %s", started + 1, n_threads,
                   strerror(failed));
        return NULL;
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (p) finish(p, p->n);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

void pool_follow_load(struct pool *p, bool on)
{
    p->follow_load = on;
    contention_init(&p->contention, p->n);
    memset(p->parts, 0, (size_t)p->n * sizeof *p->parts);
}

int pool_threads_now(const struct pool *p)
{
    return p->contention.threads;
}
