/* Slow steps and long turns of the writer, as events of Redis' latency monitor. */
#ifndef REDIS_INFER_LATENCY_H
#define REDIS_INFER_LATENCY_H

#include "redis_api.h"

int latency_register(RedisModuleCtx *ctx);

#endif
