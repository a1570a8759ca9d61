/* Writing to keys: see store.h. Owns nothing. */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int store_allowed(RedisModuleCtx *ctx, const char *option, struct reply_error *err)
{
    int flags = RedisModule_GetContextFlags(ctx);
    if ((flags & REDISMODULE_CTX_FLAGS_SLAVE) && (flags & REDISMODULE_CTX_FLAGS_READONLY))
        return reply_fail(err, "READONLY", "%s is a write, and this server is a read only replica", option);
    if (flags & REDISMODULE_CTX_FLAGS_OOM)
        return reply_fail(err, "OOM", "%s is a write, and used memory > 'maxmemory'", option);
    return 0;
}

bool store_paused(void)
{
    return RedisModule_AvoidReplicaTraffic();
}

int store_call(RedisModuleCtx *ctx, enum store_when when, const char *option, const char *command,
               RedisModuleString **argv, size_t argc, struct reply_error *err)
{
    /* ! replicate, E errors as replies, M obey maxmemory, S obey what scripts obey: no writes on a
     * read only replica, with a failing disk or with too few replicas. */
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, command, when == STORE_ALWAYS ? "!ESv" : "!EMSv", argv, argc);
    struct quoted key = quote_string(argv[0]);
    if (!reply) return reply_fail(err, "ERR", "%s '%s': %s", option, key.text, strerror(errno));
    int result = 0;
    if (RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR) {
        char what[128];
        snprintf(what, sizeof what, "%s '%s'", option, key.text);
        result = reply_fail_call(err, what, reply);
    }
    RedisModule_FreeCallReply(reply);
    return result;
}

int store_tokens(RedisModuleCtx *ctx, const char *key, size_t key_len, const uint32_t *tokens, size_t n,
                 struct reply_error *err)
{
    RedisModuleString *argv[] = {
        RedisModule_CreateString(ctx, key, key_len),
        RedisModule_CreateString(ctx, (const char *)tokens, n * sizeof *tokens),
    };
    int result = store_call(ctx, STORE_WITHIN_MEMORY, "STORE", "SET", argv, 2, err);
    for (size_t i = 0; i < 2; i++) RedisModule_FreeString(ctx, argv[i]);
    return result;
}
