/* STORE key: the output's tokens become the value of a key, as SET would do it.
 *
 * Main thread, in the command and in the reply callback; or any thread that holds Redis' lock. */
#ifndef REDIS_INFER_STORE_H
#define REDIS_INFER_STORE_H

#include "reply.h"

/* Whether this server takes writes now. Asked when a request comes in, so that one that cannot be
 * stored is refused before it is computed. -1: *err has Redis' own error (READONLY, OOM). */
int store_allowed(RedisModuleCtx *ctx, struct reply_error *err);

/* SET key <packed tokens>, replicated as that. Overwrites what is there, of any type, and drops
 * its expiry, like SET. Whether the user may write the key was checked when the command came; whether the
 * server may is asked again: it may have become a replica, or memory short. Nothing is written then. */
int store_tokens(RedisModuleCtx *ctx, const char *key, size_t key_len, const uint32_t *tokens, size_t n,
                 struct reply_error *err);

#endif
