/* Writing to keys: see store.h. Owns nothing. */
#include "store.h"

#include <errno.h>
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

/* Redis' error line: "-CODE what" from a command, "-CODE what\r\n" elsewhere. */
static int fail_with(struct reply_error *err, const char *line, size_t len, const char *option, struct quoted key)
{
    while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
    if (len > 0 && *line == '-') line++, len--;
    const char *space = memchr(line, ' ', len);
    char code[32];
    size_t code_len = space ? (size_t)(space - line) : 0;
    if (code_len == 0 || code_len >= sizeof code) return reply_fail(err, "ERR", "%s '%s': %.*s", option, key.text, (int)len, line);
    memcpy(code, line, code_len);
    code[code_len] = 0;
    return reply_fail(err, code, "%s '%s': %.*s", option, key.text, (int)(len - code_len - 1), space + 1);
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
        size_t len;
        const char *line = RedisModule_CallReplyStringPtr(reply, &len);
        result = fail_with(err, line, len, option, key);
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
