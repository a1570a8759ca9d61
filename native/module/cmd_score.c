/* INFER.SCORE model numkeys key [key ...] [TOKENS blob] [TOP n]
 *
 * The log-probability that the model gives each token of a text after the ones before it. Main thread. */
#include "args.h"
#include "commands.h"
#include "job.h"
#include "platform.h"
#include "prompt.h"

#include <stddef.h>

struct score_args {
    struct arg_string tokens;
    int top;
};

static const struct option options[] = {
    {"TOKENS", OPTION_STRING, offsetof(struct score_args, tokens), 0, 0},
    {"TOP", OPTION_INT, offsetof(struct score_args, top), 1, LLM_MAX_TOP},
    {0},
};

static int parse(RedisModuleString **argv, int argc, struct arg_prompt *prompt, struct score_args *a,
                 struct reply_error *err)
{
    *a = (struct score_args){.top = 0};
    if (args_prompt(argv, argc, prompt, err) < 0) return -1;
    struct option_set set = {options, a, 0};
    return args_options(&set, 1, argv, argc, prompt->next, err);
}

static int reply(RedisModuleCtx *ctx, struct job *j)
{
    const struct llm_request *r = j->request;
    size_t rows = (size_t)r->n_prompt - 1, top = (size_t)r->params.n_logprobs;
    RedisModule_ReplyWithMap(ctx, 6 + (top ? 2 : 0));
    reply_field_bytes(ctx, "logprobs", r->logprob ? (const void *)r->logprob : "", rows * sizeof *r->logprob);
    if (top) {
        reply_field_bytes(ctx, "top_ids", r->top_ids ? (const void *)r->top_ids : "", rows * top * sizeof *r->top_ids);
        reply_field_bytes(ctx, "top_logprobs", r->top_logprobs ? (const void *)r->top_logprobs : "",
                          rows * top * sizeof *r->top_logprobs);
    }
    reply_field_integer(ctx, "prompt_tokens", r->n_prompt);
    reply_field_integer(ctx, "cached_tokens", r->n_cached);
    job_reply_timing(ctx, j, false);
    return REDISMODULE_OK;
}

int cmd_score(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    uint64_t began_us = platform_now_us();
    if (RedisModule_IsKeysPositionRequest(ctx)) return prompt_report_keys(ctx, argv, argc);
    if (argc < 4) return RedisModule_WrongArity(ctx);

    struct arg_prompt prompt;
    struct score_args a;
    struct reply_error err;
    if (job_may_block(ctx, "INFER.SCORE", &err) < 0) return reply_error(ctx, &err);
    if (parse(argv, argc, &prompt, &a, &err) < 0) return reply_error(ctx, &err);

    struct llm_params params = {.kind = LLM_SCORE, .n_logprobs = a.top};
    struct job *j = job_create(&prompt.model, &params, &err);
    if (!j) return reply_error(ctx, &err);
    if (prompt_append(ctx, j->request, &prompt, &a.tokens, &err) < 0) {
        job_free(j);
        return reply_error(ctx, &err);
    }
    j->command = "INFER.SCORE";
    j->reply = reply;
    job_start(ctx, j, began_us);
    return REDISMODULE_OK;
}
