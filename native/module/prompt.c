/* Reading prompts out of the keyspace: see prompt.h.
 *
 * StringDMA gives the address of the bytes that the key itself holds, and core
 * reads them there, once. Two rules of Redis matter: a short string may get another
 * encoding when StringDMA is called, so the pointer is the one that it returns, and asking again
 * changes nothing more; and it is gone at the next write to the key, so nothing keeps it. */
#include "prompt.h"

#include "config.h"

#include <stdio.h>
#include <string.h>

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
static void trace(RedisModuleCtx *ctx, const char *what, const void *given, size_t bytes, const void *source)
{
    if (config.trace_admission)
        RedisModule_Log(ctx, "notice", "admission: %s dma=%p bytes=%zu core=%p", what, given, bytes, source);
}

/* Where tokens go: the prompt of `request`, or if there is none another input of `embed`. */
struct target {
    struct llm_request *request;
    struct embed_request *embed;
};

static int append(RedisModuleCtx *ctx, const struct target *to, const void *data, size_t bytes, const char *what,
                  struct reply_error *err)
{
    struct infer_error core;
    int result = to->request ? llm_request_append(to->request, data, bytes, what, &core)
                             : embed_request_add(to->embed, data, bytes, what, &core);
    if (result < 0) return reply_fail_core(err, &core);
    trace(ctx, what, data, bytes, to->request ? to->request->source : to->embed->source);
    return 0;
}

void prompt_key_close(struct prompt_key *k)
{
    RedisModule_CloseKey(k->key);
    k->key = NULL;
}

int prompt_key_open(RedisModuleCtx *ctx, RedisModuleString *name, const struct quoted *of, int mode,
                    struct prompt_key *k, struct reply_error *err)
{
    struct quoted q = quote_string(name);
    if (of) snprintf(k->what, sizeof k->what, "key '%s' of element '%s'", q.text, of->text);
    else snprintf(k->what, sizeof k->what, "key '%s'", q.text);
    k->key = RedisModule_OpenKey(ctx, name, mode);
    if (!k->key) return reply_fail(err, "NOKEY", "%s does not exist", k->what);
    int type = RedisModule_KeyType(k->key);
    if (type != REDISMODULE_KEYTYPE_STRING) {
        prompt_key_close(k);
        return reply_fail(err, "WRONGTYPE", "%s holds %s, not a string of packed tokens", k->what,
                          key_type_name(type));
    }
    k->data = RedisModule_StringDMA(k->key, &k->bytes, REDISMODULE_READ);
    return 0;
}

static int append_key(RedisModuleCtx *ctx, const struct target *to, RedisModuleString *name, struct reply_error *err)
{
    struct prompt_key k;
    if (prompt_key_open(ctx, name, NULL, REDISMODULE_READ, &k, err) < 0) return -1;
    int result = append(ctx, to, k.data, k.bytes, k.what, err);
    prompt_key_close(&k);
    return result;
}

int prompt_append_bytes(RedisModuleCtx *ctx, struct llm_request *r, const char *what, const char *data, size_t bytes,
                        struct reply_error *err)
{
    return append(ctx, &(struct target){.request = r}, data, bytes, what, err);
}

int prompt_append_key(RedisModuleCtx *ctx, struct llm_request *r, const struct prompt_key *k, struct reply_error *err)
{
    return prompt_append_bytes(ctx, r, k->what, k->data, k->bytes, err);
}

static int append_keys(RedisModuleCtx *ctx, const struct target *to, const struct arg_prompt *keys,
                       struct reply_error *err)
{
    for (int i = 0; i < keys->n_keys; i++)
        if (append_key(ctx, to, keys->keys[i], err) < 0) return -1;
    return 0;
}

/* Each part of the blob as an input. */
static int append_parts(RedisModuleCtx *ctx, const struct target *to, const struct arg_string *blob,
                        const struct arg_string *lengths, struct reply_error *err)
{
    size_t n = lengths->len / sizeof(uint32_t), at = 0;
    if (!blob->data) return reply_fail(err, "ERR", "LENGTHS says where to cut TOKENS, which is not given");
    if (lengths->len % sizeof(uint32_t) != 0)
        return reply_fail(err, "ERR", "LENGTHS holds %zu bytes, not a whole number of uint32 lengths", lengths->len);
    for (size_t i = 0; i < n; i++) {
        uint32_t length;
        memcpy(&length, lengths->data + i * sizeof length, sizeof length);
        size_t bytes = (size_t)length * sizeof(uint32_t);
        char what[48];
        if (bytes > blob->len - at)
            return reply_fail(err, "ERR", "LENGTHS asks for %u tokens as part %zu of TOKENS, where %zu bytes are left",
                              length, i + 1, blob->len - at);
        snprintf(what, sizeof what, "part %zu of TOKENS", i + 1);
        if (append(ctx, to, blob->data + at, bytes, what, err) < 0) return -1;
        at += bytes;
    }
    if (at < blob->len) return reply_fail(err, "ERR", "LENGTHS leaves %zu bytes of TOKENS over", blob->len - at);
    return 0;
}

static int append_blob(RedisModuleCtx *ctx, const struct target *to, const struct arg_string *blob,
                       struct reply_error *err)
{
    return blob->data ? append(ctx, to, blob->data, blob->len, "TOKENS", err) : 0;
}

int prompt_add_inputs(RedisModuleCtx *ctx, struct embed_request *r, const struct arg_prompt *keys,
                      const struct arg_string *blob, const struct arg_string *lengths, struct reply_error *err)
{
    struct target to = {.embed = r};
    if (append_keys(ctx, &to, keys, err) < 0 ||
        (lengths->data ? append_parts(ctx, &to, blob, lengths, err) : append_blob(ctx, &to, blob, err)) < 0)
        return -1;
    if (r->n_inputs == 0)
        return reply_fail(err, "BADTOKENS", "there is no input: give keys that hold tokens, or TOKENS");
    return 0;
}

int prompt_append(RedisModuleCtx *ctx, struct llm_request *r, const struct arg_prompt *keys,
                  const struct arg_string *blob, struct reply_error *err)
{
    struct target to = {.request = r};
    if (append_keys(ctx, &to, keys, err) < 0 || append_blob(ctx, &to, blob, err) < 0) return -1;
    if (r->n_prompt == 0)
        return reply_fail(err, "BADTOKENS", "the prompt is empty: give keys that hold tokens, or TOKENS");
    return 0;
}

int prompt_report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc < 4) return REDISMODULE_OK;
    struct arg_prompt prompt;
    struct reply_error err;
    if (args_prompt(argv, argc, &prompt, &err) < 0) return REDISMODULE_OK;
    for (int i = 0; i < prompt.n_keys; i++)
        RedisModule_KeyAtPosWithFlags(ctx, prompt.first_key + i, REDISMODULE_CMD_KEY_RO | REDISMODULE_CMD_KEY_ACCESS);
    return REDISMODULE_OK;
}
