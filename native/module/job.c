/* Jobs: see job.h. Owns the list of started jobs, which is the main thread's. on_done is the
 * conductor's. */
#include "job.h"

#include "config.h"
#include "platform.h"

#include <stdatomic.h>
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

int job_state(const struct job *j)
{
    if (!j->before) return atomic_load(&job_request(j)->state);
    int state = atomic_load(&j->before->state);
    return state == REQUEST_DONE ? REQUEST_QUEUED : state;
}

void job_free(struct job *j)
{
    if (j->event_loop) RedisModule_FreeThreadSafeContext(j->event_loop);
    llm_request_free(j->request);
    embed_request_free(j->embed);
    registry_release(j->model);
    output_free(&j->output);
    if (j->free_own) j->free_own(j->own);
    RedisModule_Free(j);
}

static void cancel(struct job *j)
{
    engine_cancel(job_request(j));
    if (j->before) engine_cancel(j->before);
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

/* The end of a request that core never had: nothing is left to be cancelled. */
static void done_without_core(struct job *j)
{
    struct request *r = job_request(j);
    atomic_store(&r->state, REQUEST_DONE);
    on_done(r);
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

/* What is computed already is not written either, if that still waits for writes to be possible. */
static void cancel_for(struct job *j, const char *why)
{
    struct reply_error err;
    cancel(j);
    if (job_state(j) != REQUEST_DONE || !output_wanted(&j->output)) return;
    reply_fail(&err, "CANCELLED", "%s", why);
    output_fail(j, &err);
}

static void on_disconnect(RedisModuleCtx *ctx, RedisModuleBlockedClient *blocked)
{
    (void)ctx;
    struct job *j = find_blocked(blocked);
    if (j) cancel_for(j, "the client has gone");
}

/* Redis' own timeout is not used (core keeps TIMEOUT): this is CLIENT UNBLOCK. */
static int on_unblock_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv, (void)argc;
    struct job *j = find_blocked(RedisModule_GetBlockedClientHandle(ctx));
    if (j) cancel_for(j, "by CLIENT UNBLOCK");
    return RedisModule_ReplyWithError(ctx, "CANCELLED by CLIENT UNBLOCK");
}

/* ---- starting ---- */

static void begin(RedisModuleCtx *ctx, struct job *j, uint64_t began_us)
{
    struct request *r = job_request(j);
    r->user = j;
    r->done = on_done;
    j->started_us = began_us;
    j->client_id = RedisModule_GetClientId(ctx);
    if (!j->async) {
        j->blocked = RedisModule_BlockClient(ctx, on_reply, on_unblock_command, on_free, 0);
        RedisModule_SetDisconnectCallback(j->blocked, on_disconnect);
    }
    link_job(j);
}

/* Hands the job's first request to core. */
static void admit(RedisModuleCtx *ctx, struct job *j, struct request *r)
{
    struct infer_error refused;
    if (engine_admit(r->engine, r, &refused) < 0) {
        /* The request never was core's: nothing is to be written, and a blocked client is answered
         * the way that a failed one is answered. */
        job_request(j)->error = refused;
        if (j->async) reply_error_core(ctx, &refused);
        job_end(j);
        return;
    }
    j->id = r->id; /* it may be done already, but this thread frees it */
    if (j->async) RedisModule_ReplyWithLongLong(ctx, (long long)j->id);
}

void job_start(RedisModuleCtx *ctx, struct job *j, uint64_t began_us)
{
    begin(ctx, j, began_us);
    job_request(j)->timing.admit_us = platform_now_us() - began_us;
    admit(ctx, j, job_request(j));
}

/* ---- when another request comes first ---- */

static void on_timer(RedisModuleCtx *ctx, void *data)
{
    struct job *j = data;
    struct request *r = job_request(j);
    j->before = NULL;
    if (j->unloaded) {
        infer_fail(&r->error, INFER_NOMODEL, "the model was unloaded before the request was finished");
        done_without_core(j);
    } else {
        j->go_on(ctx, j);
    }
}

/* The event loop also turns inside a script that takes long, and while a dataset is loaded, where
 * nobody may look at the keys. Timers wait until that is over. */
static void in_event_loop(void *data)
{
    struct job *j = data;
    RedisModule_CreateTimer(j->event_loop, 0, on_timer, j);
    RedisModule_FreeThreadSafeContext(j->event_loop);
    j->event_loop = NULL;
}

static void on_before_done(struct request *r) /* conductor */
{
    RedisModule_EventLoopAddOneShot(in_event_loop, r->user);
}

void job_start_after(RedisModuleCtx *ctx, struct job *j, uint64_t began_us, struct request *before,
                     void (*next)(RedisModuleCtx *ctx, struct job *j))
{
    begin(ctx, j, began_us);
    j->event_loop = RedisModule_GetDetachedThreadSafeContext(ctx);
    RedisModule_SelectDb(j->event_loop, RedisModule_GetSelectedDb(ctx));
    j->go_on = next;
    j->before = before;
    before->user = j;
    before->done = on_before_done;
    admit(ctx, j, before);
}

void job_continue(struct job *j, uint64_t began_us)
{
    struct request *r = job_request(j);
    r->timing.admit_us = platform_now_us() - began_us;
    struct infer_error refused;
    if (engine_admit(r->engine, r, &refused) == 0) return;
    r->error = refused;
    done_without_core(j);
}

void job_finish(struct job *j, const struct reply_error *err)
{
    if (err) output_fail(j, err);
    done_without_core(j);
}

void job_model_leaves(const struct model_entry *m)
{
    for (struct job *j = first; j; j = j->next)
        if (j->model == m && j->before) {
            j->unloaded = true;
            engine_cancel(j->before);
        }
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
    if (!j || job_state(j) == REQUEST_DONE) return false;
    cancel(j);
    return true;
}
