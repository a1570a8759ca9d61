/* Entries of a Redis stream: see stream.h. Owns nothing.
 *
 * XADD and PEXPIRE are called as commands and not through the stream functions of the module interface: Redis
 * then replicates them with the id and the time that they got, counts them, wakes blocked
 * readers and obeys maxmemory, as for any client. */
#include "stream.h"

#include "platform.h"

#include <stdio.h>
#include <string.h>

static RedisModuleString *text(RedisModuleCtx *ctx, const char *s)
{
    return RedisModule_CreateString(ctx, s, strlen(s));
}

static RedisModuleString *number(RedisModuleCtx *ctx, long long value)
{
    char digits[24];
    return RedisModule_CreateString(ctx, digits, (size_t)snprintf(digits, sizeof digits, "%lld", value));
}

/* For a look at a key that is nobody's read. */
enum {
    LOOK = REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH | REDISMODULE_OPEN_KEY_NONOTIFY | REDISMODULE_OPEN_KEY_NOSTATS |
           REDISMODULE_OPEN_KEY_NOEXPIRE,
};

int stream_check(RedisModuleCtx *ctx, const struct arg_string *arg, long long ttl_ms, struct reply_error *err)
{
    RedisModuleString *name = RedisModule_CreateString(ctx, arg->data, arg->len);
    RedisModuleString *argv[] = {name, text(ctx, "*"), text(ctx, "i"), text(ctx, "0")};
    int result = store_allowed(ctx, "STREAM", "XADD", argv, 4, err);
    if (result == 0 && ttl_ms) {
        RedisModuleString *expire[] = {name, number(ctx, ttl_ms)};
        result = store_allowed(ctx, "STREAM", "PEXPIRE", expire, 2, err);
        RedisModule_FreeString(ctx, expire[1]);
    }
    if (result == 0) {
        RedisModuleKey *key = RedisModule_OpenKey(ctx, name, LOOK);
        int type = key ? RedisModule_KeyType(key) : REDISMODULE_KEYTYPE_EMPTY;
        if (key) RedisModule_CloseKey(key);
        if (type != REDISMODULE_KEYTYPE_EMPTY && type != REDISMODULE_KEYTYPE_STREAM)
            result = reply_fail(err, "WRONGTYPE", "STREAM '%s': the key holds something other than a stream",
                                quote(arg->data, arg->len).text);
    }
    for (size_t i = 0; i < 4; i++) RedisModule_FreeString(ctx, argv[i]);
    return result;
}

/* The key may be another one than that of the last entry: made anew, or made to stay. */
static bool expires(RedisModuleCtx *ctx, RedisModuleString *name)
{
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, LOOK);
    bool result = key && RedisModule_GetExpire(key) != REDISMODULE_NO_EXPIRE;
    if (key) RedisModule_CloseKey(key);
    return result;
}

static int renew_expiry(RedisModuleCtx *ctx, struct stream *s, RedisModuleString *name, bool last,
                        struct reply_error *err)
{
    uint64_t now = platform_now_us();
    if (s->ttl_ms == 0) return 0;
    bool recent = s->renewed_us && now - s->renewed_us < (uint64_t)s->ttl_ms * 1000 / 2;
    if (!last && recent && expires(ctx, name)) return 0;
    s->renewed_us = now;
    RedisModuleString *argv[] = {name, number(ctx, s->ttl_ms)};
    int result = store_call(ctx, STORE_ALWAYS, "STREAM", "PEXPIRE", argv, 2, err);
    RedisModule_FreeString(ctx, argv[1]);
    return result;
}

int stream_add(RedisModuleCtx *ctx, struct stream *s, const struct stream_field *fields, int n_fields, bool last,
               struct reply_error *err)
{
    RedisModuleString *argv[5 + 2 * STREAM_MAX_FIELDS];
    size_t n = 0;
    argv[n++] = RedisModule_CreateString(ctx, s->key, s->key_len);
    if (s->max_len) {
        argv[n++] = text(ctx, "MAXLEN");
        argv[n++] = text(ctx, "=");
        argv[n++] = number(ctx, s->max_len);
    }
    argv[n++] = text(ctx, "*");
    for (int i = 0; i < n_fields; i++) {
        argv[n++] = text(ctx, fields[i].name);
        argv[n++] = RedisModule_CreateString(ctx, fields[i].bytes, fields[i].len);
    }
    int result = store_call(ctx, last ? STORE_ALWAYS : STORE_WITHIN_MEMORY, "STREAM", "XADD", argv, n, err);
    if (result == 0) result = renew_expiry(ctx, s, argv[0], last, err);
    for (size_t i = 0; i < n; i++) RedisModule_FreeString(ctx, argv[i]);
    return result;
}
