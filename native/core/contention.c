/* See contention.h. */
#include "contention.h"

enum {
    WINDOW_US = 20000, /* several time slices of a scheduler: what one decision looks at */
    CROWDED = 5,       /* a thread is, that loses more than one part in this many */
    MIN_PAUSE_US = 100000,
    MAX_PAUSE_US = 3200000 /* a retry may cost a tenth of a second: then 3 % */
};

void contention_init(struct contention *c, int threads)
{
    *c = (struct contention){.max = threads, .threads = threads, .pause_us = MIN_PAUSE_US};
}

static void decide(struct contention *c, int threads, struct contention_part *parts)
{
    for (int i = 0; i < c->threads; i++) parts[i] = (struct contention_part){0};
    c->wall_us = 0;
    c->threads = threads;
}

void contention_after_run(struct contention *c, uint64_t now_us, uint64_t wall_us, struct contention_part *parts)
{
    if (c->max == 1) return;
    c->wall_us += wall_us;
    if (c->threads < c->max && now_us >= c->retry_at_us) {
        decide(c, c->max, parts);
        return;
    }
    if (c->wall_us < WINDOW_US) return;

    int crowded = 0;
    uint64_t worked_us = 0;
    for (int i = 0; i < c->threads; i++) {
        crowded += parts[i].preemptions > 0 && parts[i].lost_us * CROWDED > c->wall_us;
        worked_us += parts[i].worked_us;
    }
    /* The scheduler moves those that remain to the processors that are free: they do `fewer` processors' work. */
    int fewer = crowded < c->threads ? c->threads - crowded : 1;
    if (crowded && fewer < c->threads && worked_us < (uint64_t)fewer * c->wall_us) {
        if (c->threads == c->max) {
            c->retry_at_us = now_us + c->pause_us;
            c->pause_us = c->pause_us * 2 < MAX_PAUSE_US ? c->pause_us * 2 : MAX_PAUSE_US;
        }
        decide(c, fewer, parts);
    } else {
        if (c->threads == c->max) c->pause_us = MIN_PAUSE_US;
        decide(c, c->threads, parts);
    }
}
