/* Way A: INFER.GENERATE or INFER.RAG, with the reply at the end or token by token through a stream.
 *
 * The connection is the caller's, and its thread's alone. */
#ifndef SIDECAR_IN_REDIS_H
#define SIDECAR_IN_REDIS_H

#include "request.h"

#include <hiredis/hiredis.h>

/* `vector`: of a retrieval, FP32; `stream`: a key for the output, of this client's own. */
int in_redis_run(redisContext *redis, const char *model, const struct request *r, const redisReply *vector,
                 const char *stream, struct measured *m, struct failure *failure);

#endif
