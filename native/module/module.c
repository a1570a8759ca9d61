/* The Redis module: entry and exit.
 *
 * Threads. Redis' main thread runs every command function, reply callback, configuration setter
 * and INFO; it parses, reads the keys of a prompt straight into core's token array, and
 * blocks the client. Core's conductor thread then computes, with its pool of workers, and never
 * touches anything that belongs to Redis: when a request ends it calls UnblockClient, which
 * only puts the client on a list, and the main thread builds the reply from core's
 * request. What is to be written before the reply or without one (STREAM, STORE) is left for
 * the main thread, which writes it in bounded turns of its event loop (writer.c). No thread of ours ever takes Redis'
 * lock, so compute never waits for Redis, nor Redis for compute. Loading and
 * unloading models wait for disks and for steps under way, so each runs on a thread of
 * its own (task.c).
 *
 * What could race, and why it does not:
 *  - A client that goes away while its request computes: Redis tells job.c, which cancels
 *    the request. Core still ends it through its one `done`, hence one UnblockClient, and
 *    Redis frees the job without a reply. If `done` came first, the cancel finds
 *    a finished request and changes nothing.
 *  - A model that is unloaded while requests use it: core aborts them, and each holds a use of
 *    the model until the main thread has answered; the unloading thread waits for the last one.
 *  - Keys that are overwritten or flushed during a generation: nothing keeps their bytes.
 *  - MODULE UNLOAD: Redis refuses while a client is blocked by us, and OnUnload while there are jobs
 *    without one. Then there is no job and no task with a client, so every thread can be joined.
 *  - SHUTDOWN: clients may be blocked. Threads are joined in the event; jobs, and what they had to write, are left to
 *    the end of the process.
 *  - fork for saving: the child has only the main thread and calls none of this; weights are shared
 *    file pages and the KV cache is not inherited.
 *
 * An alternative was a thread-safe context per request with replies built on the
 * conductor: it costs a lock hand-over per reply, lets compute wait for Redis, and Redis for a thread that lost
 * its processor. */
#include "commands.h"
#include "config.h"
#include "job.h"
#include "kernels.h"
#include "latency.h"
#include "platform.h"
#include "registry.h"
#include "writer.h"

#define MODULE_NAME "infer"
#define EXPORTED __attribute__((visibility("default")))

static void on_shutdown(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data)
{
    (void)ctx, (void)event, (void)subevent, (void)data;
    registry_stop();
}

static int start(RedisModuleCtx *ctx, int argc)
{
    const char *why = NULL;
    if (argc > 0) {
        RedisModule_Log(ctx, "warning",
                        "the module takes no arguments: set infer.model-dir and the others in redis.conf, on the "
                        "server's command line, or with MODULE LOADEX ... CONFIG");
        return REDISMODULE_ERR;
    }
    config.kernels = kernels_select(&why);
    if (!config.kernels) {
        RedisModule_Log(ctx, "warning", "REDIS_INFER_KERNELS: %s", why);
        return REDISMODULE_ERR;
    }
    if (!platform_can_lower_priority())
        RedisModule_Log(ctx, "warning",
                        "this process may not change priorities, so generations will slow other commands down. If "
                        "systemd runs it, add SystemCallFilter=setpriority sched_setattr to its unit");
    registry_start();
    /* Settings, which may be refused, before anything subscribes to events: until 7.2.4 Redis goes on to call a module that failed
     * to load. */
    if (commands_register(ctx) != REDISMODULE_OK || info_register(ctx) != REDISMODULE_OK ||
        config_register(ctx) != REDISMODULE_OK || latency_register(ctx) != REDISMODULE_OK)
        return REDISMODULE_ERR;
    return RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){.id = REDISMODULE_EVENT_SHUTDOWN, .dataver = 1},
                                              on_shutdown);
}

EXPORTED int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
EXPORTED int RedisModule_OnUnload(RedisModuleCtx *ctx);

int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv;
    const char *missing;
    if (redis_api_init(ctx, MODULE_NAME, INFER_VERSION_NUMBER, &missing) != REDISMODULE_OK) {
        if (missing && RedisModule_Log)
            RedisModule_Log(ctx, "warning", "this server has no %s: Redis 7.0 or newer is needed", missing);
        return REDISMODULE_ERR;
    }
    if (start(ctx, argc) != REDISMODULE_OK) {
        config_free();
        return REDISMODULE_ERR;
    }
    RedisModule_Log(ctx, "notice", "redis-infer %s, %s kernels", INFER_VERSION, config.kernels->name);
    return REDISMODULE_OK;
}

int RedisModule_OnUnload(RedisModuleCtx *ctx)
{
    if (job_first() || !writer_stop()) {
        RedisModule_Log(ctx, "notice", "requests with ASYNC are under way: end them with INFER.CANCEL, or wait");
        return REDISMODULE_ERR;
    }
    registry_stop();
    config_free();
    return REDISMODULE_OK;
}
