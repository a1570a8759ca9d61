/* See prefault.h. Owns its thread; the arena is the caller's. The thread writes `done`, the caller `used`. */
#include "prefault.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "platform.h"

struct prefault {
    char *arena;
    size_t bytes;
    pthread_t thread;
    _Atomic size_t used, done;
    _Atomic bool stop;
    _Atomic uint32_t bell; /* advances when there may be something to do */
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void *prefault_main(void *arg)
{
    struct prefault *p = arg;
    platform_idle_thread("infer-memory");
    for (;;) {
        uint32_t seen = atomic_load(&p->bell);
        if (atomic_load(&p->stop)) return NULL;
        size_t done = atomic_load(&p->done), goal = min_size(atomic_load(&p->used) + PREFAULT_AHEAD, p->bytes);
        if (done >= goal) {
            platform_park(&p->bell, seen, 0);
            continue;
        }
        size_t piece = min_size(PREFAULT_PIECE, p->bytes - done);
        if (!platform_populate(p->arena + done, piece)) return NULL;
        atomic_store(&p->done, done + piece);
    }
}

static void ring(struct prefault *p)
{
    atomic_fetch_add(&p->bell, 1);
    platform_wake(&p->bell, 1);
}

struct prefault *prefault_start(void *arena, size_t bytes)
{
    struct prefault *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->arena = arena;
    p->bytes = bytes;
    if (platform_thread_start(&p->thread, 0, prefault_main, p) == 0) return p;
    free(p);
    return NULL;
}

void prefault_reach(struct prefault *p, size_t used)
{
    if (!p || used <= atomic_load_explicit(&p->used, memory_order_relaxed)) return;
    atomic_store(&p->used, used);
    /* Not for each page: a wake-up is a system call, and many small pieces are no better than a large one. */
    size_t done = atomic_load(&p->done);
    if (done < p->bytes && done < used + PREFAULT_AHEAD / 2) ring(p);
}

void prefault_stop(struct prefault *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    ring(p);
    pthread_join(p->thread, NULL);
    free(p);
}
