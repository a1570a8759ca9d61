/* What every command that generates has in common: the options after its prompt, the
 * request that they ask for, and the reply.
 *
 * A command parses with generation_options beside its own table, makes the job with
 * generation_create, appends the prompt, and starts the job. Main thread. */
#ifndef REDIS_INFER_GENERATION_H
#define REDIS_INFER_GENERATION_H

#include "args.h"
#include "job.h"

struct generation_args {
    struct arg_string tokens, store, stream;
    long long stream_max_len, stream_ttl_ms;
    int max_tokens, top_k, n_logprobs, timeout_ms;
    float temperature, top_p, min_p, repeat_penalty;
    uint64_t seed;
    struct arg_strings stops;
    bool ignore_eos, no_cache, async;
};

/* For args_options, into a struct generation_args that holds the defaults. */
extern const struct option generation_options[];

void generation_defaults(struct generation_args *a);

/* The keys among the options, for COMMAND GETKEYS: of what could be parsed, also where the rest is faulty. */
void generation_report_keys(RedisModuleCtx *ctx, const struct generation_args *a);

/* A job of the command for `model` with an empty prompt, to be freed or started. NULL and *err: also where a client
 * can't be blocked and ASYNC is not given, and where STREAM or STORE could not be written. */
struct job *generation_create(RedisModuleCtx *ctx, const char *command, const struct arg_string *model,
                              const struct generation_args *a, struct reply_error *err);

/* The reply map of a generation that succeeded, with n_more fields that `more` appends (NULL: none). */
int generation_reply(RedisModuleCtx *ctx, struct job *j, int n_more, void (*more)(RedisModuleCtx *, struct job *));

#endif
