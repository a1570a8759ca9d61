/* Writes to Redis on behalf of threads that must not wait for it.
 *
 * Whoever has something to write leaves an item; one thread of ours takes Redis' lock and
 * writes them in the order of their coming. Each hold of the lock is bounded (WRITER_HOLD_US) and measured, and
 * between two holds Redis' event loop has made at least one turn.
 *
 * Leaving an item never waits, neither for the lock nor for the writer: that is what the conductor
 * needs. Items that are not urgent are gathered for WRITER_GATHER_US, so that many clients' tokens cost few holds.
 *
 * An item belongs to the writer from writer_push until its `write` returns true. */
#ifndef REDIS_INFER_WRITER_H
#define REDIS_INFER_WRITER_H

#include <stdbool.h>

#include "histogram.h"
#include "reply.h"

enum {
    WRITER_HOLD_US = 50,      /* no further item in this hold then; one takes 5 to 20, and replicating them as much again */
    WRITER_GATHER_US = 10000, /* from one drained queue to the next hold, if nothing is urgent */
    WRITER_RETRY_US = 10000,  /* when an item can't be written now */
};

struct write_item {
    /* With Redis' lock. False: not now, it is asked again later, and what came after it waits
     * too. True: the item may be gone. */
    bool (*write)(RedisModuleCtx *ctx, struct write_item *item);
    bool urgent;

    struct write_item *next; /* the writer's own */
};

/* Starts the thread if it does not run. Main thread. */
int writer_start(RedisModuleCtx *ctx, struct reply_error *err);

/* Any thread, with or without Redis' lock. */
void writer_push(struct write_item *item);

/* Ends the thread, when no items are left or to come. False, and it goes on, if Redis still has to answer it:
 * then it is possible again in the event loop's next turn. Main thread. */
bool writer_stop(void);

/* The server ends: the thread writes nothing any more and is left to the end of the process, since
 * it may wait for the lock that the caller holds for good. Main thread. */
void writer_abandon(void);

struct writer_latency {
    struct histogram hold;     /* from having the lock to having given it back */
    struct histogram hold_cpu; /* the processor time of that: less where the system let others run meanwhile */
    struct histogram wait;     /* for the lock */
    _Atomic uint64_t holds;
};
const struct writer_latency *writer_latency(void); /* any thread */

/* The longest hold since the last call, microseconds. One caller. */
uint64_t writer_take_slowest(void);

#endif
