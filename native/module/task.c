/* Threads for work that may wait: see task.h. Owns running tasks. */
#include "task.h"

#include "platform.h"

#include <stdatomic.h>
#include <string.h>

static struct task *tasks; /* main thread */

static void *task_main(void *arg)
{
    struct task *t = arg;
    platform_worker_thread("infer-task");
    t->run(t);
    /* The last use of t: after either line the main thread may free it, once it has joined this thread. */
    if (t->blocked) RedisModule_UnblockClient(t->blocked, t);
    else atomic_store(&t->finished, true);
    return NULL;
}

static void end(struct task *t)
{
    pthread_join(t->thread, NULL);
    for (struct task **p = &tasks; *p; p = &(*p)->next) {
        if (*p != t) continue;
        *p = t->next;
        break;
    }
    t->free(t);
}

static void end_finished(void)
{
    for (struct task *t = tasks, *next; t; t = next) {
        next = t->next;
        if (!t->blocked && atomic_load(&t->finished)) end(t);
    }
}

static int on_reply(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv, (void)argc;
    struct task *t = RedisModule_GetBlockedClientPrivateData(ctx);
    return t->reply(ctx, t);
}

static void on_free(RedisModuleCtx *ctx, void *privdata)
{
    (void)ctx;
    end(privdata);
}

int task_start(RedisModuleCtx *ctx, struct task *t, bool client, struct reply_error *err)
{
    end_finished();
    t->blocked = NULL;
    atomic_store(&t->finished, false);
    /* No timeout callback: a task can't be abandoned half-way, so neither can its client by CLIENT UNBLOCK. */
    if (client) t->blocked = RedisModule_BlockClient(ctx, on_reply, NULL, on_free, 0);
    int failed = pthread_create(&t->thread, NULL, task_main, t);
    if (failed) {
        if (t->blocked) RedisModule_AbortBlock(t->blocked);
        return reply_fail(err, "ERR", "no thread to be had: %s", strerror(failed));
    }
    t->next = tasks;
    tasks = t;
    return 0;
}

void task_join_all(void)
{
    for (struct task *t = tasks, *next; t; t = next) {
        next = t->next;
        if (t->blocked) pthread_join(t->thread, NULL); /* Redis still holds it: on_free never comes */
        else end(t);
    }
    tasks = NULL;
}
