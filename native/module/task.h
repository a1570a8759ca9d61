/* Work that may wait (loading a file, ending an engine), on a thread of its own.
 *
 * A task with a client blocks it; when `run` is through, the client gets its
 * answer from `reply`. A task without one just runs. Either way `free` comes last, with the next task at the latest.
 *
 * Threads: start, reply, free and the joins are the main thread's; run is the task's
 * own thread and never takes Redis' lock. The task belongs to the caller until task_start
 * succeeds, then to this file until it calls free. */
#ifndef REDIS_INFER_TASK_H
#define REDIS_INFER_TASK_H

#include <pthread.h>
#include <stdbool.h>

#include "reply.h"

struct task {
    void (*run)(struct task *t);
    int (*reply)(RedisModuleCtx *ctx, struct task *t); /* not called if the client has gone, or there is none */
    void (*free)(struct task *t);

    /* this file's own */
    RedisModuleBlockedClient *blocked;
    pthread_t thread;
    bool answered; /* Redis holds it no longer */
    _Atomic bool finished;
    struct task *next;
};

/* Starts a task for the client of ctx (client true) or for nobody. */
int task_start(RedisModuleCtx *ctx, struct task *t, bool client, struct reply_error *err);

/* Waits for every task; those without a client are freed. Only when Redis serves no client any more. */
void task_join_all(void);

#endif
