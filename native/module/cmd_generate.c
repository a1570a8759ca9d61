/* INFER.GENERATE model numkeys key [key ...] [TOKENS blob]
 *     [MAXTOKENS n] [TEMPERATURE t] [TOPK k] [TOPP p] [MINP p] [REPEAT penalty] [SEED s]
 *     [STOP n text ...] [IGNOREEOS] [LOGPROBS n] [NOCACHE] [TIMEOUT ms]
 *     [STREAM key [MAXLEN n] [TTL ms]] [STORE key] [ASYNC]
 *
 * Main thread throughout: parsing and admission in the command, the reply in the reply callback. */
#include "args.h"
#include "commands.h"
#include "generation.h"
#include "platform.h"
#include "prompt.h"

/* What is not given stays as it is in *a. */
static int parse(RedisModuleString **argv, int argc, struct arg_prompt *prompt, struct generation_args *a,
                 struct reply_error *err)
{
    if (args_prompt(argv, argc, prompt, err) < 0) return -1;
    struct option_set set = {generation_options, a, 0};
    return args_options(&set, 1, argv, argc, prompt->next, err);
}

/* COMMAND GETKEYS, ACL and cluster checks: the same parser that the command uses. */
static int report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc < 4) return REDISMODULE_OK;
    struct arg_prompt prompt = {.n_keys = 0};
    struct generation_args a = {0}; /* without defaults: they cost a random number */
    struct reply_error err;
    (void)parse(argv, argc, &prompt, &a, &err);
    for (int i = 0; i < prompt.n_keys; i++)
        RedisModule_KeyAtPosWithFlags(ctx, prompt.first_key + i, REDISMODULE_CMD_KEY_RO | REDISMODULE_CMD_KEY_ACCESS);
    generation_report_keys(ctx, &a);
    return REDISMODULE_OK;
}

int cmd_generate(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    uint64_t began_us = platform_now_us();
    if (RedisModule_IsKeysPositionRequest(ctx)) return report_keys(ctx, argv, argc);
    if (argc < 4) return RedisModule_WrongArity(ctx);

    static const char command[] = "INFER.GENERATE";
    struct arg_prompt prompt;
    struct generation_args a;
    struct reply_error err;
    generation_defaults(&a);
    if (parse(argv, argc, &prompt, &a, &err) < 0) return reply_error(ctx, &err);
    struct job *j = generation_create(ctx, command, &prompt.model, &a, &err);
    if (!j) return reply_error(ctx, &err);
    if (prompt_append(ctx, j->request, &prompt, &a.tokens, &err) < 0) {
        job_free(j);
        return reply_error(ctx, &err);
    }
    job_start(ctx, j, began_us);
    return REDISMODULE_OK;
}
