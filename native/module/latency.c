/* Latency monitor: see latency.h. Main thread.
 *
 * Redis keeps the slowest sample of an event in each second. So once a second is often enough to
 * hand over the maxima that the engines and the writer collect, and no other thread has to call Redis for it.
 *
 *   infer-step   a step of a model: what everybody's next token waited for
 *   infer-write  a turn of the writer: what everybody's next command waited for */
#include "latency.h"

#include "platform.h"
#include "registry.h"
#include "writer.h"

static const uint64_t REPORT_US = 1000000;

static void take_slowest(const struct model_entry *m, void *arg)
{
    uint64_t *slowest = arg, us = m->state == MODEL_READY ? engine_take_slowest_step(m->engine) : 0;
    if (us > *slowest) *slowest = us;
}

/* Milliseconds; 0: the monitor is off. LatencyAddSample of Redis 7 records everything then. */
static uint64_t threshold_ms(RedisModuleCtx *ctx)
{
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "CONFIG", "cc", "GET", "latency-monitor-threshold");
    if (!reply) return 0;
    RedisModuleCallReply *value = RedisModule_CallReplyArrayElement(reply, 1);
    size_t len = 0;
    const char *digits = value ? RedisModule_CallReplyStringPtr(value, &len) : NULL;
    uint64_t ms = 0;
    for (size_t i = 0; i < len; i++) ms = ms * 10 + (uint64_t)(digits[i] - '0');
    RedisModule_FreeCallReply(reply);
    return ms;
}

static void report(const char *event, uint64_t us, uint64_t threshold)
{
    if (us / 1000 >= threshold) RedisModule_LatencyAddSample(event, (long long)(us / 1000));
}

static void on_cron(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data)
{
    (void)event, (void)subevent, (void)data;
    static uint64_t reported_at;
    uint64_t now = platform_now_us(), step = 0;
    if (now - reported_at < REPORT_US) return;
    reported_at = now;
    registry_each(take_slowest, &step);
    uint64_t turn = writer_take_slowest();
    if (step < 1000 && turn < 1000) return; /* the threshold is at least one millisecond */
    uint64_t threshold = threshold_ms(ctx);
    if (threshold == 0) return;
    report("infer-step", step, threshold);
    report("infer-write", turn, threshold);
}

int latency_register(RedisModuleCtx *ctx)
{
    return RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){.id = REDISMODULE_EVENT_CRON_LOOP, .dataver = 1},
                                              on_cron);
}
