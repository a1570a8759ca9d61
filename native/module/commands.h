/* The command functions, one file per group, and their descriptions for Redis. Main thread. */
#ifndef REDIS_INFER_COMMANDS_H
#define REDIS_INFER_COMMANDS_H

#include "redis_api.h"

int cmd_model_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_model_unload(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_model_list(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_model_info(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_generate(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_rag(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_score(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_embed(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_requests(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_cancel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);

/* Creates all of them, with flags, key specifications and documentation (command_table.c). */
int commands_register(RedisModuleCtx *ctx);

/* INFO infer (info.c). */
int info_register(RedisModuleCtx *ctx);

#endif
