/* INFER.RAG model vset  ELE element | FP32 blob | VALUES n v [v ...]
 *     [TOPN n] [FILTER expr] [EPSILON d] [EF n] [ATTR field] [BUDGET tokens]
 *     [BEFORE key] [BETWEEN key] [AFTER key] [SKIPBAD] [TOKENS blob]  and GENERATE's options
 *
 * The prompt is BEFORE's tokens, those of the hits, nearest first and with BETWEEN's in between,
 * AFTER's, and the blob. Search, gathering and admission are one stay on the main
 * thread (retrieve.h); from there on it is a generation like any other. */
#include "args.h"
#include "commands.h"
#include "generation.h"
#include "platform.h"
#include "retrieve.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

enum { MODEL = 1, VSET = 2, VECTOR = 3, LEAST_ARGS = 5 };
enum { DEFAULT_TOP_N = 4, MAX_TOP_N = 1000, MAX_EF = 1000000 /* VSIM's own */ };

struct rag_args {
    int vector_words, next; /* words from argv[VECTOR] on; where the options begin */
    int top_n, ef, budget;
    float epsilon;
    struct arg_string filter, attribute, before, between, after;
    bool skip_bad;
    struct generation_args generation;
};

#define AT(field) offsetof(struct rag_args, field)
static const struct option options[] = {
    {"TOPN", OPTION_INT, AT(top_n), 1, MAX_TOP_N},
    {"FILTER", OPTION_STRING, AT(filter), 0, 0},
    {"EPSILON", OPTION_FLOAT, AT(epsilon), 1e-6, 1},
    {"EF", OPTION_INT, AT(ef), 1, MAX_EF},
    {"ATTR", OPTION_STRING, AT(attribute), 0, 0},
    {"BUDGET", OPTION_INT, AT(budget), 1, INT_MAX},
    {"BEFORE", OPTION_STRING, AT(before), 0, 0},
    {"BETWEEN", OPTION_STRING, AT(between), 0, 0},
    {"AFTER", OPTION_STRING, AT(after), 0, 0},
    {"SKIPBAD", OPTION_FLAG, AT(skip_bad), 0, 0},
    {0},
};
#undef AT

/* ELE element, FP32 blob, VALUES n v ...: what of it is VSIM's business is left to VSIM. */
static int parse_vector(RedisModuleString **argv, int argc, struct rag_args *a, struct reply_error *err)
{
    const char *form = args_string(argv, VECTOR).data;
    a->vector_words = 2;
    if (strcasecmp(form, "VALUES") == 0) {
        long long n;
        int most = argc - VECTOR - 2;
        if (RedisModule_StringToLongLong(argv[VECTOR + 1], &n) != REDISMODULE_OK || n < 1)
            return reply_fail(err, "ERR", "VALUES is '%s', not a number of values from 1",
                              quote_string(argv[VECTOR + 1]).text);
        if (n > most)
            return reply_fail(err, "ERR", "VALUES announces %lld values, but %d arguments follow", n, most);
        a->vector_words = 2 + (int)n;
    } else if (strcasecmp(form, "ELE") != 0 && strcasecmp(form, "FP32") != 0) {
        return reply_fail(err, "ERR", "'%s' is no form of a query: use ELE element, FP32 blob or VALUES n v ...",
                          quote_string(argv[VECTOR]).text);
    }
    a->next = VECTOR + a->vector_words;
    return 0;
}

static int parse(RedisModuleString **argv, int argc, struct rag_args *a, struct reply_error *err)
{
    *a = (struct rag_args){.top_n = DEFAULT_TOP_N};
    generation_defaults(&a->generation);
    if (parse_vector(argv, argc, a, err) < 0) return -1;
    struct option_set sets[] = {{options, a, 0}, {generation_options, &a->generation, 0}};
    return args_options(sets, 2, argv, argc, a->next, err);
}

static int report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc < LEAST_ARGS) return REDISMODULE_OK;
    struct rag_args a;
    struct reply_error err;
    (void)parse(argv, argc, &a, &err);
    enum { READS = REDISMODULE_CMD_KEY_RO | REDISMODULE_CMD_KEY_ACCESS };
    RedisModule_KeyAtPosWithFlags(ctx, VSET, READS);
    const struct arg_string *around[] = {&a.before, &a.between, &a.after};
    for (int i = 0; i < 3; i++)
        if (around[i]->data) RedisModule_KeyAtPosWithFlags(ctx, around[i]->pos, READS);
    generation_report_keys(ctx, &a.generation);
    return REDISMODULE_OK;
}

