/* Engines without a runtime: the test itself makes their steps. */
#ifndef INFER_ENGINE_TEST_H
#define INFER_ENGINE_TEST_H

#include <stdatomic.h>

#include "check.h"
#include "engine.h"

/* Steps until nothing is left to do; no more than a number that no test needs. */
static inline void drain(struct engine *e, struct pool *p)
{
    int steps = 0;
    while (e->ops->step(e, p) && steps < 100000) steps++;
    CHECK(steps < 100000);
}

static inline struct engine_stats stats(struct engine *e)
{
    struct engine_stats s;
    e->ops->get_stats(e, &s);
    return s;
}

/* Nothing is under way, and everything that was is accounted for. */
static inline void check_idle(struct engine *e)
{
    struct engine_stats s = stats(e);
    CHECKF(s.running == 0 && s.queued == 0, "%d running, %d queued", s.running, s.queued);
    CHECKF(s.kv.pages_active == 0, "%d pages in use", s.kv.pages_active);
    CHECKF(s.requests == s.finished + s.cancelled + s.timed_out + s.failed, "%d of %d requests counted",
           (int)(s.finished + s.cancelled + s.timed_out + s.failed), (int)s.requests);
    CHECKF(atomic_load(&e->n_open) == 0, "%d open", atomic_load(&e->n_open));
    CHECKF(atomic_load(&e->embed_bytes) == 0, "%zu bytes open", atomic_load(&e->embed_bytes));
}

#endif
