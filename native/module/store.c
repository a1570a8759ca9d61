/* Writing results to keys: see store.h. Owns nothing. */
#include "store.h"

#include <errno.h>
#include <string.h>

int store_allowed(RedisModuleCtx *ctx, struct reply_error *err)
{
    int flags = RedisModule_GetContextFlags(ctx);
    if ((flags & REDISMODULE_CTX_FLAGS_SLAVE) && (flags & REDISMODULE_CTX_FLAGS_READONLY))
        return reply_fail(err, "READONLY", "STORE is a write, and this server is a read only replica");
    if (flags & REDISMODULE_CTX_FLAGS_OOM)
        return reply_fail(err, "OOM", "STORE is a write, and used memory > 'maxmemory'");
    return 0;
}

int store_tokens(RedisModuleCtx *ctx, const char *key, size_t key_len, const uint32_t *tokens, size_t n,
                 struct reply_error *err)
{
    /* A write while writes are paused (CLIENT PAUSE, a failover under way) could be lost, and Redis
     * stops itself rather than replicate one. */
    if (RedisModule_AvoidReplicaTraffic())
        return reply_fail(err, "TRYAGAIN", "writes are paused, so the output was not stored in '%s'",
                          quote(key, key_len).text);

    /* ! replicate, E errors as replies, M obey maxmemory, S obey what scripts obey: no writes on a
     * read only replica, with a failing disk or with too few replicas. */
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, "SET", "!EMSbb", key, key_len, (const char *)tokens, n * sizeof *tokens);
    int result = 0;
    if (!reply) {
        result = reply_fail(err, "ERR", "STORE to '%s': %s", quote(key, key_len).text, strerror(errno));
    } else {
        if (RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR) {
            size_t len;
            const char *line = RedisModule_CallReplyStringPtr(reply, &len);
            while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
            if (len > 0 && *line == '-') line++, len--;
            if (len >= sizeof err->line) len = sizeof err->line - 1;
            memcpy(err->line, line, len);
            err->line[len] = 0;
            result = -1;
        }
        RedisModule_FreeCallReply(reply);
    }
    return result;
}
