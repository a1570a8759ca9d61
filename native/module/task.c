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
    if (t->blocked) RedisModule_UnblockClient(t->blocked, t);
    /* The last use of t: the main thread may free it now, once it has joined this thread. */
    atomic_store(&t->finished, true);
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

static bool has_client(const struct task *t)
{
    return t->blocked && !t->answered;
}

static void end_finished(void)
{
    for (struct task *t = tasks, *next; t; t = next) {
        next = t->next;
        if (!has_client(t) && atomic_load(&t->finished)) end(t);
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
    struct task *t = privdata;
    /* Its thread, of low priority, may not have got the processor back that it gave the main thread by answering. Then the next
     * task ends it. */
    t->answered = true;
    end_finished();
}

int task_start(RedisModuleCtx *ctx, struct task *t, bool client, struct reply_error *err)
{
    end_finished();
    t->blocked = NULL;
    t->answered = false;
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
        if (has_client(t)) pthread_join(t->thread, NULL); /* Redis still holds it: on_free never comes */
        else end(t);
    }
    tasks = NULL;
}
