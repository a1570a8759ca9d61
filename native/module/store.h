/* Writing to keys on behalf of a user's command, later than that command: as if the user did it now.
 *
 * Whether the user may write the key is checked when the command comes; whether the server may
 * is asked again at each write: it may have become a replica, or memory short. Nothing is
 * written then. Main thread. */
#ifndef REDIS_INFER_STORE_H
#define REDIS_INFER_STORE_H

#include <stdbool.h>

#include "reply.h"

/* Whether the calling user may run a write command on argv[0], the key that `option` names, and this server takes
 * writes now. Asked when a request comes in: our commands count as reads too, and one whose output cannot be
 * written is refused before it is computed. -1: *err has Redis' error (NOPERM, READONLY, OOM, MISCONF, NOREPLICAS). */
int store_allowed(RedisModuleCtx *ctx, const char *option, const char *command, RedisModuleString **argv, size_t argc,
                  struct reply_error *err);
/* The same for store_tokens. */
int store_check(RedisModuleCtx *ctx, const char *key, size_t key_len, struct reply_error *err);

/* Writes are paused (CLIENT PAUSE, a failover under way): one now could be lost, and
 * Redis stops itself rather than replicate it. */
bool store_paused(void);

enum store_when { STORE_WITHIN_MEMORY, STORE_ALWAYS };

/* Runs a write command, replicated as such, on argv[0], the key that `option` names. STORE_WITHIN_MEMORY: not over
 * maxmemory. -1: *err has Redis' error, which says that it was about the option's key. */
int store_call(RedisModuleCtx *ctx, enum store_when when, const char *option, const char *command,
               RedisModuleString **argv, size_t argc, struct reply_error *err);

/* SET key <packed tokens>. Overwrites what is there, of any type, and drops its expiry, like SET. */
int store_tokens(RedisModuleCtx *ctx, const char *key, size_t key_len, const uint32_t *tokens, size_t n,
                 struct reply_error *err);

#endif
