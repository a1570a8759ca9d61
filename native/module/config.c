/* Configuration: see config.h. Owns the model directory's name. Main thread. */
#include "config.h"

#include "pool.h"
#include "registry.h"

#include <limits.h>
#include <stdatomic.h>
#include <string.h>

enum { DEFAULT_BATCH = 16, MAX_QUEUE = 1000000, DEFAULT_QUEUE = 1024 };

static const long long MIB = 1 << 20;

struct config config;

static long long get_int(const char *name, void *number)
{
    (void)name;
    return atomic_load((_Atomic int *)number);
}

static int set_int(const char *name, long long value, void *number, RedisModuleString **err)
{
    (void)name, (void)err;
    atomic_store((_Atomic int *)number, (int)value);
    return REDISMODULE_OK;
}

/* Called by CONFIG SET, after the setter, and not at the start. */
static int apply_threads(RedisModuleCtx *ctx, void *privdata, RedisModuleString **err)
{
    (void)privdata, (void)err;
    registry_apply_threads(ctx);
    return REDISMODULE_OK;
}

static long long get_kv_memory(const char *name, void *privdata)
{
    (void)name, (void)privdata;
    return config.kv_memory;
}

static int set_kv_memory(const char *name, long long value, void *privdata, RedisModuleString **err)
{
    (void)name, (void)privdata, (void)err;
    config.kv_memory = value;
    return REDISMODULE_OK;
}

static int get_trace(const char *name, void *privdata)
{
    (void)name, (void)privdata;
    return config.trace_admission;
}

static int set_trace(const char *name, int value, void *privdata, RedisModuleString **err)
{
    (void)name, (void)privdata, (void)err;
    config.trace_admission = value;
    return REDISMODULE_OK;
}

static RedisModuleString *model_dir; /* Redis reads what the getter returns, and leaves it to its owner */

const char *config_model_dir(void)
{
    return model_dir ? RedisModule_StringPtrLen(model_dir, NULL) : "";
}

static RedisModuleString *get_model_dir(const char *name, void *privdata)
{
    (void)name, (void)privdata;
    return model_dir;
}

static int set_model_dir(const char *name, RedisModuleString *value, void *privdata, RedisModuleString **err)
{
    (void)name, (void)privdata;
    size_t len;
    const char *path = RedisModule_StringPtrLen(value, &len);
    if (strlen(path) != len || len >= PATH_MAX) {
        static const char message[] = "the path holds a zero byte or is too long";
        *err = RedisModule_CreateString(NULL, message, sizeof message - 1);
        return REDISMODULE_ERR;
    }
    config_free();
    model_dir = RedisModule_CreateString(NULL, path, len);
    return REDISMODULE_OK;
}

int config_register(RedisModuleCtx *ctx)
{
    const unsigned changeable = REDISMODULE_CONFIG_DEFAULT;
    struct engine_limits *limits = &config.limits;
    /* kv-memory may be generous by default: only pages that are used cost memory. */
    if (RedisModule_RegisterNumericConfig(ctx, "threads", 0, changeable, 0, POOL_MAX_THREADS, get_int, set_int,
                                          apply_threads, (void *)&config.threads) != REDISMODULE_OK ||
        RedisModule_RegisterStringConfig(ctx, "model-dir", "", REDISMODULE_CONFIG_IMMUTABLE, get_model_dir,
                                         set_model_dir, NULL, NULL) != REDISMODULE_OK ||
        RedisModule_RegisterNumericConfig(ctx, "kv-memory", (long long)ENGINE_DEFAULT_KV_BYTES,
                                          REDISMODULE_CONFIG_MEMORY, MIB, LLONG_MAX, get_kv_memory, set_kv_memory,
                                          NULL, NULL) != REDISMODULE_OK ||
        RedisModule_RegisterNumericConfig(ctx, "max-batch", DEFAULT_BATCH, changeable, 1, LLM_MAX_BATCH, get_int,
                                          set_int, NULL, (void *)&limits->max_batch) != REDISMODULE_OK ||
        RedisModule_RegisterNumericConfig(ctx, "max-queue", DEFAULT_QUEUE, changeable, 0, MAX_QUEUE, get_int, set_int,
                                          NULL, (void *)&limits->max_queue) != REDISMODULE_OK ||
        RedisModule_RegisterBoolConfig(ctx, "trace-admission", 0, changeable, get_trace, set_trace, NULL, NULL) !=
            REDISMODULE_OK)
        return REDISMODULE_ERR;
    return RedisModule_LoadConfigs(ctx);
}

void config_free(void)
{
    if (model_dir) RedisModule_FreeString(NULL, model_dir);
    model_dir = NULL;
}
