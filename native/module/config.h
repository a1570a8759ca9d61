/* The module's configuration: infer.threads, infer.model-dir, infer.kv-memory,
 * infer.max-batch, infer.max-queue, infer.trace-admission (docs/commands.md).
 *
 * Written on the main thread only (CONFIG SET, start). Other threads read the atomics; the rest is
 * read on the main thread and handed on by value. */
#ifndef REDIS_INFER_CONFIG_H
#define REDIS_INFER_CONFIG_H

#include <stdbool.h>

#include "llm.h"
#include "redis_api.h"

struct config {
    _Atomic int threads; /* 0: one per processor */
    long long kv_memory; /* bytes, of each model that is loaded without KVMEMORY */
    bool trace_admission;
    const struct kernels *kernels; /* of this CPU, or REDIS_INFER_KERNELS' choice: fixed from the start */
    struct engine_limits limits; /* shared by all engines */
};

extern struct config config;

/* The folder that models are loaded from; "" where none is set, and nothing can be loaded then. */
const char *config_model_dir(void);

/* Registers the settings and takes over what the server's configuration says about them. */
int config_register(RedisModuleCtx *ctx);
void config_free(void);

#endif
