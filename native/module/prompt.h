/* From keys to core: the prompt or the inputs of a request, without a copy.
 *
 * Main thread, inside the command: the pointers that Redis lends are valid only there. */
#ifndef REDIS_INFER_PROMPT_H
#define REDIS_INFER_PROMPT_H

#include "args.h"
#include "llm.h"

/* Tells Redis the keys of a command that has no others: COMMAND GETKEYS, ACL and cluster checks. */
int prompt_report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);

/* Appends the tokens of each key and then of the blob (data NULL: none) to r. -1 and
 * *err: NOKEY, WRONGTYPE, or what core finds wrong with the tokens. */
int prompt_append(RedisModuleCtx *ctx, struct llm_request *r, const struct arg_prompt *keys,
                  const struct arg_string *blob, struct reply_error *err);

/* Adds the tokens of each key, and those of the blob (data NULL: none), as one input each. Errors as above. */
int prompt_add_inputs(RedisModuleCtx *ctx, struct embed_request *r, const struct arg_prompt *keys,
                      const struct arg_string *blob, struct reply_error *err);

#endif
