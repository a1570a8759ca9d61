/* INFER.RAG model vset  ELE element | FP32 blob | VALUES n v [v ...] | EMBED model blob
 *     [TOPN n] [FILTER expr] [EPSILON d] [EF n] [ATTR field] [BUDGET tokens]
 *     [BEFORE key] [BETWEEN key] [AFTER key] [SKIPBAD] [TOKENS blob]  and GENERATE's options
 *
 * The prompt is BEFORE's tokens, those of the hits, nearest first and with BETWEEN's in between,
 * AFTER's, and the blob. Search, gathering and admission are one stay on the main
 * thread (retrieve.h); from there on it is a generation like any other.
 *
 * With EMBED another model computes the query's vector first. The client stays blocked and the
 * main thread is free; when the vector is there the rest happens there as above, in a timer's callback, with
 * the rights that the user has then. */
#include "args.h"
#include "commands.h"
#include "generation.h"
#include "platform.h"
#include "retrieve.h"

#include <limits.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

enum { MODEL = 1, VSET = 2, VECTOR = 3, LEAST_ARGS = 5 };
enum { ELEMENT_OR_BLOB_WORDS = 2, EMBED_WORDS = 3 };
enum { DEFAULT_TOP_N = 4, MAX_TOP_N = 1000, MAX_EF = 1000000 /* VSIM's own */ };

struct rag_args {
    int vector_words; /* from argv[VECTOR] on; then the options */
    bool embed;
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

/* ELE element, FP32 blob, VALUES n v ..., which VSIM reads, or EMBED model blob, which we do. */
static int parse_vector(RedisModuleString **argv, int argc, struct rag_args *a, struct reply_error *err)
{
    const char *form = args_string(argv, VECTOR).data;
    a->vector_words = ELEMENT_OR_BLOB_WORDS;
    if (strcasecmp(form, "EMBED") == 0) {
        a->embed = true;
        a->vector_words = EMBED_WORDS;
        if (argc < VECTOR + EMBED_WORDS)
            return reply_fail(err, "ERR", "EMBED '%s' lacks the query's tokens", quote_string(argv[VECTOR + 1]).text);
    } else if (strcasecmp(form, "VALUES") == 0) {
        long long n;
        int most = argc - VECTOR - 2;
        if (RedisModule_StringToLongLong(argv[VECTOR + 1], &n) != REDISMODULE_OK || n < 1)
            return reply_fail(err, "ERR", "VALUES is '%s', not a number of values from 1",
                              quote_string(argv[VECTOR + 1]).text);
        if (n > most)
            return reply_fail(err, "ERR", "VALUES announces %lld values, but %d arguments follow", n, most);
        a->vector_words += (int)n;
    } else if (strcasecmp(form, "ELE") != 0 && strcasecmp(form, "FP32") != 0) {
        return reply_fail(err, "ERR", "'%s' is no form of a query: use ELE element, FP32 blob, VALUES n v ... or "
                          "EMBED model blob",
                          quote_string(argv[VECTOR]).text);
    }
    return 0;
}

/* What is not given stays as it is in *a. */
static int parse(RedisModuleString **argv, int argc, struct rag_args *a, struct reply_error *err)
{
    if (parse_vector(argv, argc, a, err) < 0) return -1;
    struct option_set sets[] = {{options, a, 0}, {generation_options, &a->generation, 0}};
    return args_options(sets, 2, argv, argc, VECTOR + a->vector_words, err);
}

static int report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc < LEAST_ARGS) return REDISMODULE_OK;
    struct rag_args a = {0}; /* without defaults: they cost a random number */
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

struct rag { /* a job's own */
    struct retrieve_query query;
    struct retrieved found;

    /* EMBED */
    struct embed_request *embed; /* NULL: the vector was given */
    struct model_entry *embedder;
    RedisModuleString *user;
    RedisModuleString *vector[ELEMENT_OR_BLOB_WORDS];
    uint64_t embed_us;
};

/* ---- the reply ---- */

static void reply_retrieved(RedisModuleCtx *ctx, struct job *j)
{
    const struct rag *rag = j->own;
    const struct retrieved *found = &rag->found;
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
    if (rag->embed) reply_field_integer(ctx, "embed_us", (long long)rag->embed_us);
    reply_field_integer(ctx, "search_us", (long long)found->search_us);
    reply_field_integer(ctx, "gather_us", (long long)found->gather_us);
}

