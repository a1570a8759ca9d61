/* Jobs: see job.h. Owns the list of started jobs, which is used with Redis' lock: on the main
 * thread, and by the writer when a job ends that has no client. on_done is the conductor's. */
#include "job.h"

#include "config.h"
#include "platform.h"

#include <stdlib.h>

static struct job *first, *last;

static void link_job(struct job *j)
{
    j->next = NULL;
    j->prev = last;
    if (last) last->next = j;
    else first = j;
    last = j;
}

static void unlink_job(struct job *j)
{
    if (j->prev) j->prev->next = j->next;
    else first = j->next;
    if (j->next) j->next->prev = j->prev;
    else last = j->prev;
}

int job_may_block(RedisModuleCtx *ctx, const char *command, struct reply_error *err)
{
    if (RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_DENY_BLOCKING)
        return reply_fail(err, "ERR",
                          "%s blocks its client, which is not possible inside MULTI or a script: call it on its own, or a "
                          "generation with ASYNC",
                          command);
    return 0;
}

/* For a request of m's engine; NULL if there is none, for the reason in *core. */
static struct job *bind(struct model_entry *m, struct llm_request *r, struct embed_request *embed,
                        const struct infer_error *core, struct reply_error *err)
{
    if (!r && !embed) {
        reply_fail_core(err, core);
        registry_release(m);
        return NULL;
    }
    struct job *j = RedisModule_Calloc(1, sizeof *j);
    j->request = r;
    j->embed = embed;
    j->model = m;
    return j;
}

struct job *job_create(const struct arg_string *model, const struct llm_params *params, struct reply_error *err)
{
    struct infer_error core;
    struct model_entry *m = registry_acquire(model->data, model->len, err);
    struct job *j = m ? bind(m, llm_request_create(m->engine, params, &core), NULL, &core, err) : NULL;
    if (!j) free(params->stops);
    return j;
}

struct job *job_create_embed(const struct arg_string *model, struct reply_error *err)
{
    struct infer_error core;
    struct model_entry *m = registry_acquire(model->data, model->len, err);
    return m ? bind(m, NULL, embed_request_create(m->engine, &core), &core, err) : NULL;
}

struct request *job_request(const struct job *j)
{
    return j->request ? &j->request->base : &j->embed->base;
}

int job_prompt_tokens(const struct job *j)
{
    return j->request ? j->request->n_prompt : j->embed->n_tokens;
}

void job_free(struct job *j)
{
    llm_request_free(j->request);
    embed_request_free(j->embed);
    registry_release(j->model);
    output_free(&j->output);
    if (j->free_own) j->free_own(j->own);
    RedisModule_Free(j);
}

/* ---- callbacks ---- */

static void on_done(struct request *r) /* conductor */
{
    struct job *j = r->user;
    if (output_wanted(&j->output)) output_end(j);
    else job_end(j);
}

void job_end(struct job *j)
{
    if (j->blocked) {
        RedisModule_UnblockClient(j->blocked, j);
    } else {
        unlink_job(j);
        job_free(j);
    }
}

static int on_reply(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv, (void)argc;
    struct job *j = RedisModule_GetBlockedClientPrivateData(ctx);
    const struct infer_error *error = &job_request(j)->error;
    if (j->output.failed) return reply_error(ctx, &j->output.error);
    return error->code == INFER_OK ? j->reply(ctx, j) : reply_error_core(ctx, error);
}

static void on_free(RedisModuleCtx *ctx, void *privdata)
{
    (void)ctx;
    struct job *j = privdata;
    unlink_job(j);
    job_free(j);
}

/* The handle is all that Redis 7.0 tells about who has gone. */
static struct job *find_blocked(const RedisModuleBlockedClient *blocked)
{
    struct job *j = first;
    while (j && j->blocked != blocked) j = j->next;
    return j;
}

static void on_disconnect(RedisModuleCtx *ctx, RedisModuleBlockedClient *blocked)
{
    (void)ctx;
    struct job *j = find_blocked(blocked);
    if (j) engine_cancel(job_request(j));
}

/* Redis' own timeout is not used (core keeps TIMEOUT): this is CLIENT UNBLOCK. */
static int on_unblock_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv, (void)argc;
    struct job *j = find_blocked(RedisModule_GetBlockedClientHandle(ctx));
    if (j) engine_cancel(job_request(j));
    return RedisModule_ReplyWithError(ctx, "CANCELLED by CLIENT UNBLOCK");
}

/* ---- starting ---- */

void job_start(RedisModuleCtx *ctx, struct job *j, uint64_t began_us)
{
    struct request *r = job_request(j);
    r->user = j;
    r->done = on_done;
    j->client_id = RedisModule_GetClientId(ctx);
    if (!j->async) {
        j->blocked = RedisModule_BlockClient(ctx, on_reply, on_unblock_command, on_free, 0);
        RedisModule_SetDisconnectCallback(j->blocked, on_disconnect);
    }
    link_job(j);

    j->started_us = began_us;
    r->timing.admit_us = platform_now_us() - began_us;
    struct infer_error refused;
    if (engine_admit(j->model->engine, r, &refused) < 0) {
        /* The request never was core's: nothing is to be written, and a blocked client is answered
         * the way that a failed one is answered. */
        r->error = refused;
        if (j->async) reply_error_core(ctx, &refused);
        job_end(j);
        return;
    }
    j->id = r->id; /* it may be done already, but nobody frees it without the lock */
    if (j->async) RedisModule_ReplyWithLongLong(ctx, (long long)j->id);
}

/* ---- looking at them ---- */

/* From one point of a request's life to another; 0 if it never got there. */
static long long span_us(uint64_t from, uint64_t to)
{
    return from && to > from ? (long long)(to - from) : 0;
}

void job_get_timing(const struct job *j, struct job_timing *t)
{
    const struct request_timing *at = &job_request(j)->timing;
    *t = (struct job_timing){
        .queue_us = span_us(at->admitted_at, at->started_at),
        .first_token_us = span_us(at->admitted_at, at->first_output_at),
        .total_us = span_us(at->admitted_at, at->done_at),
    };
}

void job_reply_timing(RedisModuleCtx *ctx, const struct job *j, bool first_token)
{
    struct job_timing t;
    job_get_timing(j, &t);
    reply_field_integer(ctx, "admit_us", (long long)job_request(j)->timing.admit_us);
    reply_field_integer(ctx, "queue_us", t.queue_us);
    if (first_token) reply_field_integer(ctx, "first_token_us", t.first_token_us);
    reply_field_integer(ctx, "total_us", t.total_us);
}

const struct job *job_first(void)
{
    return first;
}

bool job_cancel(uint64_t id)
{
    struct job *j = first;
    while (j && j->id != id) j = j->next;
    if (!j || job_request(j)->state == REQUEST_DONE) return false;
    engine_cancel(job_request(j));
    return true;
}
