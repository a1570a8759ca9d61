/* INFER.EMBED model numkeys key [key ...] [TOKENS blob [LENGTHS lengths]] [TIMEOUT ms]
 *
 * One vector for each key's tokens, and for the blob's; or, with LENGTHS, for each part of the blob. Main thread. */
#include "args.h"
#include "commands.h"
#include "job.h"
#include "platform.h"
#include "prompt.h"

#include <limits.h>
#include <stddef.h>

struct embed_args {
    struct arg_string tokens, lengths;
    int timeout_ms;
};

static const struct option options[] = {
    {"TOKENS", OPTION_STRING, offsetof(struct embed_args, tokens), 0, 0},
    {"LENGTHS", OPTION_STRING, offsetof(struct embed_args, lengths), 0, 0},
    {"TIMEOUT", OPTION_INT, offsetof(struct embed_args, timeout_ms), 1, INT_MAX},
    {0},
};

static int reply(RedisModuleCtx *ctx, struct job *j)
{
    const struct embed_request *r = j->embed;
    size_t n_embd = (size_t)r->n_embd;
    RedisModule_ReplyWithMap(ctx, 6);
    RedisModule_ReplyWithCString(ctx, "vectors");
    RedisModule_ReplyWithArray(ctx, r->n_inputs);
    for (int i = 0; i < r->n_inputs; i++)
        RedisModule_ReplyWithStringBuffer(ctx, (const char *)(r->vectors + (size_t)i * n_embd), n_embd * sizeof(float));
    reply_field_integer(ctx, "dimensions", r->n_embd);
    reply_field_integer(ctx, "prompt_tokens", r->n_tokens);
    job_reply_timing(ctx, j, false);
    return REDISMODULE_OK;
}

int cmd_embed(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    uint64_t began_us = platform_now_us();
    if (RedisModule_IsKeysPositionRequest(ctx)) return prompt_report_keys(ctx, argv, argc);
    if (argc < 4) return RedisModule_WrongArity(ctx);

    struct arg_prompt prompt;
    struct embed_args a = {.timeout_ms = 0};
    struct reply_error err;
    struct option_set set = {options, &a, 0};
    if (job_may_block(ctx, "INFER.EMBED", &err) < 0 || args_prompt(argv, argc, &prompt, &err) < 0 ||
        args_options(&set, 1, argv, argc, prompt.next, &err) < 0)
        return reply_error(ctx, &err);

    struct job *j = job_create_embed(&prompt.model, &err);
    if (!j) return reply_error(ctx, &err);
    if (prompt_add_inputs(ctx, j->embed, &prompt, &a.tokens, &a.lengths, &err) < 0) {
        job_free(j);
        return reply_error(ctx, &err);
    }
    j->command = "INFER.EMBED";
    j->reply = reply;
    j->embed->base.timeout_us = (uint64_t)a.timeout_ms * 1000;
    job_start(ctx, j, began_us);
    return REDISMODULE_OK;
}