static int reply(RedisModuleCtx *ctx, struct job *j)
{
    const struct rag *rag = j->own;
    return generation_reply(ctx, j, rag->embed ? 5 : 4, reply_retrieved);
}

/* ---- a job's own ---- */

static RedisModuleString **kept_strings(struct rag *rag, int i)
{
    struct retrieve_query *q = &rag->query;
    RedisModuleString **const all[] = {&q->model,  &q->vset,    &q->filter, &q->attribute,
                                       &q->before, &q->between, &q->after,  &q->tokens};
    return i < (int)(sizeof all / sizeof *all) ? all[i] : NULL;
}

/* The arguments go with the command, and EMBED needs them after it: copies, since Redis counts references to
 * its strings without a lock and may free a command's on another thread. */
static void keep_strings(struct rag *rag)
{
    RedisModuleString **s;
    for (int i = 0; (s = kept_strings(rag, i)); i++)
        if (*s) *s = RedisModule_CreateStringFromString(NULL, *s);
}

static void release_embedder(struct rag *rag)
{
    if (rag->embedder) registry_release(rag->embedder);
    rag->embedder = NULL;
}

static void free_rag(void *own)
{
    struct rag *rag = own;
    retrieve_free(&rag->found);
    if (rag->embed) {
        RedisModuleString **s;
        for (int i = 0; (s = kept_strings(rag, i)); i++)
            if (*s) RedisModule_FreeString(NULL, *s);
        for (int i = 0; i < ELEMENT_OR_BLOB_WORDS; i++)
            if (rag->vector[i]) RedisModule_FreeString(NULL, rag->vector[i]);
        if (rag->user) RedisModule_FreeString(NULL, rag->user);
        embed_request_free(rag->embed);
    }
    release_embedder(rag);
    RedisModule_Free(rag);
}

static RedisModuleString *word(RedisModuleString **argv, const struct arg_string *s)
{
    return s->data ? argv[s->pos] : NULL;
}

static struct rag *create_rag(RedisModuleString **argv, const struct rag_args *a)
{
    struct rag *rag = RedisModule_Calloc(1, sizeof *rag);
    rag->query = (struct retrieve_query){
        .model = argv[MODEL],
        .vset = argv[VSET],
        .vector = argv + VECTOR,
        .n_vector = a->vector_words,
        .top_n = a->top_n,
        .ef = a->ef,
        .epsilon = a->epsilon,
        .filter = word(argv, &a->filter),
        .attribute = word(argv, &a->attribute),
        .before = word(argv, &a->before),
        .between = word(argv, &a->between),
        .after = word(argv, &a->after),
        .tokens = word(argv, &a->generation.tokens),
        .budget = a->budget,
        .skip_bad = a->skip_bad,
    };
    return rag;
}

/* ---- search and gathering ---- */

/* The name of the user whose rights count, to be freed. NULL and *err. */
static RedisModuleString *calling_user(RedisModuleCtx *ctx, struct reply_error *err)
{
    return retrieve_possible(ctx, err) < 0 ? NULL : RedisModule_GetCurrentUserName(ctx);
}

static int retrieve_as(RedisModuleCtx *ctx, RedisModuleString *name, struct job *j, struct reply_error *err)
{
    struct rag *rag = j->own;
    RedisModuleUser *user = RedisModule_GetModuleUserFromUserName(name);
    if (!user) return reply_fail(err, "NOPERM", "the user of the command does not exist any more");
    if (RedisModule_SetContextUser) RedisModule_SetContextUser(ctx, user);
    int result = retrieve(ctx, &rag->query, user, j->request, &rag->found, err);
    if (RedisModule_SetContextUser) RedisModule_SetContextUser(ctx, NULL);
    RedisModule_FreeModuleUser(user);
    return result;
}

/* ---- EMBED ---- */

static const char vector_form[] = "FP32";

