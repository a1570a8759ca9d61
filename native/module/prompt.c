/* Reading prompts out of the keyspace: see prompt.h.
 *
 * StringDMA gives the address of the bytes that the key itself holds, and core
 * reads them there, once. Two rules of Redis matter: a short string may get another
 * encoding when StringDMA is called, so the pointer is taken after that and
 * for one key at a time; and it is gone at the next write to the key, so nothing keeps it. */
#include "prompt.h"

#include "config.h"

#include <stdio.h>

static const char *key_type_name(int type)
{
    switch (type) {
    case REDISMODULE_KEYTYPE_LIST: return "a list";
    case REDISMODULE_KEYTYPE_HASH: return "a hash";
    case REDISMODULE_KEYTYPE_SET: return "a set";
    case REDISMODULE_KEYTYPE_ZSET: return "a sorted set";
    case REDISMODULE_KEYTYPE_STREAM: return "a stream";
    }
    return "a module's type";
}

/* infer.trace-admission: shows that core reads where Redis keeps the bytes. */
static void trace(RedisModuleCtx *ctx, const char *what, const void *given, size_t bytes, const struct llm_request *r)
{
    if (config.trace_admission)
        RedisModule_Log(ctx, "notice", "admission: %s dma=%p bytes=%zu core=%p", what, given, bytes, r->source);
}

static int append_key(RedisModuleCtx *ctx, struct llm_request *r, RedisModuleString *name, struct reply_error *err)
{
    struct quoted q = quote_string(name);
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ);
    if (!key) return reply_fail(err, "NOKEY", "key '%s' does not exist", q.text);

    int result;
    int type = RedisModule_KeyType(key);
    if (type == REDISMODULE_KEYTYPE_STRING) {
        char what[sizeof q.text + sizeof "key ''"];
        snprintf(what, sizeof what, "key '%s'", q.text);
        struct infer_error core;
        size_t bytes;
        const char *data = RedisModule_StringDMA(key, &bytes, REDISMODULE_READ);
        result = llm_request_append(r, data, bytes, what, &core);
        if (result < 0) reply_fail_core(err, &core);
        else trace(ctx, what, data, bytes, r);
    } else {
        result = reply_fail(err, "WRONGTYPE", "key '%s' holds %s, not a string of packed tokens", q.text,
                            key_type_name(type));
    }
    RedisModule_CloseKey(key);
    return result;
}

int prompt_append(RedisModuleCtx *ctx, struct llm_request *r, const struct arg_prompt *keys,
                  const struct arg_string *blob, struct reply_error *err)
{
    for (int i = 0; i < keys->n_keys; i++)
        if (append_key(ctx, r, keys->keys[i], err) < 0) return -1;
    if (blob->data) {
        struct infer_error core;
        if (llm_request_append(r, blob->data, blob->len, "TOKENS", &core) < 0) return reply_fail_core(err, &core);
        trace(ctx, "TOKENS", blob->data, blob->len, r);
    }
    if (r->n_prompt == 0)
        return reply_fail(err, "BADTOKENS", "the prompt is empty: give keys that hold tokens, or TOKENS");
    return 0;
}
