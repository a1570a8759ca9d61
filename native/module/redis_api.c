/* The pointers of redis_api.h and how they are found.
 *
 * Main thread, once, before the module has threads of its own. */
#include "redis_api.h"

#include <string.h>

#define REDIS_API_DEFINE(returns, name, args) returns(*RedisModule_##name) args;
REDIS_API_REQUIRED(REDIS_API_DEFINE)
REDIS_API_OPTIONAL(REDIS_API_DEFINE)
#undef REDIS_API_DEFINE

int redis_api_init(RedisModuleCtx *ctx, const char *module_name, int version, const char **missing)
{
    /* The one function that is not asked for by name is the first pointer of every context. */
    int (*get_api)(const char *name, void *target);
    memcpy(&get_api, (void *)ctx, sizeof get_api);

    *missing = NULL;
#define FIND_REQUIRED(returns, name, args)                                                   \
    if (get_api("RedisModule_" #name, (void *)&RedisModule_##name) != REDISMODULE_OK) {      \
        *missing = "RedisModule_" #name;                                                     \
        return REDISMODULE_ERR;                                                              \
    }
#define FIND_OPTIONAL(returns, name, args)                                                   \
    if (get_api("RedisModule_" #name, (void *)&RedisModule_##name) != REDISMODULE_OK)        \
        RedisModule_##name = NULL;
    REDIS_API_REQUIRED(FIND_REQUIRED)
    REDIS_API_OPTIONAL(FIND_OPTIONAL)
#undef FIND_REQUIRED
#undef FIND_OPTIONAL

    if (RedisModule_IsModuleNameBusy(module_name)) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs(ctx, module_name, version, REDISMODULE_APIVER_1);
    return REDISMODULE_OK;
}