static int prepare_embed(RedisModuleCtx *ctx, RedisModuleString **argv, struct job *j, struct reply_error *err)
{
    struct rag *rag = j->own;
    struct arg_string model = args_string(argv, VECTOR + 1), blob = args_string(argv, VECTOR + 2);
    struct infer_error core;
    rag->embedder = registry_acquire(model.data, model.len, err);
    if (!rag->embedder) return -1;
    rag->embed = embed_request_create(rag->embedder->engine, &core);
    if (!rag->embed) return reply_fail_core(err, &core);
    keep_strings(rag);
    rag->user = calling_user(ctx, err);
    if (!rag->user) return -1;
    rag->vector[0] = RedisModule_CreateString(NULL, vector_form, sizeof vector_form - 1);
    rag->vector[1] = RedisModule_CreateString(NULL, "", 0);
    rag->query.vector = rag->vector;
    rag->query.n_vector = ELEMENT_OR_BLOB_WORDS;
    if (embed_request_add(rag->embed, blob.data, blob.len, "the query", &core) < 0) return reply_fail_core(err, &core);
    rag->embed->base.timeout_us = j->request->base.timeout_us;
    return retrieve_allowed(ctx, &rag->query, err);
}

/* What is left of TIMEOUT, which counts for embedding and generation together. False: nothing. */
static bool take_time(struct request *r, uint64_t spent_us)
{
    if (r->timeout_us == 0) return true;
    if (r->timeout_us <= spent_us) return false;
    r->timeout_us -= spent_us;
    return true;
}

/* The request ends without having run: as a generation that was cancelled or ran out of time before its first token. */
static void finish_early(struct job *j, enum llm_finish how)
{
    j->request->finish = how;
    j->request->base.timing.admitted_at = j->started_us;
    j->request->base.timing.done_at = platform_now_us();
    job_finish(j, NULL);
}

static void on_vector(RedisModuleCtx *ctx, struct job *j)
{
    struct rag *rag = j->own;
    struct embed_request *e = rag->embed;
    uint64_t vector_us = e->base.timing.done_at;
    rag->embed_us = vector_us - j->started_us;
    release_embedder(rag);

    struct request *r = &j->request->base;
    const struct infer_error *error = &e->base.error;
    struct reply_error err;
    bool cancelled = atomic_load(&r->cancelled);
    if (error->code != INFER_OK && error->code != INFER_CANCELLED) {
        reply_fail(&err, infer_code_name(error->code), "the query's vector: %s", error->message);
        job_finish(j, &err);
        return;
    }
    if (cancelled || error->code == INFER_CANCELLED || !take_time(r, platform_now_us() - j->started_us)) {
        finish_early(j, cancelled ? LLM_CANCELLED : LLM_TIMEOUT);
        return;
    }
    RedisModule_FreeString(NULL, rag->vector[1]);
    rag->vector[1] = RedisModule_CreateString(NULL, (const char *)e->vectors, (size_t)e->n_embd * sizeof *e->vectors);
    if (retrieve_as(ctx, rag->user, j, &err) < 0) job_finish(j, &err);
    else job_continue(j, vector_us);
}

/* ---- the command ---- */

int cmd_rag(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    uint64_t began_us = platform_now_us();
    if (RedisModule_IsKeysPositionRequest(ctx)) return report_keys(ctx, argv, argc);
    if (argc < LEAST_ARGS) return RedisModule_WrongArity(ctx);

    static const char command[] = "INFER.RAG";
    struct rag_args a = {.top_n = DEFAULT_TOP_N};
    struct reply_error err;
    generation_defaults(&a.generation);
    if (parse(argv, argc, &a, &err) < 0) return reply_error(ctx, &err);
    struct arg_string model = args_string(argv, MODEL);
    struct job *j = generation_create(ctx, command, &model, &a.generation, &err);
    if (!j) return reply_error(ctx, &err);
    struct rag *rag = create_rag(argv, &a);
    j->reply = reply;
    j->own = rag;
    j->free_own = free_rag;

    int result;
    if (a.embed) {
        result = prepare_embed(ctx, argv, j, &err);
    } else {
        RedisModuleString *user = calling_user(ctx, &err);
        result = user ? retrieve_as(ctx, user, j, &err) : -1;
        if (user) RedisModule_FreeString(ctx, user);
    }
    if (result < 0) {
        job_free(j);
        return reply_error(ctx, &err);
    }
    if (a.embed) job_start_after(ctx, j, began_us, &rag->embed->base, on_vector);
    else job_start(ctx, j, began_us);
    return REDISMODULE_OK;
}
