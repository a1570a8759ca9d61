/* Options, request and reply of a generation: see generation.h. Owns nothing. Main thread. */
#include "generation.h"

#include "store.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(struct generation_args, field)
/* Bounds say what makes sense, not what is wise: 0 < TOPP, and penalties and temperatures
 * that float32 can divide by. */
const struct option generation_options[] = {
    {"TOKENS", OPTION_STRING, AT(tokens), 0, 0},
    {"MAXTOKENS", OPTION_INT, AT(max_tokens), 1, INT_MAX},
    {"TEMPERATURE", OPTION_FLOAT, AT(temperature), 0, 100},
    {"TOPK", OPTION_INT, AT(top_k), 0, INT_MAX},
    {"TOPP", OPTION_FLOAT, AT(top_p), 0.001, 1},
    {"MINP", OPTION_FLOAT, AT(min_p), 0, 1},
    {"REPEAT", OPTION_FLOAT, AT(repeat_penalty), 0.01, 100},
    {"SEED", OPTION_UINT64, AT(seed), 0, 0},
    {"STOP", OPTION_TEXTS, AT(stops), 1, LLM_MAX_STOPS},
    {"IGNOREEOS", OPTION_FLAG, AT(ignore_eos), 0, 0},
    {"LOGPROBS", OPTION_INT, AT(n_logprobs), 0, LLM_MAX_LOGPROBS},
    {"NOCACHE", OPTION_FLAG, AT(no_cache), 0, 0},
    {"TIMEOUT", OPTION_INT, AT(timeout_ms), 1, INT_MAX},
    {"STORE", OPTION_STRING, AT(store), 0, 0},
    {"STREAM", OPTION_STRING, AT(stream), 0, 0},
    {"MAXLEN", OPTION_BYTES, AT(stream_max_len), 1, 1e15},
    {"TTL", OPTION_BYTES, AT(stream_ttl_ms), 1, 1e15},
    {"ASYNC", OPTION_FLAG, AT(async), 0, 0},
    {0},
};
#undef AT

void generation_defaults(struct generation_args *a)
{
    *a = (struct generation_args){
        .max_tokens = 128,
        .n_logprobs = -1,
        .top_p = 1,
        .repeat_penalty = 1,
    };
    /* Without SEED, two requests that sample shall differ. */
    RedisModule_GetRandomBytes((unsigned char *)&a->seed, sizeof a->seed);
}

void generation_report_keys(RedisModuleCtx *ctx, const struct generation_args *a)
{
    if (a->store.data)
        RedisModule_KeyAtPosWithFlags(ctx, a->store.pos, REDISMODULE_CMD_KEY_OW | REDISMODULE_CMD_KEY_UPDATE);
    if (a->stream.data)
        RedisModule_KeyAtPosWithFlags(ctx, a->stream.pos, REDISMODULE_CMD_KEY_RW | REDISMODULE_CMD_KEY_UPDATE);
}

/* One block, as llm_params asks for: the array, then the texts. */
static int copy_stops(const struct arg_strings *texts, struct llm_params *params)
{
    if (texts->n == 0) return 0;
    size_t bytes = (size_t)texts->n * sizeof *params->stops;
    for (int i = 0; i < texts->n; i++) bytes += args_string(texts->items, i).len;
    params->stops = malloc(bytes);
    if (!params->stops) return -1;
    char *to = (char *)(params->stops + texts->n);
    for (int i = 0; i < texts->n; i++) {
        struct arg_string text = args_string(texts->items, i);
        memcpy(to, text.data, text.len);
        params->stops[i] = (struct text_stop){.text = to, .len = text.len};
        to += text.len;
    }
    params->n_stops = texts->n;
    return 0;
}

