/* The runtime: the conductor thread that steps every engine, and the door to it for other threads.
 *
 * Threads. The conductor is thread 0 of the pool. It steps the engines in turn while any of them has work and
 * parks otherwise. It alone walks and changes its list of engines, so it steps without holding a lock.
 * Other threads leave it messages (an engine to add, a call to make) under `lock`, which
 * everybody holds for a few instructions only: Redis' main thread never waits for a step there.
 *
 * Waking. `work` counts reasons to look again. The conductor reads it before it looks and parks only while
 * it has not moved; others advance it and make the system call only if the conductor is (about to be) parked.
 *
 * Leaving. runtime_remove clears engine->runtime under `lock`, under which engine_admit looks at it and
 * admits: so a request is either admitted before, and the abort that follows on the conductor ends it, or refused.
 *
 * Ownership: the runtime owns the pool and its threads; engines are the caller's. */
#include "engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"

/* Something that the conductor does between two steps while the caller waits; on the caller's stack. */
struct call {
    enum { CALL_REMOVE, CALL_SET_POOL } what;
    struct engine *engine; /* CALL_REMOVE */
    struct pool *pool;     /* CALL_SET_POOL: in, the new one; out, the old one */
    bool done;
    struct call *next;
};

struct runtime {
    pthread_t conductor;
    size_t scratch_bytes;
    _Atomic int n_threads, n_threads_now;

    struct pool *pool;      /* the conductor's, as is the list */
    struct engine *engines; /* in the order of registration */

    pthread_mutex_t lock;
    pthread_cond_t called;     /* a call is done */
    struct engine *new_engines; /* under lock: not yet in the list, newest first */
    struct call *calls;         /* under lock, newest first: callers wait, so there are few */
    _Atomic bool messages;      /* one of the two is not empty */
    _Atomic bool stop;

    _Atomic uint32_t work;
    _Atomic bool parked;
};

static void wake(struct runtime *rt)
{
    /* Sequentially consistent here and in conduct(): one side sees the other's store. */
    atomic_fetch_add(&rt->work, 1);
    if (atomic_load(&rt->parked)) platform_wake(&rt->work, 1);
}

/* ---- the conductor ---- */

static void unlink_engine(struct runtime *rt, struct engine *e)
{
    for (struct engine **at = &rt->engines; *at; at = &(*at)->next)
        if (*at == e) {
            *at = e->next;
            return;
        }
}

static void take_messages(struct runtime *rt)
{
    pthread_mutex_lock(&rt->lock);
    struct engine *added = rt->new_engines;
    struct call *calls = rt->calls;
    rt->new_engines = NULL;
    rt->calls = NULL;
    atomic_store(&rt->messages, false);
    pthread_mutex_unlock(&rt->lock);

    struct engine **end = &rt->engines;
    while (*end) end = &(*end)->next;
    while (added) { /* newest first: each goes in front of those that came after it */
        struct engine *e = added;
        added = e->next;
        e->next = *end;
        *end = e;
    }
    while (calls) {
        struct call *c = calls;
        calls = c->next; /* c is gone once it is done */
        if (c->what == CALL_REMOVE) {
            c->engine->ops->abort(c->engine);
            unlink_engine(rt, c->engine);
        } else {
            struct pool *old = rt->pool;
            rt->pool = c->pool;
            pool_follow_load(rt->pool, true);
            atomic_store(&rt->n_threads, pool_threads(rt->pool));
            c->pool = old;
        }
        pthread_mutex_lock(&rt->lock);
        c->done = true;
        pthread_cond_broadcast(&rt->called);
        pthread_mutex_unlock(&rt->lock);
    }
}

static void *conduct(void *arg)
{
    struct runtime *rt = arg;
    platform_worker_thread("infer-0");
    while (!atomic_load(&rt->stop)) {
        uint32_t seen = atomic_load(&rt->work);
        bool any = false;
        if (atomic_load(&rt->messages)) take_messages(rt);
        for (struct engine *e = rt->engines, *next; e; e = next) {
            any |= e->ops->step(e, rt->pool);
            atomic_store_explicit(&rt->n_threads_now, pool_threads_now(rt->pool), memory_order_relaxed);
            next = e->next; /* e stays listed until the calls below */
            if (atomic_load(&rt->messages)) break; /* nobody waits for longer than one step */
        }
        if (any || atomic_load(&rt->messages)) continue;
        atomic_store(&rt->parked, true);
        if (atomic_load(&rt->work) == seen) platform_park(&rt->work, seen, 0);
        atomic_store(&rt->parked, false);
    }
    return NULL;
}

/* ---- other threads ---- */

