/* Errors and reply pieces: see reply.h. Owns nothing. Main thread. */
#include "reply.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int reply_fail(struct reply_error *err, const char *code, const char *format, ...)
{
    int n = snprintf(err->line, sizeof err->line, "%s ", code);
    va_list ap;
    va_start(ap, format);
    vsnprintf(err->line + n, sizeof err->line - (size_t)n, format, ap);
    va_end(ap);
    return -1;
}

int reply_fail_core(struct reply_error *err, const struct infer_error *core)
{
    return reply_fail(err, infer_code_name(core->code), "%s", core->message);
}

int reply_fail_call(struct reply_error *err, const char *what, RedisModuleCallReply *reply)
{
    size_t len;
    const char *line = RedisModule_CallReplyStringPtr(reply, &len);
    while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
    if (len > 0 && *line == '-') line++, len--;
    size_t code = 0;
    while (code < len && line[code] != ' ') code++;
    if (what && code < len)
        snprintf(err->line, sizeof err->line, "%.*s %s:%.*s", (int)code, line, what, (int)(len - code), line + code);
    else
        snprintf(err->line, sizeof err->line, "%.*s", (int)len, line);
    return -1;
}

int reply_error(RedisModuleCtx *ctx, const struct reply_error *err)
{
    /* Redis sends the line as it is, and core's messages may quote a model file: a line break
     * in it would end the reply and begin another. */
    struct reply_error clean = *err;
    for (char *c = clean.line; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return RedisModule_ReplyWithError(ctx, clean.line);
}

int reply_error_core(RedisModuleCtx *ctx, const struct infer_error *core)
{
    struct reply_error err;
    reply_fail_core(&err, core);
    return reply_error(ctx, &err);
}

struct quoted quote(const char *bytes, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    struct quoted q;
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        /* Room for the longest escape, the ellipsis and the end. */
        if (n + 4 + 3 + 1 > sizeof q.text) {
            memcpy(q.text + n, "...", 3);
            n += 3;
            break;
        }
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c < 0x7f && c != '\\') {
            q.text[n++] = (char)c;
        } else if (c == '\\') {
            q.text[n++] = '\\';
            q.text[n++] = '\\';
        } else {
            q.text[n++] = '\\';
            q.text[n++] = 'x';
            q.text[n++] = hex[c >> 4];
            q.text[n++] = hex[c & 15];
        }
    }
    q.text[n] = 0;
    return q;
}

struct quoted quote_string(const RedisModuleString *s)
{
    size_t len;
    const char *bytes = RedisModule_StringPtrLen(s, &len);
    return quote(bytes, len);
}

void reply_field_integer(RedisModuleCtx *ctx, const char *field, long long value)
{
    RedisModule_ReplyWithCString(ctx, field);
    RedisModule_ReplyWithLongLong(ctx, value);
}

void reply_field_text(RedisModuleCtx *ctx, const char *field, const char *value)
{
    RedisModule_ReplyWithCString(ctx, field);
    RedisModule_ReplyWithCString(ctx, value);
}

void reply_field_bytes(RedisModuleCtx *ctx, const char *field, const void *bytes, size_t len)
{
    RedisModule_ReplyWithCString(ctx, field);
    RedisModule_ReplyWithStringBuffer(ctx, bytes ? bytes : "", len);
}
