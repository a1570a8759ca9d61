/* INFER.REQUESTS: what the server works on, oldest first
 * INFER.CANCEL id: ends a request early
 *
 * A cancelled generation answers its own client with what it has so far and finish_reason
 * "cancelled"; a cancelled scoring or embedding answers with CANCELLED. Main thread. */
#include "args.h"
#include "commands.h"
#include "job.h"
#include "platform.h"

static const char *state_name(int state)
{
    switch (state) {
    case REQUEST_QUEUED: return "queued";
    case REQUEST_RUNNING: return "running";
    }
    return "done"; /* the client is about to be answered */
}

int cmd_requests(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv;
    if (argc != 1) return RedisModule_WrongArity(ctx);
    RedisModule_ReplyWithArray(ctx, REDISMODULE_POSTPONED_LEN);
    long n = 0;
    uint64_t now = platform_now_us();
    for (const struct job *j = job_first(); j; j = j->next) {
        if (j->id == 0) continue; /* refused: its client is about to hear of it */
        n++;
        const struct request *r = job_request(j);
        RedisModule_ReplyWithMap(ctx, 11);
        reply_field_integer(ctx, "id", (long long)j->id);
        reply_field_text(ctx, "command", j->command);
        reply_field_text(ctx, "model", j->model->name);
        reply_field_text(ctx, "state", state_name(job_state(j)));
        reply_field_integer(ctx, "client", (long long)j->client_id);
        reply_field_integer(ctx, "async", j->async);
        reply_field_integer(ctx, "prompt_tokens", job_prompt_tokens(j));
        reply_field_integer(ctx, "cached_tokens", r->progress.cached);
        reply_field_integer(ctx, "computed_tokens", r->progress.computed);
        reply_field_integer(ctx, "output_tokens", r->progress.output);
        reply_field_integer(ctx, "age_us", (long long)(now - j->started_us));
    }
    RedisModule_ReplySetArrayLength(ctx, n);
    return REDISMODULE_OK;
}

int cmd_cancel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc != 2) return RedisModule_WrongArity(ctx);
    long long id;
    if (RedisModule_StringToLongLong(argv[1], &id) != REDISMODULE_OK || id <= 0) {
        struct reply_error err;
        reply_fail(&err, "ERR", "id is '%s', not a request's number (see INFER.REQUESTS)", quote_string(argv[1]).text);
        return reply_error(ctx, &err);
    }
    return RedisModule_ReplyWithLongLong(ctx, job_cancel((uint64_t)id));
}
