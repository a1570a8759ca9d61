/* One client's request from admission to reply.
 *
 * A job binds a client, a use of a model and core's request. The way:
 *
 *   command (main thread)   job_create, prompt_append, job_start: the client is blocked, core owns the request
 *   done (conductor)        hands the job to the writer if STREAM or STORE are to be written (output.h) ...
 *   end (main, conductor)   ... and in the end back to Redis through UnblockClient
 *   reply (main thread)     the command's `reply` builds the answer
 *   free (main thread)      the job, the request and the use of the model end
 *
 * There is one UnblockClient for each job that was started, in job_end, whatever
 * happens: if the client goes away before, the request is cancelled and `done`
 * follows; Redis then skips `reply` and still calls `free`.
 *
 * A job may have another request come first (job_start_after: the vector of a query). Then the way is
 *
 *   done (conductor)        leaves a call for the event loop
 *   next (main thread)      gathers what the request needs, and ends in job_continue or job_finish
 *
 * with the client blocked over both. Whatever cancels the job meanwhile cancels both requests: the one under
 * way ends early, and the other, if it is admitted at all, before its first step.
 *
 * A job with ASYNC has no blocked client: its client has the id for an answer and may be gone. The
 * writer's turn frees it. So the list of jobs is the main thread's alone. */
#ifndef REDIS_INFER_JOB_H
#define REDIS_INFER_JOB_H

#include "args.h"
#include "llm.h"
#include "output.h"
#include "registry.h"
#include "reply.h"

struct job {
    struct llm_request *request; /* tokens or scores; NULL for vectors: */
    struct embed_request *embed;
    struct model_entry *model;
    const char *command; /* "INFER.GENERATE": static storage */
    uint64_t id;         /* core's; 0 if core refused the request */
    uint64_t started_us; /* platform_now_us at the command's start */
    unsigned long long client_id;
    int (*reply)(RedisModuleCtx *ctx, struct job *j); /* the request succeeded */
    bool async;
    struct output output;
    void *own; /* the command's, for its reply; goes with the job through free_own */
    void (*free_own)(void *own);

    /* job.c's own */
    RedisModuleBlockedClient *blocked;
    struct request *before; /* comes first; NULL: there is none, or `next` was called */
    bool unloaded;          /* the model goes while `before` is under way: `next` is not called */
    void (*go_on)(RedisModuleCtx *ctx, struct job *j);
    RedisModuleCtx *event_loop; /* leads back to it and the client's database, while `before` is under way */
    struct job *next, *prev;
};

/* -1 and *err where a client can't be blocked: in MULTI and in scripts. */
int job_may_block(RedisModuleCtx *ctx, const char *command, struct reply_error *err);

/* A job for `model`, which it uses until it is freed. params as for llm_request_create. On failure
 * nothing is left, params->stops included. */
struct job *job_create(const struct arg_string *model, const struct llm_params *params, struct reply_error *err);

/* The same for a request for vectors. */
struct job *job_create_embed(const struct arg_string *model, struct reply_error *err);

/* What both kinds of request begin with, and the tokens that came in. */
struct request *job_request(const struct job *j);
int job_prompt_tokens(const struct job *j);
int job_state(const struct job *j); /* enum request_state, of the request whose turn it is */

/* Before job_start only. */
void job_free(struct job *j);

/* Blocks the client (async: answers it with the request's id) and queues the request. began_us: when
 * the command started. From here on the client gets its answer by itself, even if core refuses the request. */
void job_start(RedisModuleCtx *ctx, struct job *j, uint64_t began_us);

/* The same, but first `before` is admitted to its engine, and only when it is done is `next` called, on the main thread
 * and with a context in which the user has to be set. Before is the caller's: it lives as long as the job. */
void job_start_after(RedisModuleCtx *ctx, struct job *j, uint64_t began_us, struct request *before,
                     void (*next)(RedisModuleCtx *ctx, struct job *j));
/* From `next`: queues the request, whose admission began at began_us. The job may be gone then. */
void job_continue(struct job *j, uint64_t began_us);
/* Instead: the request is done without having run. err NULL: job_request(j) says how it ended. The job may be gone then. */
void job_finish(struct job *j, const struct reply_error *err);

/* The output is written, as far as it will be: the client gets its reply, or the job is freed. Main
 * thread if it is async, any thread otherwise. */
void job_end(struct job *j);

struct job_timing { /* of a request that is done; 0: it never got there */
    long long queue_us, first_token_us, total_us;
};
void job_get_timing(const struct job *j, struct job_timing *t);
/* The reply fields admit_us, queue_us, first_token_us (if asked for) and total_us: 4 or 3 of them. */
void job_reply_timing(RedisModuleCtx *ctx, const struct job *j, bool first_token);

/* The model is being unloaded: ends what its jobs do before their requests, which are core's to end. Main thread. */
void job_model_leaves(const struct model_entry *m);

/* Started jobs, oldest first. Main thread. */
const struct job *job_first(void);
/* False: there is no such job, or it is done already. */
bool job_cancel(uint64_t id);

#endif