static void call(struct runtime *rt, struct call *c)
{
    pthread_mutex_lock(&rt->lock);
    c->next = rt->calls;
    rt->calls = c;
    atomic_store(&rt->messages, true);
    wake(rt);
    while (!c->done) pthread_cond_wait(&rt->called, &rt->lock);
    pthread_mutex_unlock(&rt->lock);
}

/* As many as there are processors where the caller leaves it to us. */
static int n_threads(int wanted)
{
    if (wanted != 0) return wanted;
    int processors = platform_cpu_count();
    return processors < POOL_MAX_THREADS ? processors : POOL_MAX_THREADS;
}

struct runtime *runtime_create(int threads, size_t scratch_bytes, struct infer_error *err)
{
    struct runtime *rt = calloc(1, sizeof *rt);
    if (!rt) {
        infer_fail(err, INFER_ERR, "no memory for the runtime");
        return NULL;
    }
    rt->scratch_bytes = scratch_bytes;
    threads = n_threads(threads);
    rt->pool = pool_create(threads, scratch_bytes, "infer", err);
    if (!rt->pool) {
        free(rt);
        return NULL;
    }
    pool_follow_load(rt->pool, true);
    rt->n_threads = rt->n_threads_now = threads;
    pthread_mutex_init(&rt->lock, NULL);
    pthread_cond_init(&rt->called, NULL);

    int failed = platform_thread_start(&rt->conductor, POOL_STACK_BYTES, conduct, rt);
    if (failed) {
        infer_fail(err, INFER_ERR, "the conductor thread could not be started: %s", strerror(failed));
        pool_free(rt->pool);
        pthread_cond_destroy(&rt->called);
        pthread_mutex_destroy(&rt->lock);
        free(rt);
        return NULL;
    }
    return rt;
}

void runtime_free(struct runtime *rt)
{
    if (!rt) return;
    atomic_store(&rt->stop, true);
    wake(rt);
    pthread_join(rt->conductor, NULL);
    pool_free(rt->pool);
    pthread_cond_destroy(&rt->called);
    pthread_mutex_destroy(&rt->lock);
    free(rt);
}

int runtime_threads(const struct runtime *rt)
{
    return atomic_load(&rt->n_threads);
}

int runtime_threads_now(const struct runtime *rt)
{
    return atomic_load_explicit(&rt->n_threads_now, memory_order_relaxed);
}

int runtime_set_threads(struct runtime *rt, int threads, struct infer_error *err)
{
    threads = n_threads(threads);
    /* Built and torn down here: the conductor only swaps. */
    struct call c = {.what = CALL_SET_POOL, .pool = pool_create(threads, rt->scratch_bytes, "infer", err)};
    if (!c.pool) return -1;
    call(rt, &c);
    pool_free(c.pool);
    return 0;
}

void runtime_add(struct runtime *rt, struct engine *e)
{
    pthread_mutex_lock(&rt->lock);
    atomic_store(&e->runtime, rt);
    e->next = rt->new_engines;
    rt->new_engines = e;
    atomic_store(&rt->messages, true);
    pthread_mutex_unlock(&rt->lock);
    wake(rt);
}

void runtime_remove(struct runtime *rt, struct engine *e)
{
    pthread_mutex_lock(&rt->lock);
    bool registered = atomic_load(&e->runtime) == rt;
    if (registered) atomic_store(&e->runtime, NULL);
    pthread_mutex_unlock(&rt->lock);
    if (!registered) return;
    struct call c = {.what = CALL_REMOVE, .engine = e};
    call(rt, &c);
}

int engine_admit(struct engine *e, struct request *r, struct infer_error *err)
{
    static _Atomic uint64_t last_id;
    r->engine = e;
    r->id = atomic_fetch_add(&last_id, 1) + 1;
    r->timing.admitted_at = platform_now_us();
    atomic_store(&r->state, REQUEST_QUEUED);

    int result = -1;
    struct runtime *rt = atomic_load(&e->runtime);
    if (rt) {
        pthread_mutex_lock(&rt->lock);
        if (atomic_load(&e->runtime) == rt)
            result = r->is_embed ? e->ops->embed(e, (struct embed_request *)r, err) : e->ops->admit(e, r, err);
        else
            rt = NULL;
        pthread_mutex_unlock(&rt->lock);
    }
    if (!rt) infer_fail(err, INFER_NOMODEL, "the model is being unloaded");
    if (result != 0) {
        atomic_store(&r->state, REQUEST_NEW);
        return -1;
    }
    wake(rt); /* r may be done and gone by now */
    return 0;
}

void engine_cancel(struct request *r)
{
    struct runtime *rt = atomic_load(&r->engine->runtime);
    atomic_store(&r->cancelled, true);
    if (rt) wake(rt);
}
