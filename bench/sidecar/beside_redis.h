/* Way B: the prompt is fetched from Redis and sent to a llama-server beside it.
 *
 * Connections are the caller's, and its thread's alone. */
#ifndef SIDECAR_BESIDE_REDIS_H
#define SIDECAR_BESIDE_REDIS_H

#include "http.h"

#include <hiredis/hiredis.h>

struct text { /* the body of a request, reused */
    char *at;
    size_t len, cap;
};

/* `slot`: the one of llama-server's that this client uses. */
int beside_redis_run(redisContext *redis, struct http *http, struct text *text, int slot, const struct request *r,
                     const redisReply *vector, struct measured *m, struct failure *failure);

#endif