/* Options that only make sense together. */
static int check(RedisModuleCtx *ctx, const char *command, const struct generation_args *a, struct reply_error *err)
{
    const struct arg_string *stream = &a->stream, *store = &a->store;
    if (!a->async && job_may_block(ctx, command, err) < 0) return -1;
    if (!stream->data && a->stream_max_len) return reply_fail(err, "ERR", "MAXLEN trims a stream: it needs STREAM");
    if (!stream->data && a->stream_ttl_ms) return reply_fail(err, "ERR", "TTL lets a stream expire: it needs STREAM");
    if (a->async && !stream->data && !store->data)
        return reply_fail(err, "ERR", "ASYNC answers before there is output: it needs STREAM, STORE or both");
    if (a->async && !stream->data && a->n_logprobs >= 0)
        return reply_fail(err, "ERR", "LOGPROBS with ASYNC needs STREAM: STORE keeps tokens only");
    if (stream->data && store->data && stream->len == store->len && memcmp(stream->data, store->data, store->len) == 0)
        return reply_fail(err, "ERR", "STREAM and STORE are the same key '%s'", quote(store->data, store->len).text);
    if (store->data && store_check(ctx, store->data, store->len, err) < 0) return -1;
    return stream->data ? stream_check(ctx, stream, a->stream_ttl_ms, err) : 0;
}

static char *copy_key(const struct arg_string *key)
{
    char *copy = RedisModule_Alloc(key->len + 1); /* an empty name is a name too */
    memcpy(copy, key->data, key->len);
    copy[key->len] = 0;
    return copy;
}

static int reply(RedisModuleCtx *ctx, struct job *j)
{
    return generation_reply(ctx, j, 0, NULL);
}

struct job *generation_create(RedisModuleCtx *ctx, const char *command, const struct arg_string *model,
                              const struct generation_args *a, struct reply_error *err)
{
    if (check(ctx, command, a, err) < 0) return NULL;
    struct llm_params params = {
        .kind = LLM_GENERATE,
        .max_tokens = a->max_tokens,
        .sampling = {.temperature = a->temperature,
                     .top_k = a->top_k,
                     .top_p = a->top_p,
                     .min_p = a->min_p,
                     .repeat_penalty = a->repeat_penalty,
                     .seed = a->seed},
        .ignore_eos = a->ignore_eos,
        .n_logprobs = a->n_logprobs,
        .no_cache = a->no_cache,
    };
    if (copy_stops(&a->stops, &params) < 0) {
        reply_fail(err, "ERR", "out of memory");
        return NULL;
    }
    struct job *j = job_create(model, &params, err);
    if (!j) return NULL;
    j->command = command;
    j->reply = reply;
    j->request->base.timeout_us = (uint64_t)a->timeout_ms * 1000;
    j->async = a->async;
    if (a->store.data) {
        j->output.store = copy_key(&a->store);
        j->output.store_len = a->store.len;
    }
    if (a->stream.data)
        j->output.stream = (struct stream){.key = copy_key(&a->stream),
                                           .key_len = a->stream.len,
                                           .max_len = a->stream_max_len,
                                           .ttl_ms = a->stream_ttl_ms};
    if (output_wanted(&j->output)) output_prepare(ctx, j);
    return j;
}

int generation_reply(RedisModuleCtx *ctx, struct job *j, int n_more, void (*more)(RedisModuleCtx *, struct job *))
{
    const struct llm_request *r = j->request;
    const uint32_t *output = r->tokens + r->n_prompt;
    size_t n = (size_t)r->n_output, tops = r->params.n_logprobs > 0 ? (size_t)r->params.n_logprobs : 0;
    bool logprobs = r->params.n_logprobs >= 0;
    RedisModule_ReplyWithMap(ctx, 10 + logprobs + (tops ? 2 : 0) + n_more);
    reply_field_bytes(ctx, "text", r->text.bytes ? r->text.bytes : "", r->text.ready);
    reply_field_bytes(ctx, "tokens", output, n * sizeof *output);
    reply_field_text(ctx, "finish_reason", llm_finish_name(r->finish));
    reply_field_integer(ctx, "prompt_tokens", r->n_prompt);
    reply_field_integer(ctx, "cached_tokens", r->n_cached);
    reply_field_integer(ctx, "output_tokens", r->n_output);
    job_reply_timing(ctx, j, true);
    if (logprobs) reply_field_bytes(ctx, "logprobs", r->logprob, n * sizeof *r->logprob);
    if (tops) {
        reply_field_bytes(ctx, "top_ids", r->top_ids, n * tops * sizeof *r->top_ids);
        reply_field_bytes(ctx, "top_logprobs", r->top_logprobs, n * tops * sizeof *r->top_logprobs);
    }
    if (more) more(ctx, j);
    return REDISMODULE_OK;
}
