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

/* Adds the tokens of each key, and those of the blob (data NULL: none), as one input each; where lengths are given
 * (packed uint32, data NULL: not), the blob is that many inputs of so many tokens. Errors as above. */
int prompt_add_inputs(RedisModuleCtx *ctx, struct embed_request *r, const struct arg_prompt *keys,
                      const struct arg_string *blob, const struct arg_string *lengths, struct reply_error *err);

/* ---- one by one ---- */

/* A token key that is open: its bytes where Redis keeps them, until the key is closed or written. Several may be
 * open at once, also the same one twice, since opening for reading changes no other key. */
struct prompt_key {
    RedisModuleKey *key;
    const char *data;
    size_t bytes;
    char what[224]; /* "key 'x'", for messages */
};

/* `of`: the element that led to the key, named in messages; NULL: none. mode: REDISMODULE_READ and
 * further flags of OpenKey. -1 and *err: NOKEY, WRONGTYPE; then there is nothing to close. */
int prompt_key_open(RedisModuleCtx *ctx, RedisModuleString *name, const struct quoted *of, int mode,
                    struct prompt_key *k, struct reply_error *err);
void prompt_key_close(struct prompt_key *k);

/* Appends the key's tokens. -1 and *err: what core finds wrong with them; nothing is appended then. */
int prompt_append_key(RedisModuleCtx *ctx, struct llm_request *r, const struct prompt_key *k, struct reply_error *err);

/* The same for tokens that lie elsewhere; `what` names the source. */
int prompt_append_bytes(RedisModuleCtx *ctx, struct llm_request *r, const char *what, const char *data, size_t bytes,
                        struct reply_error *err);

#endif
