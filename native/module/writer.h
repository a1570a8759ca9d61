/* Writes to Redis on behalf of threads that must not wait for it.
 *
 * Whoever has something to write leaves an item; Redis' main thread writes them in the order of their
 * coming, in turns: calls of its event loop, each bounded (WRITER_TURN_US) and measured, and between two of them clients are
 * served and see what was written.
 *
 * Leaving an item never waits: that is what the conductor needs. Items that are not urgent are gathered for WRITER_GATHER_US, so
 * that many clients' tokens cost few turns.
 *
 * An item belongs to the writer from writer_push until its `write` returns true. */
#ifndef REDIS_INFER_WRITER_H
#define REDIS_INFER_WRITER_H

#include <stdbool.h>

#include "histogram.h"
#include "reply.h"

enum {
    WRITER_TURN_US = 50,      /* no further item in this turn then; one takes 5 to 20 */
    WRITER_GATHER_US = 10000, /* from one drained queue to the next turn, if nothing is urgent */
    WRITER_RETRY_US = 10000,  /* when an item can't be written now */
};

struct write_item {
    /* Main thread. False: not now, it is asked again later, and what came after it waits
     * too. True: the item may be gone. */
    bool (*write)(RedisModuleCtx *ctx, struct write_item *item);
    bool urgent;

    struct write_item *next; /* the writer's own */
};

/* Before the first push. Main thread. */
void writer_start(RedisModuleCtx *ctx);

/* Any thread, with or without Redis' lock. */
void writer_push(struct write_item *item);

/* When no items are left or to come. False if the event loop still has a call of ours to make: then it is
 * possible again after its next turn. Main thread. */
bool writer_stop(void);

struct writer_latency {
    struct histogram turn;     /* the time of the main thread that a turn took */
    struct histogram turn_cpu; /* the processor time of that: less where the system let others run meanwhile */
    struct histogram wait;     /* from the call for a turn to its beginning */
    _Atomic uint64_t turns;
};
const struct writer_latency *writer_latency(void); /* any thread */

/* The longest turn since the last call, microseconds. Main thread. */
uint64_t writer_take_slowest(void);

#endif
