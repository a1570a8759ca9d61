/* Errors and reply pieces shared by the commands.
 *
 * An error is built where it is found and sent by the command function that
 * called: one line, its code first (docs/commands.md lists the codes). Main thread. */
#ifndef REDIS_INFER_REPLY_H
#define REDIS_INFER_REPLY_H

#include <stdint.h>

#include "error.h"
#include "redis_api.h"

struct reply_error {
    char line[512]; /* "CODE message" */
};

/* Formats the line and returns -1, so that a failing function can end with it. */
int reply_fail(struct reply_error *err, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for an error of core, whose code and message pass unchanged. */
int reply_fail_core(struct reply_error *err, const struct infer_error *core);
/* The same for an error reply of a command that the module called, whose code stays in front; `what` (NULL: nothing)
 * says what was called. */
int reply_fail_call(struct reply_error *err, const char *what, RedisModuleCallReply *reply);

/* Sends an error; returns what a command function returns. */
int reply_error(RedisModuleCtx *ctx, const struct reply_error *err);
int reply_error_core(RedisModuleCtx *ctx, const struct infer_error *core);

/* The name of a key, model, option or file as it may stand in an error line or a
 * log: whatever is not printable ASCII is escaped, and what is too long is cut. */
struct quoted {
    char text[96];
};
struct quoted quote(const char *bytes, size_t len);
struct quoted quote_string(const RedisModuleString *s);

/* One field of a map reply. No bytes may be NULL. */
void reply_field_integer(RedisModuleCtx *ctx, const char *field, long long value);
void reply_field_text(RedisModuleCtx *ctx, const char *field, const char *value);
void reply_field_bytes(RedisModuleCtx *ctx, const char *field, const void *bytes, size_t len);

#endif
