/* What Redis knows about the commands: flags, keys, ACL categories, and the texts of COMMAND DOCS.
 *
 * Keys are described twice. The key specifications serve clients and proxies that read them; the
 * commands also answer for themselves (getkeys-api), which counts where a specification
 * cannot: a STOP text or a TOKENS blob may be the word STORE or STREAM, so the specifications of
 * their keys say that they are incomplete, and Redis asks the command. */
#include "commands.h"

#include <string.h>

#define SINCE "0.1.0"

static const RedisModuleCommandInfoVersion info_version = {
    .version = 1,
    .sizeof_historyentry = sizeof(RedisModuleCommandHistoryEntry),
    .sizeof_keyspec = sizeof(RedisModuleCommandKeySpec),
    .sizeof_arg = sizeof(RedisModuleCommandArg),
};

enum { OPTIONAL = REDISMODULE_CMD_ARG_OPTIONAL, MULTIPLE = REDISMODULE_CMD_ARG_MULTIPLE };

#define ARG(arg_name, arg_type, ...) \
    {.name = arg_name, .type = REDISMODULE_ARG_TYPE_##arg_type, .key_spec_index = -1, __VA_ARGS__}
#define OPTION(word, arg_name, arg_type) ARG(arg_name, arg_type, .token = word, .flags = OPTIONAL)
#define FLAG(word, arg_name) ARG(arg_name, PURE_TOKEN, .token = word, .flags = OPTIONAL)
#define PROMPT_ARGS                                                                       \
    ARG("model", STRING), ARG("numkeys", INTEGER),                                        \
        {.name = "key", .type = REDISMODULE_ARG_TYPE_KEY, .key_spec_index = 0, .flags = OPTIONAL | MULTIPLE}, \
        OPTION("TOKENS", "blob", STRING)

/* numkeys at argument 2, the keys after it. */
#define PROMPT_KEYS                                                                     \
    {                                                                                   \
        .notes = "keys of packed uint32 tokens",                                        \
        .flags = REDISMODULE_CMD_KEY_RO | REDISMODULE_CMD_KEY_ACCESS,                   \
        .begin_search_type = REDISMODULE_KSPEC_BS_INDEX, .bs.index = {.pos = 2},        \
        .find_keys_type = REDISMODULE_KSPEC_FK_KEYNUM,                                  \
        .fk.keynum = {.keynumidx = 0, .firstkey = 1, .keystep = 1},                     \
    }

static RedisModuleCommandKeySpec embed_keys[] = {PROMPT_KEYS, {0}};
static RedisModuleCommandKeySpec score_keys[] = {PROMPT_KEYS, {0}};

/* One key after an option's word, from argument `from` on. */
#define OPTION_KEY(word, from, key_flags)                                               \
    {                                                                                   \
        .notes = "a text, vector or blob may look like this option",                    \
        .flags = (key_flags) | REDISMODULE_CMD_KEY_INCOMPLETE,                          \
        .begin_search_type = REDISMODULE_KSPEC_BS_KEYWORD,                              \
        .bs.keyword = {.keyword = word, .startfrom = from},                             \
        .find_keys_type = REDISMODULE_KSPEC_FK_RANGE,                                   \
        .fk.range = {.lastkey = 0, .keystep = 1, .limit = 0},                           \
    }
/* Those that a generation writes. */
#define OUTPUT_KEYS(from)                                                                  \
    OPTION_KEY("STORE", from, REDISMODULE_CMD_KEY_OW | REDISMODULE_CMD_KEY_UPDATE),        \
        OPTION_KEY("STREAM", from, REDISMODULE_CMD_KEY_RW | REDISMODULE_CMD_KEY_UPDATE)

static RedisModuleCommandKeySpec generate_keys[] = {PROMPT_KEYS, OUTPUT_KEYS(3), {0}};

enum { READS = REDISMODULE_CMD_KEY_RO | REDISMODULE_CMD_KEY_ACCESS };
static RedisModuleCommandKeySpec rag_keys[] = {
    {
        .notes = "the vector set; the token keys that its attributes name are in no command line, and are checked "
                 "against the user's ACL when they are read",
        .flags = READS,
        .begin_search_type = REDISMODULE_KSPEC_BS_INDEX, .bs.index = {.pos = 2},
        .find_keys_type = REDISMODULE_KSPEC_FK_RANGE,
        .fk.range = {.lastkey = 0, .keystep = 1, .limit = 0},
    },
    OPTION_KEY("BEFORE", 5, READS),
    OPTION_KEY("BETWEEN", 5, READS),
    OPTION_KEY("AFTER", 5, READS),
    OUTPUT_KEYS(5),
    {0},
};

static RedisModuleCommandArg stop_args[] = {
    ARG("n", INTEGER),
    ARG("text", STRING, .flags = MULTIPLE),
    {0},
};

#define KEY_OPTION(word, arg_name, spec) \
    {.name = arg_name, .type = REDISMODULE_ARG_TYPE_KEY, .key_spec_index = spec, .token = word, .flags = OPTIONAL}
#define STREAM_ARGS(spec)                                                                            \
    {.name = "stream-key", .type = REDISMODULE_ARG_TYPE_KEY, .key_spec_index = spec, .token = "STREAM"}, \
        OPTION("MAXLEN", "entries", INTEGER), OPTION("TTL", "stream-milliseconds", INTEGER)
/* store_spec: the index of STORE's key specification; stream: an array of STREAM_ARGS. */
#define GENERATION_ARGS(store_spec, stream)                                                                  \
    OPTION("MAXTOKENS", "max-tokens", INTEGER), OPTION("TEMPERATURE", "temperature", DOUBLE),        \
        OPTION("TOPK", "top-k", INTEGER), OPTION("TOPP", "top-p", DOUBLE),                           \
        OPTION("MINP", "min-p", DOUBLE), OPTION("REPEAT", "penalty", DOUBLE),                        \
        OPTION("SEED", "seed", INTEGER),                                                             \
        ARG("stop", BLOCK, .token = "STOP", .flags = OPTIONAL, .subargs = stop_args),                \
        FLAG("IGNOREEOS", "ignore-eos"), OPTION("LOGPROBS", "alternatives", INTEGER),                \
        FLAG("NOCACHE", "no-cache"), OPTION("TIMEOUT", "milliseconds", INTEGER),                     \
        ARG("stream", BLOCK, .flags = OPTIONAL, .subargs = stream),                                  \
        KEY_OPTION("STORE", "store-key", store_spec), FLAG("ASYNC", "async")

static RedisModuleCommandArg generate_stream_args[] = {STREAM_ARGS(2), {0}};
static RedisModuleCommandArg generate_args[] = {PROMPT_ARGS, GENERATION_ARGS(1, generate_stream_args), {0}};

static RedisModuleCommandArg values_args[] = {ARG("n", INTEGER), ARG("value", DOUBLE, .flags = MULTIPLE), {0}};
static RedisModuleCommandArg embed_query_args[] = {ARG("embedding-model", STRING), ARG("query-blob", STRING), {0}};
static RedisModuleCommandArg query_args[] = {
    ARG("element", STRING, .token = "ELE"),
    ARG("vector", STRING, .token = "FP32"),
    ARG("values", BLOCK, .token = "VALUES", .subargs = values_args),
    ARG("embed", BLOCK, .token = "EMBED", .subargs = embed_query_args),
    {0},
};
static RedisModuleCommandArg rag_stream_args[] = {STREAM_ARGS(5), {0}};
static RedisModuleCommandArg rag_args[] = {
    ARG("model", STRING),
    {.name = "vset", .type = REDISMODULE_ARG_TYPE_KEY, .key_spec_index = 0},
    ARG("query", ONEOF, .subargs = query_args),
    OPTION("TOPN", "hits", INTEGER),
    OPTION("FILTER", "expression", STRING),
    OPTION("EPSILON", "distance", DOUBLE),
    OPTION("EF", "exploration", INTEGER),
    OPTION("ATTR", "field", STRING),
    OPTION("BUDGET", "tokens", INTEGER),
    KEY_OPTION("BEFORE", "before-key", 1),
    KEY_OPTION("BETWEEN", "between-key", 2),
    KEY_OPTION("AFTER", "after-key", 3),
    FLAG("SKIPBAD", "skip-bad"),
    OPTION("TOKENS", "blob", STRING),
    GENERATION_ARGS(4, rag_stream_args),
    {0},
};

static RedisModuleCommandArg score_args[] = {
    PROMPT_ARGS,
    OPTION("TOP", "alternatives", INTEGER),
    {0},
};

static RedisModuleCommandArg embed_args[] = {
    PROMPT_ARGS,
    OPTION("LENGTHS", "lengths", STRING),
    OPTION("TIMEOUT", "milliseconds", INTEGER),
    {0},
};

static RedisModuleCommandArg load_args[] = {
    ARG("name", STRING),
    ARG("path", STRING),
    OPTION("CONTEXT", "tokens", INTEGER),
    OPTION("KVMEMORY", "bytes", INTEGER),
    {0},
};

static RedisModuleCommandArg name_args[] = {ARG("name", STRING), {0}};
static RedisModuleCommandArg id_args[] = {ARG("id", INTEGER), {0}};

struct command {
    const char *name; /* "container|subcommand" for a subcommand */
    RedisModuleCmdFunc function;
    const char *flags, *categories;
    RedisModuleCommandInfo info;
};

#define INFO(...) {.version = &info_version, .since = SINCE, __VA_ARGS__}

static const struct command commands[] = {
    {"infer.model", NULL, "", "", INFO(.summary = "Loads, unloads and describes models.", .arity = -2)},
    {"infer.model|load", cmd_model_load, "admin blocking", "admin dangerous slow blocking",
     INFO(.summary = "Loads a model file and replies when it can be used.",
          .complexity = "O(N) where N is the size of the file's metadata; weights are mapped, not read.",
          .tips = "request_policy:all_shards", .arity = -4, .args = load_args)},
    {"infer.model|unload", cmd_model_unload, "admin blocking", "admin dangerous slow blocking",
     INFO(.summary = "Ends a model's requests and frees it.", .complexity = "O(N) where N is the number of its requests.",
          .tips = "request_policy:all_shards", .arity = 3, .args = name_args)},
    {"infer.model|list", cmd_model_list, "readonly fast allow-stale", "read fast",
     INFO(.summary = "Describes all models.", .complexity = "O(N) where N is the number of models.",
          .tips = "nondeterministic_output", .arity = 2)},
    {"infer.model|info", cmd_model_info, "readonly fast allow-stale", "read fast",
     INFO(.summary = "Describes a model.", .complexity = "O(1)", .tips = "nondeterministic_output", .arity = 3,
          .args = name_args)},
    /* may-replicate for STREAM and STORE, which write after the command. In @read although they can: whoever may only
     * read shall generate, and those options ask for more (store_allowed). */
    {"infer.generate", cmd_generate, "readonly may-replicate blocking getkeys-api no-mandatory-keys",
     "read write slow blocking",
     INFO(.summary = "Generates tokens after a prompt of tokens.",
          .complexity = "O(N) on Redis' main thread where N is the length of the prompt; the model runs on other threads.",
          .tips = "nondeterministic_output", .arity = -4, .key_specs = generate_keys, .args = generate_args)},
    {"infer.rag", cmd_rag, "readonly may-replicate blocking getkeys-api", "read write slow blocking",
     INFO(.summary = "Searches a vector set and generates from what it found.",
          .complexity = "O(log(N)+M) on Redis' main thread where N is the number of elements in the vector set and M the "
                        "length of the prompt; the model runs on other threads.",
          .tips = "nondeterministic_output", .arity = -5, .key_specs = rag_keys, .args = rag_args)},
    {"infer.score", cmd_score, "readonly blocking getkeys-api no-mandatory-keys", "read slow blocking",
     INFO(.summary = "Gives the log-probability of each token of a text.",
          .complexity = "O(N) on Redis' main thread where N is the length of the text; the model runs on other threads.",
          .tips = "nondeterministic_output", .arity = -4, .key_specs = score_keys, .args = score_args)},
    {"infer.embed", cmd_embed, "readonly blocking getkeys-api no-mandatory-keys", "read slow blocking",
     INFO(.summary = "Gives each text's vector.",
          .complexity = "O(N) on Redis' main thread where N is the number of tokens; the model runs on other threads.",
          .arity = -4, .key_specs = embed_keys, .args = embed_args)},
    {"infer.requests", cmd_requests, "readonly fast allow-stale", "read fast",
     INFO(.summary = "Lists the requests that are waiting and running.",
          .complexity = "O(N) where N is the number of requests.", .tips = "nondeterministic_output", .arity = 1)},
    {"infer.cancel", cmd_cancel, "fast allow-stale", "admin dangerous fast",
     INFO(.summary = "Ends a request early.", .complexity = "O(N) where N is the number of requests.", .arity = 2,
          .args = id_args)},
};

static int create(RedisModuleCtx *ctx, const struct command *c)
{
    const char *bar = strchr(c->name, '|');
    if (!bar) return RedisModule_CreateCommand(ctx, c->name, c->function, c->flags, 0, 0, 0);
    char container[32];
    size_t n = (size_t)(bar - c->name);
    memcpy(container, c->name, n);
    container[n] = 0;
    RedisModuleCommand *parent = RedisModule_GetCommand(ctx, container);
    if (!parent) return REDISMODULE_ERR;
    return RedisModule_CreateSubcommand(parent, bar + 1, c->function, c->flags, 0, 0, 0);
}

int commands_register(RedisModuleCtx *ctx)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        const struct command *c = &commands[i];
        if (create(ctx, c) != REDISMODULE_OK) return REDISMODULE_ERR;
        RedisModuleCommand *made = RedisModule_GetCommand(ctx, c->name);
        if (!made || RedisModule_SetCommandInfo(made, &c->info) != REDISMODULE_OK) return REDISMODULE_ERR;
        if (*c->categories && RedisModule_SetCommandACLCategories &&
            RedisModule_SetCommandACLCategories(made, c->categories) != REDISMODULE_OK)
            return REDISMODULE_ERR;
    }
    return REDISMODULE_OK;
}
