/* A module for tests: PLAIN.CALL command [arg ...] runs a command for no user, as modules do that have no reason
 * to care. The reply is the command's error, or OK. */
#include "redis_api.h"

#include <errno.h>
#include <string.h>

static int plain_call(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc < 2) return RedisModule_WrongArity(ctx);
    const char *command = RedisModule_StringPtrLen(argv[1], NULL);
    RedisModuleCallReply *reply = RedisModule_Call(ctx, command, "Ev", argv + 2, (size_t)(argc - 2));
    if (!reply) return RedisModule_ReplyWithError(ctx, strerror(errno));
    char line[512] = "";
    size_t len;
    if (RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR) {
        const char *text = RedisModule_CallReplyStringPtr(reply, &len);
        memcpy(line, text, len < sizeof line ? len : sizeof line - 1);
        line[strcspn(line, "\r\n")] = 0;
    }
    RedisModule_FreeCallReply(reply);
    return *line ? RedisModule_ReplyWithError(ctx, line) : RedisModule_ReplyWithSimpleString(ctx, "OK");
}

int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv, (void)argc;
    const char *missing;
    if (redis_api_init(ctx, "plain", 1, &missing) != REDISMODULE_OK) return REDISMODULE_ERR;
    return RedisModule_CreateCommand(ctx, "plain.call", plain_call, "", 0, 0, 0);
}
