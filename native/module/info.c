/* INFO infer: counters since the models that are loaded now were loaded, and the memory that
 * used_memory does not show (weights are mapped files, the KV cache is mapped memory).
 *
 * Main thread; core's counters are read through the engine's get_stats. */
#include "commands.h"
#include "config.h"
#include "output.h"
#include "registry.h"

#include <stdio.h>
#include <string.h>

struct totals {
    struct engine_stats sum; /* but for kv.page_bytes, which differs between models, and the percentiles */
    struct engine_latency latency;
    size_t weight_bytes, activation_bytes, kv_bytes, kv_used_bytes;
    unsigned long long ready;
};

static void add(const struct model_entry *m, void *arg)
{
    struct totals *t = arg;
    if (m->state != MODEL_READY) return;
    struct engine_stats s;
    m->engine->ops->get_stats(m->engine, &s);
    t->ready++;
    t->sum.running += s.running;
    t->sum.queued += s.queued;
    t->sum.requests += s.requests;
    t->sum.finished += s.finished;
    t->sum.cancelled += s.cancelled;
    t->sum.timed_out += s.timed_out;
    t->sum.failed += s.failed;
    t->sum.prompt_tokens += s.prompt_tokens;
    t->sum.cached_tokens += s.cached_tokens;
    t->sum.output_tokens += s.output_tokens;
    t->sum.steps += s.steps;
    t->weight_bytes += m->engine->info.weight_bytes;
    t->activation_bytes += s.activation_bytes;
    t->sum.kv.pages_total += s.kv.pages_total;
    t->sum.kv.pages_active += s.kv.pages_active;
    t->sum.kv.pages_cached += s.kv.pages_cached;
    t->sum.kv.pages_free += s.kv.pages_free;
    t->sum.kv.evicted_pages += s.kv.evicted_pages;
    histogram_merge(&t->latency.queue, &m->engine->latency.queue);
    histogram_merge(&t->latency.first_token, &m->engine->latency.first_token);
    histogram_merge(&t->latency.token, &m->engine->latency.token);
    histogram_merge(&t->latency.step, &m->engine->latency.step);
    t->kv_bytes += s.kv.arena_bytes;
    t->kv_used_bytes += (size_t)(s.kv.pages_active + s.kv.pages_cached) * s.kv.page_bytes;
}

static void field(RedisModuleInfoCtx *info, const char *name, unsigned long long value)
{
    RedisModule_InfoAddFieldULongLong(info, name, value);
}

static void percentiles(RedisModuleInfoCtx *info, const char *what, const struct histogram *of)
{
    struct histogram_summary summary, *h = &summary;
    histogram_read(of, h);
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {{"p50", h->p50_us}, {"p90", h->p90_us}, {"p99", h->p99_us}, {"max", h->max_us}};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char name[48];
        snprintf(name, sizeof name, "%s_%s_us", what, values[i].name);
        field(info, name, values[i].value);
    }
}

static void describe_pages(RedisModuleInfoCtx *info, const struct kv_stats *kv)
{
    field(info, "kv_pages", (unsigned long long)kv->pages_total);
    field(info, "kv_pages_active", (unsigned long long)kv->pages_active);
    field(info, "kv_pages_cached", (unsigned long long)kv->pages_cached);
    field(info, "kv_pages_free", (unsigned long long)kv->pages_free);
    field(info, "kv_evicted_pages", kv->evicted_pages);
}

static void describe_latency(RedisModuleInfoCtx *info, const struct engine_latency *l)
{
    percentiles(info, "queue", &l->queue);
    percentiles(info, "first_token", &l->first_token);
    percentiles(info, "token", &l->token);
    percentiles(info, "step", &l->step);
}

static void describe(const struct model_entry *m, void *info)
{
    char name[sizeof m->name + sizeof "model_"];
    snprintf(name, sizeof name, "model_%s", m->name);
    RedisModule_InfoBeginDictField(info, name);
    RedisModule_InfoAddFieldCString(info, "state", model_state_name(m->state));
    if (m->state == MODEL_READY) {
        struct engine_stats s;
        m->engine->ops->get_stats(m->engine, &s);
        field(info, "running", (unsigned long long)s.running);
        field(info, "queued", (unsigned long long)s.queued);
        field(info, "requests", s.requests);
        field(info, "finished", s.finished);
        field(info, "cancelled", s.cancelled);
        field(info, "timed_out", s.timed_out);
        field(info, "failed", s.failed);
        field(info, "prompt_tokens", s.prompt_tokens);
        field(info, "cached_tokens", s.cached_tokens);
        field(info, "output_tokens", s.output_tokens);
        field(info, "steps", s.steps);
        describe_pages(info, &s.kv);
        describe_latency(info, &m->engine->latency);
    }
    RedisModule_InfoEndDictField(info);
}

static void describe_writing(RedisModuleInfoCtx *info)
{
    struct output_stats output;
    const struct writer_latency *writer = writer_latency();
    output_get_stats(&output);
    field(info, "stream_entries", output.entries);
    field(info, "stored_keys", output.stores);
    field(info, "output_failures", output.failures);
    field(info, "write_turns", writer->turns);
    percentiles(info, "write_turn", &writer->turn);
    percentiles(info, "write_turn_cpu", &writer->turn_cpu);
    percentiles(info, "write_wait", &writer->wait);
}

static void on_info(RedisModuleInfoCtx *info, int for_crash_report)
{
    RedisModule_InfoAddSection(info, "");
    RedisModule_InfoAddFieldCString(info, "version", INFER_VERSION);
    RedisModule_InfoAddFieldCString(info, "kernels", config.kernels->name);
    /* The thread that crashed may hold any lock. */
    if (for_crash_report) return;

    struct totals t;
    memset(&t, 0, sizeof t);
    registry_each(add, &t);
    field(info, "threads", (unsigned long long)registry_threads());
    field(info, "threads_now", (unsigned long long)registry_threads_now());
    field(info, "models", t.ready);
    field(info, "requests_running", (unsigned long long)t.sum.running);
    field(info, "requests_queued", (unsigned long long)t.sum.queued);
    field(info, "requests_total", t.sum.requests);
    field(info, "requests_finished", t.sum.finished);
    field(info, "requests_cancelled", t.sum.cancelled);
    field(info, "requests_timed_out", t.sum.timed_out);
    field(info, "requests_failed", t.sum.failed);
    field(info, "prompt_tokens", t.sum.prompt_tokens);
    field(info, "cached_tokens", t.sum.cached_tokens);
    field(info, "output_tokens", t.sum.output_tokens);
    field(info, "steps", t.sum.steps);
    describe_latency(info, &t.latency);
    describe_pages(info, &t.sum.kv);
    field(info, "memory_weights_bytes", t.weight_bytes);
    field(info, "memory_activations_bytes", t.activation_bytes);
    field(info, "memory_kv_bytes", t.kv_bytes);
    field(info, "memory_kv_used_bytes", t.kv_used_bytes);
    describe_writing(info);

    RedisModule_InfoAddSection(info, "models");
    registry_each(describe, info);
}

int info_register(RedisModuleCtx *ctx)
{
    return RedisModule_RegisterInfoFunc(ctx, on_info);
}
