/* From keys to core: the prompt of a request, without a copy.
 *
 * Main thread, inside the command: the pointers that Redis lends are valid only there. */
#ifndef REDIS_INFER_PROMPT_H
#define REDIS_INFER_PROMPT_H

#include "args.h"
#include "llm.h"

/* Appends the tokens of each key and then of the blob (data NULL: none) to r. -1 and
 * *err: NOKEY, WRONGTYPE, or what core finds wrong with the tokens. */
int prompt_append(RedisModuleCtx *ctx, struct llm_request *r, const struct arg_prompt *keys,
                  const struct arg_string *blob, struct reply_error *err);

#endif
