/* Writing to keys: see store.h. Owns nothing. */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Redis' answer, which it may have none of. Frees it. */
static int take_reply(RedisModuleCallReply *reply, const char *option, RedisModuleString *key, struct reply_error *err)
{
    int result = 0;
    if (reply && RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR) {
        char what[128];
        snprintf(what, sizeof what, "%s '%s'", option, quote_string(key).text);
        result = reply_fail_call(err, what, reply);
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return result;
}

/* Memory is short, and Redis may not make room. */
static bool is_full(int context_flags)
{
    return (context_flags & REDISMODULE_CTX_FLAGS_OOM) && !(context_flags & REDISMODULE_CTX_FLAGS_EVICT);
}

/* Before Redis 7.2, which lets nobody ask. Its users have our commands by name only. */
static int allowed_by_flags(RedisModuleCtx *ctx, const char *option, struct reply_error *err)
{
    int flags = RedisModule_GetContextFlags(ctx);
    if ((flags & REDISMODULE_CTX_FLAGS_SLAVE) && (flags & REDISMODULE_CTX_FLAGS_READONLY))
        return reply_fail(err, "READONLY", "%s is a write, and this server is a read only replica", option);
    if (is_full(flags)) return reply_fail(err, "OOM", "%s is a write, and used memory > 'maxmemory'", option);
    return 0;
}

int store_allowed(RedisModuleCtx *ctx, const char *option, const char *command, RedisModuleString **argv, size_t argc,
                  struct reply_error *err)
{
    if (!RedisModule_SetCommandACLCategories) return allowed_by_flags(ctx, option, err);
    /* D: every check that comes before the command, and not the command; C as the calling user; the rest as in
     * store_call. */
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, command, "DCEMSv", argv, argc);
    if (reply && errno == ENOTSUP) { /* there is no user: another module calls us, and may do everything */
        RedisModule_FreeCallReply(reply);
        reply = RedisModule_Call(ctx, command, "DEMSv", argv, argc);
    }
    return take_reply(reply, option, argv[0], err);
}

bool store_paused(void)
{
    return RedisModule_AvoidReplicaTraffic();
}

int store_call(RedisModuleCtx *ctx, enum store_when when, const char *option, const char *command,
               RedisModuleString **argv, size_t argc, struct reply_error *err)
{
    /* ! replicate, E errors as replies, S obey what scripts obey: no writes on a read only replica, with a failing disk or with too
     * few replicas. M obey maxmemory: Redis then asks what it saw before the last command of a client, which may be long ago, and
     * whether evicting was of no use then. So it is asked only where that counts. */
    int flags = when == STORE_WITHIN_MEMORY ? RedisModule_GetContextFlags(ctx) : 0;
    if (is_full(flags))
        return reply_fail(err, "OOM", "%s '%s': command not allowed when used memory > 'maxmemory'.", option, quote_string(argv[0]).text);
    RedisModuleCallReply *reply = RedisModule_Call(ctx, command, flags & REDISMODULE_CTX_FLAGS_OOM ? "!EMSv" : "!ESv", argv, argc);
    if (!reply) return reply_fail(err, "ERR", "%s '%s': %s", option, quote_string(argv[0]).text, strerror(errno));
    return take_reply(reply, option, argv[0], err);
}

int store_check(RedisModuleCtx *ctx, const char *key, size_t key_len, struct reply_error *err)
{
    RedisModuleString *argv[] = {RedisModule_CreateString(ctx, key, key_len), RedisModule_CreateString(ctx, "", 0)};
    int result = store_allowed(ctx, "STORE", "SET", argv, 2, err);
    for (size_t i = 0; i < 2; i++) RedisModule_FreeString(ctx, argv[i]);
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