/* ---- the reply ---- */

static void reply_sources(RedisModuleCtx *ctx, struct job *j)
{
    const struct retrieved *found = j->own;
    RedisModule_ReplyWithCString(ctx, "sources");
    RedisModule_ReplyWithArray(ctx, found->n_sources - found->n_skipped);
    for (int i = 0; i < found->n_sources; i++) {
        const struct retrieve_source *s = &found->sources[i];
        if (s->fault) continue;
        RedisModule_ReplyWithArray(ctx, 3);
        RedisModule_ReplyWithStringBuffer(ctx, s->element, s->element_len);
        RedisModule_ReplyWithDouble(ctx, s->score);
        RedisModule_ReplyWithLongLong(ctx, s->n_tokens);
    }
    RedisModule_ReplyWithCString(ctx, "skipped");
    RedisModule_ReplyWithArray(ctx, found->n_skipped);
    for (int i = 0; i < found->n_sources; i++) {
        const struct retrieve_source *s = &found->sources[i];
        if (!s->fault) continue;
        RedisModule_ReplyWithArray(ctx, 2);
        RedisModule_ReplyWithStringBuffer(ctx, s->element, s->element_len);
        RedisModule_ReplyWithCString(ctx, s->fault);
    }
    reply_field_integer(ctx, "search_us", (long long)found->search_us);
    reply_field_integer(ctx, "gather_us", (long long)found->gather_us);
}

static int reply(RedisModuleCtx *ctx, struct job *j)
{
    return generation_reply(ctx, j, 4, reply_sources);
}

static void free_found(void *own)
{
    retrieve_free(own);
    RedisModule_Free(own);
}

/* ---- the command ---- */

static RedisModuleString *word(RedisModuleString **argv, const struct arg_string *s)
{
    return s->data ? argv[s->pos] : NULL;
}

/* The user whose rights count. NULL: there is none, who may do nothing. */
static RedisModuleUser *calling_user(RedisModuleCtx *ctx)
{
    /* By the client's id, since asking a context without a user for its name ends the server; a
     * script's client has no id that could be looked up, but always a user. */
    RedisModuleString *name = RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_LUA
                                  ? RedisModule_GetCurrentUserName(ctx)
                                  : RedisModule_GetClientUserNameById(ctx, RedisModule_GetClientId(ctx));
    if (!name) return NULL;
    RedisModuleUser *user = RedisModule_GetModuleUserFromUserName(name);
    RedisModule_FreeString(ctx, name);
    return user;
}

int cmd_rag(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    uint64_t began_us = platform_now_us();
    if (RedisModule_IsKeysPositionRequest(ctx)) return report_keys(ctx, argv, argc);
    if (argc < LEAST_ARGS) return RedisModule_WrongArity(ctx);

    static const char command[] = "INFER.RAG";
    struct rag_args a;
    struct reply_error err;
    if (parse(argv, argc, &a, &err) < 0) return reply_error(ctx, &err);
    struct arg_string model = args_string(argv, MODEL);
    struct job *j = generation_create(ctx, command, &model, &a.generation, &err);
    if (!j) return reply_error(ctx, &err);
    struct retrieved *found = RedisModule_Calloc(1, sizeof *found);
    j->reply = reply;
    j->own = found;
    j->free_own = free_found;

    struct retrieve_query query = {
        .vset = argv[VSET],
        .vector = argv + VECTOR,
        .n_vector = a.vector_words,
        .top_n = a.top_n,
        .ef = a.ef,
        .epsilon = a.epsilon,
        .filter = word(argv, &a.filter),
        .attribute = word(argv, &a.attribute),
        .before = word(argv, &a.before),
        .between = word(argv, &a.between),
        .after = word(argv, &a.after),
        .tokens = word(argv, &a.generation.tokens),
        .budget = a.budget,
        .skip_bad = a.skip_bad,
    };
    RedisModuleUser *user = calling_user(ctx);
    int result = retrieve(ctx, &query, user, j->request, found, &err);
    if (user) RedisModule_FreeModuleUser(user);
    if (result < 0) {
        job_free(j);
        return reply_error(ctx, &err);
    }
    job_start(ctx, j, began_us);
    return REDISMODULE_OK;
}
