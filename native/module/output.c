/* STREAM and STORE of a job: see output.h.
 *
 * A token's item belongs to the writer; the last one is part of the job. on_token and
 * output_end run on the conductor and touch nothing of Redis; write_* run on the main
 * thread, in the order in which the conductor left them. */
#include "output.h"

#include "job.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static _Atomic uint64_t n_entries, n_stores, n_failures;

/* One token on its way. The bytes: top_ids, top_logprobs, then the text. */
struct token {
    struct write_item item;
    struct job *job;
    int i;
    uint32_t id;
    bool has_logprob;
    float logprob;
    int n_top;
    size_t text_len;
    char bytes[];
};

static struct stream_field field_number(const char *name, char *digits, size_t size, long long value)
{
    return (struct stream_field){name, digits, (size_t)snprintf(digits, size, "%lld", value)};
}

void output_fail(struct job *j, const struct reply_error *err)
{
    if (j->output.failed) return;
    j->output.failed = true;
    j->output.error = *err;
}

/* A write failed. */
static void fail(struct job *j, const struct reply_error *err)
{
    if (!j->output.failed) atomic_fetch_add(&n_failures, 1);
    output_fail(j, err);
}

/* ---- tokens ---- */

static bool write_token(RedisModuleCtx *ctx, struct write_item *item)
{
    struct token *t = (struct token *)item;
    struct output *o = &t->job->output;
    if (!o->failed) {
        if (store_paused()) return false;
        char i[24], id[24], logprob[32];
        size_t top_bytes = (size_t)t->n_top * sizeof(uint32_t);
        struct stream_field fields[STREAM_MAX_FIELDS];
        int n = 0;
        fields[n++] = field_number("i", i, sizeof i, t->i);
        fields[n++] = field_number("token", id, sizeof id, t->id);
        fields[n++] = (struct stream_field){"text", t->bytes + 2 * top_bytes, t->text_len};
        if (t->has_logprob)
            fields[n++] = (struct stream_field){
                "logprob", logprob, (size_t)snprintf(logprob, sizeof logprob, "%.9g", (double)t->logprob)};
        if (t->n_top) {
            fields[n++] = (struct stream_field){"top_ids", t->bytes, top_bytes};
            fields[n++] = (struct stream_field){"top_logprobs", t->bytes + top_bytes, top_bytes};
        }
        struct reply_error err;
        RedisModule_SelectDb(ctx, o->db);
        if (stream_add(ctx, &o->stream, fields, n, false, &err) < 0) {
            fail(t->job, &err);
            engine_cancel(&t->job->request->base);
        } else {
            atomic_fetch_add(&n_entries, 1);
        }
    }
    RedisModule_Free(t);
    return true;
}

static void on_token(struct request *request) /* conductor */
{
    struct job *j = request->user;
    struct output *o = &j->output;
    const struct llm_request *r = j->request;
    size_t at = (size_t)r->n_output - 1, n_top = r->params.n_logprobs > 0 ? (size_t)r->params.n_logprobs : 0;
    size_t text_len = r->text.ready - o->text_sent, top_bytes = n_top * sizeof(uint32_t);

    struct token *t = RedisModule_Alloc(sizeof *t + 2 * top_bytes + text_len);
    *t = (struct token){
        .item = {.write = write_token, .urgent = at == 0},
        .job = j,
        .i = (int)at,
        .id = r->tokens[(size_t)r->n_prompt + at],
        .has_logprob = r->params.n_logprobs >= 0,
        .n_top = (int)n_top,
        .text_len = text_len,
    };
    if (t->has_logprob) t->logprob = r->logprob[at];
    if (n_top) {
        memcpy(t->bytes, r->top_ids + at * n_top, top_bytes);
        memcpy(t->bytes + top_bytes, r->top_logprobs + at * n_top, top_bytes);
    }
    if (text_len) memcpy(t->bytes + 2 * top_bytes, r->text.bytes + o->text_sent, text_len);
    o->text_sent += text_len;
    writer_push(&t->item);
}

/* ---- the end ---- */

static void write_last(RedisModuleCtx *ctx, struct job *j)
{
    struct output *o = &j->output;
    const struct llm_request *r = j->request;
    struct reply_error core;
    const char *error = o->failed ? o->error.line : NULL;
    if (!error && r->base.error.code != INFER_OK) {
        reply_fail_core(&core, &r->base.error);
        error = core.line;
    }
    const char *reason = error ? "error" : llm_finish_name(r->finish);
    const char *rest = r->text.bytes ? r->text.bytes + o->text_sent : "";

    struct job_timing t;
    job_get_timing(j, &t);
    char digits[7][24];
    struct stream_field fields[STREAM_MAX_FIELDS];
    int n = 0;
    fields[n] = field_number("i", digits[0], sizeof *digits, r->n_output), n++;
    fields[n++] = (struct stream_field){"text", rest, r->text.ready - o->text_sent};
    fields[n++] = (struct stream_field){"finish_reason", reason, strlen(reason)};
    if (error) fields[n++] = (struct stream_field){"error", error, strlen(error)};
    const struct {
        const char *name;
        long long value;
    } counts[] = {{"prompt_tokens", r->n_prompt}, {"cached_tokens", r->n_cached},   {"output_tokens", r->n_output},
                  {"queue_us", t.queue_us},       {"first_token_us", t.first_token_us}, {"total_us", t.total_us}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        fields[n++] = field_number(counts[i].name, digits[1 + i], sizeof *digits, counts[i].value);

    struct reply_error err;
    if (stream_add(ctx, &o->stream, fields, n, true, &err) < 0) fail(j, &err);
    else atomic_fetch_add(&n_entries, 1);
}

static bool write_end(RedisModuleCtx *ctx, struct write_item *item)
{
    struct job *j = (struct job *)((char *)item - offsetof(struct job, output.end));
    struct output *o = &j->output;
    const struct llm_request *r = j->request;
    if (store_paused()) return false;
    RedisModule_SelectDb(ctx, o->db);
    if (o->store && !o->failed && r->base.error.code == INFER_OK && r->finish != LLM_CANCELLED) {
        struct reply_error err;
        if (store_tokens(ctx, o->store, o->store_len, r->tokens + r->n_prompt, (size_t)r->n_output, &err) < 0)
            fail(j, &err);
        else atomic_fetch_add(&n_stores, 1);
    }
    if (o->stream.key) write_last(ctx, j);
    job_end(j);
    return true;
}

void output_end(struct job *j)
{
    j->output.end = (struct write_item){.write = write_end, .urgent = true};
    writer_push(&j->output.end);
}

/* ---- the rest ---- */

void output_prepare(RedisModuleCtx *ctx, struct job *j)
{
    j->output.db = RedisModule_GetSelectedDb(ctx);
    if (j->output.stream.key) j->request->base.output = on_token;
    writer_start(ctx);
}

void output_free(struct output *o)
{
    if (o->store) RedisModule_Free(o->store);
    if (o->stream.key) RedisModule_Free(o->stream.key);
}

void output_get_stats(struct output_stats *s)
{
    s->entries = atomic_load(&n_entries);
    s->stores = atomic_load(&n_stores);
    s->failures = atomic_load(&n_failures);
}
