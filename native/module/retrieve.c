/* Search and gathering: see retrieve.h. Owns what it found until retrieve_free. Main thread. */
#include "retrieve.h"

#include "json_field.h"
#include "platform.h"
#include "prompt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- the search ---- */

struct search {
    RedisModuleCallReply *reply;       /* RESP2: element, score[, attributes], ... */
    RedisModuleCallReply **attributes; /* of each hit, where VSIM cannot send them along; else NULL */
    size_t n_hits;
};

struct hit { /* points into the replies */
    const char *element, *attributes; /* attributes NULL: it has none */
    size_t element_len, attributes_len;
    double score;
};

enum { MORE_WORDS = 12 }; /* of VSIM's arguments, beside the key and the vector */

/* VSIM's arguments. All but the first 1 + n_vector are made here. */
static size_t build_words(const struct retrieve_query *q, bool attributes, RedisModuleString **words)
{
    char text[32];
    size_t n = 0;
    words[n++] = q->vset;
    for (int i = 0; i < q->n_vector; i++) words[n++] = q->vector[i];
#define WORD(bytes) (words[n++] = RedisModule_CreateString(NULL, bytes, strlen(bytes)))
#define NUMBER(format, value) (snprintf(text, sizeof text, format, value), WORD(text))
    WORD("COUNT");
    NUMBER("%d", q->top_n);
    if (q->ef) WORD("EF"), NUMBER("%d", q->ef);
    if (q->epsilon > 0) WORD("EPSILON"), NUMBER("%.9g", (double)q->epsilon);
    if (q->filter) WORD("FILTER"), words[n++] = RedisModule_CreateStringFromString(NULL, q->filter);
    WORD("NOTHREAD"); /* a thread of its own would block the client */
    WORD("WITHSCORES");
    if (attributes) WORD("WITHATTRIBS");
#undef NUMBER
#undef WORD
    return n;
}

/* NULL with errno ENOENT where the server has no VSIM; otherwise an error is a reply too. */
static RedisModuleCallReply *call_vsim(RedisModuleCtx *ctx, const struct retrieve_query *q, bool attributes,
                                       const char *format)
{
    size_t n_query = 1 + (size_t)q->n_vector;
    RedisModuleString **words = RedisModule_Alloc((n_query + MORE_WORDS) * sizeof *words);
    size_t n = build_words(q, attributes, words);
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "VSIM", format, words, n);
    int error = errno;
    for (size_t i = n_query; i < n; i++) RedisModule_FreeString(NULL, words[i]);
    RedisModule_Free(words);
    if (reply && error == ENOENT && RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR) {
        RedisModule_FreeCallReply(reply);
        reply = NULL;
    }
    errno = error;
    return reply;
}

static int fail_no_reply(struct reply_error *err)
{
    if (errno == ENOENT)
        return reply_fail(err, "ERR", "this server has no Vector Sets (VSIM), which INFER.RAG searches: it needs Redis 8");
    return reply_fail(err, "ERR", "VSIM: %s", strerror(errno));
}

static int fail_search(struct reply_error *err, const struct retrieve_query *q, RedisModuleCallReply *reply)
{
    char what[256];
    if (strcasecmp(RedisModule_StringPtrLen(q->vector[0], NULL), "ELE") == 0)
        snprintf(what, sizeof what, "VSIM '%s' ELE '%s'", quote_string(q->vset).text, quote_string(q->vector[1]).text);
    else
        snprintf(what, sizeof what, "VSIM '%s'", quote_string(q->vset).text);
    return reply_fail_call(err, what, reply);
}

static bool is_error(RedisModuleCallReply *reply)
{
    return RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ERROR;
}

/* VSIM answers for a key that does not exist as for one without hits. */
static int check_vset(RedisModuleCtx *ctx, const struct retrieve_query *q, struct reply_error *err)
{
    RedisModuleKey *key =
        RedisModule_OpenKey(ctx, q->vset, REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOEXPIRE | REDISMODULE_OPEN_KEY_NONOTIFY);
    if (!key) return reply_fail(err, "NOKEY", "vector set '%s' does not exist", quote_string(q->vset).text);
    RedisModule_CloseKey(key);
    return 0;
}

static void search_free(struct search *s)
{
    for (size_t i = 0; s->attributes && i < s->n_hits; i++)
        if (s->attributes[i]) RedisModule_FreeCallReply(s->attributes[i]);
    if (s->attributes) RedisModule_Free(s->attributes);
    if (s->reply) RedisModule_FreeCallReply(s->reply);
}

/* Redis 8.0 has no WITHATTRIBS. */
static bool is_syntax_error(RedisModuleCallReply *reply)
{
    static const char line[] = "syntax error in VSIM command";
    size_t len;
    const char *text = RedisModule_CallReplyStringPtr(reply, &len);
    for (size_t i = 0; i + sizeof line - 1 <= len; i++)
        if (memcmp(text + i, line, sizeof line - 1) == 0) return true;
    return false;
}

static int search_one_by_one(RedisModuleCtx *ctx, const struct retrieve_query *q, struct search *s,
                             struct reply_error *err)
{
    s->reply = call_vsim(ctx, q, false, "ECv");
    if (!s->reply) return fail_no_reply(err);
    if (is_error(s->reply)) return fail_search(err, q, s->reply);
    s->n_hits = RedisModule_CallReplyLength(s->reply) / 2;
    s->attributes = RedisModule_Calloc(s->n_hits + 1, sizeof(RedisModuleCallReply *));
    for (size_t i = 0; i < s->n_hits; i++) {
        size_t len;
        const char *element =
            RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(s->reply, 2 * i), &len);
        s->attributes[i] = RedisModule_Call(ctx, "VGETATTR", "ECsb", q->vset, element, len);
        if (!s->attributes[i]) return reply_fail(err, "ERR", "VGETATTR: %s", strerror(errno));
        if (is_error(s->attributes[i])) return reply_fail_call(err, "VGETATTR", s->attributes[i]);
    }
    return s->n_hits == 0 ? check_vset(ctx, q, err) : 0;
}

static int search(RedisModuleCtx *ctx, const struct retrieve_query *q, struct search *s, struct reply_error *err)
{
    /* E errors as replies, C as the calling user, v an array of arguments. The reply is RESP2. */
    s->reply = call_vsim(ctx, q, true, "ECv");
    if (!s->reply) return fail_no_reply(err);
    if (is_error(s->reply)) {
        if (!is_syntax_error(s->reply)) return fail_search(err, q, s->reply);
        RedisModule_FreeCallReply(s->reply);
        return search_one_by_one(ctx, q, s, err);
    }
    s->n_hits = RedisModule_CallReplyLength(s->reply) / 3;
    return s->n_hits == 0 ? check_vset(ctx, q, err) : 0;
}

static struct hit hit_at(const struct search *s, size_t i)
{
    struct hit h = {0};
    size_t width = s->attributes ? 2 : 3;
    h.element = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(s->reply, width * i), &h.element_len);

    char number[64]; /* %.17g, without a zero at the end */
    size_t len;
    const char *score = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(s->reply, width * i + 1), &len);
    if (len >= sizeof number) len = sizeof number - 1;
    memcpy(number, score, len);
    number[len] = 0;
    h.score = strtod(number, NULL);

    RedisModuleCallReply *attributes =
        s->attributes ? s->attributes[i] : RedisModule_CallReplyArrayElement(s->reply, width * i + 2);
    if (RedisModule_CallReplyType(attributes) == REDISMODULE_REPLY_STRING)
        h.attributes = RedisModule_CallReplyStringPtr(attributes, &h.attributes_len);
    return h;
}

int retrieve_possible(RedisModuleCtx *ctx, struct reply_error *err)
{
    /* As ctx's user. Where there is one and the command too, it fails for want of arguments. */
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "VSIM", "C");
    int error = errno;
    if (reply) RedisModule_FreeCallReply(reply);
    errno = error;
    if (error == ENOTSUP)
        return reply_fail(err, "NOPERM", "nobody's rights say what may be read: another module runs the command, for no user");
    return error == ENOENT ? fail_no_reply(err) : 0;
}

int retrieve_allowed(RedisModuleCtx *ctx, const struct retrieve_query *q, struct reply_error *err)
{
    /* D: every check that comes before the command, and not the command. */
    RedisModuleCallReply *reply = call_vsim(ctx, q, true, "DECv");
    if (!reply) return errno == ENOENT ? fail_no_reply(err) : check_vset(ctx, q, err);
    int result = is_error(reply) ? fail_search(err, q, reply) : 0;
    RedisModule_FreeCallReply(reply);
    return result;
}

/* ---- gathering ---- */

/* A command that names a token key, for the user's ACL to be asked about. */
enum { ASK_COMMAND, ASK_MODEL, ASK_VSET, ASK_ELE, ASK_ELEMENT, ASK_BEFORE, ASK_KEY, ASK_WORDS };

struct gathering {
    RedisModuleCtx *ctx;
    const struct retrieve_query *q;
    RedisModuleUser *user;
    RedisModuleString *ask[ASK_WORDS]; /* [ASK_KEY] changes */
    struct llm_request *request;
    struct prompt_key before, between, after; /* key NULL: not given */
    size_t room;                              /* tokens that may still come from hits */
    bool any, full;                           /* a hit is in the prompt; the next one did not fit */
    bool fatal;                               /* the error is not a hit's own */
    bool cluster;
    unsigned slot;
};

static void prepare_ask(struct gathering *g)
{
    static const char *const words[ASK_WORDS] = {
        [ASK_COMMAND] = "INFER.RAG", [ASK_ELE] = "ELE", [ASK_ELEMENT] = "", [ASK_BEFORE] = "BEFORE"};
    for (int i = 0; i < ASK_WORDS; i++)
        if (words[i]) g->ask[i] = RedisModule_CreateString(NULL, words[i], strlen(words[i]));
    g->ask[ASK_MODEL] = g->q->model;
    g->ask[ASK_VSET] = g->q->vset;
}

static void free_ask(struct gathering *g)
{
    static const int made[] = {ASK_COMMAND, ASK_ELE, ASK_ELEMENT, ASK_BEFORE};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) RedisModule_FreeString(NULL, g->ask[made[i]]);
}

/* As if the command named the key. Whether the user may read it in whatever command is another question: of his selectors,
 * those count that let him run this one. */
static bool may_read(struct gathering *g, RedisModuleString *key)
{
    g->ask[ASK_KEY] = key;
    return RedisModule_ACLCheckCommandPermissions(g->user, g->ask, ASK_WORDS) == REDISMODULE_OK;
}

/* Opens a token key for the calling user. From inside, opening has no effect on the keyspace: a key that has expired
 * is missing, and Redis deletes it in its own time. */
static int open_key(struct gathering *g, RedisModuleString *name, const struct quoted *of, struct prompt_key *k,
                    struct reply_error *err)
{
    enum { MODE = REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOEXPIRE | REDISMODULE_OPEN_KEY_NONOTIFY };
    if (!may_read(g, name)) {
        RedisModule_ACLAddLogEntry(g->ctx, g->user, name, REDISMODULE_ACL_LOG_KEY);
        return reply_fail(err, "NOPERM", "the user may not read key '%s'%s%s%s", quote_string(name).text,
                          of ? " of element '" : "", of ? of->text : "", of ? "'" : "");
    }
    if (of && g->cluster && RedisModule_ClusterKeySlot && RedisModule_ClusterKeySlot(name) != g->slot)
        return reply_fail(err, "CROSSSLOT",
                          "key '%s' of element '%s' is in another slot than the vector set: give both one hash tag, "
                          "as in {docs}:vec and {docs}:tok",
                          quote_string(name).text, of->text);
    return prompt_key_open(g->ctx, name, of, MODE, k, err);
}

/* The token key that an element's attributes name. NULL and *err. */
static RedisModuleString *token_key(const struct gathering *g, const struct hit *h, const struct quoted *element,
                                    struct reply_error *err)
{
    size_t field_len = sizeof "tokens" - 1;
    const char *field = g->q->attribute ? RedisModule_StringPtrLen(g->q->attribute, &field_len) : "tokens";
    const char *fault = "are missing";
    RedisModuleString *name = NULL;
    if (h->attributes) {
        size_t len;
        char *value = RedisModule_Alloc(h->attributes_len + 1);
        fault = json_string_field(h->attributes, h->attributes_len, field, field_len, value, &len);
        if (!fault) name = RedisModule_CreateString(NULL, value, len);
        RedisModule_Free(value);
    }
    if (!name)
        reply_fail(err, "ERR", "the attributes of element '%s' %s: field '%s' names its token key", element->text, fault,
                   quote(field, field_len).text);
    return name;
}

/* Appends one hit's tokens, and what separates them from those before. */
static int append_hit(struct gathering *g, const struct prompt_key *k, int *n_tokens, struct reply_error *err)
{
    size_t n = k->bytes / sizeof(uint32_t);
    bool separate = g->between.key && g->any && n > 0;
    size_t n_between = separate ? g->between.bytes / sizeof(uint32_t) : 0;
    if (n > g->room || n_between > g->room - n) {
        g->full = true;
        return 0;
    }
    int before = g->request->n_prompt;
    if (separate && prompt_append_key(g->ctx, g->request, &g->between, err) < 0) {
        g->fatal = true;
        return -1;
    }
    if (prompt_append_key(g->ctx, g->request, k, err) < 0) {
        llm_request_truncate(g->request, before);
        return -1;
    }
    g->room -= n_between + n;
    g->any |= n > 0;
    *n_tokens = (int)n;
    return 0;
}

static int gather_hit(struct gathering *g, const struct hit *h, int *n_tokens, struct reply_error *err)
{
    struct quoted element = quote(h->element, h->element_len);
    RedisModuleString *name = token_key(g, h, &element, err);
    if (!name) return -1;
    struct prompt_key k;
    int result = open_key(g, name, &element, &k, err);
    if (result == 0) {
        result = append_hit(g, &k, n_tokens, err);
        prompt_key_close(&k);
    }
    RedisModule_FreeString(NULL, name);
    return result;
}

static char *copy_bytes(const char *bytes, size_t len)
{
    char *copy = RedisModule_Alloc(len + 1);
    memcpy(copy, bytes, len);
    copy[len] = 0;
    return copy;
}

/* The hits, nearest first, until one does not fit: a later, shorter one never takes its place. */
static int gather_hits(struct gathering *g, const struct search *s, struct retrieved *found, struct reply_error *err)
{
    found->sources = RedisModule_Calloc(s->n_hits + 1, sizeof *found->sources);
    for (size_t i = 0; i < s->n_hits; i++) {
        struct hit h = hit_at(s, i);
        struct retrieve_source *source = &found->sources[found->n_sources++];
        source->element = copy_bytes(h.element, h.element_len);
        source->element_len = h.element_len;
        source->score = h.score;
        if (g->full || gather_hit(g, &h, &source->n_tokens, err) == 0) continue;
        if (!g->q->skip_bad || g->fatal) return -1;
        source->fault = copy_bytes(err->line, strlen(err->line));
        found->n_skipped++;
    }
    return 0;
}

static size_t count_tokens(const struct prompt_key *k)
{
    return k->key ? k->bytes / sizeof(uint32_t) : 0;
}

static int gather(struct gathering *g, const struct search *s, struct retrieved *found, struct reply_error *err)
{
    const struct retrieve_query *q = g->q;
    struct llm_request *r = g->request;
    if ((q->before && open_key(g, q->before, NULL, &g->before, err) < 0) ||
        (q->between && open_key(g, q->between, NULL, &g->between, err) < 0) ||
        (q->after && open_key(g, q->after, NULL, &g->after, err) < 0))
        return -1;
    size_t tokens_len = 0;
    const char *tokens = q->tokens ? RedisModule_StringPtrLen(q->tokens, &tokens_len) : NULL;

    size_t taken = count_tokens(&g->before) + count_tokens(&g->after) + tokens_len / sizeof(uint32_t) +
                   (size_t)r->params.max_tokens;
    size_t n_ctx = (size_t)r->base.engine->info.n_ctx, most = taken < n_ctx ? n_ctx - taken : 0;
    g->room = q->budget && (size_t)q->budget < most ? (size_t)q->budget : most;

    if (g->before.key && prompt_append_key(g->ctx, r, &g->before, err) < 0) return -1;
    if (gather_hits(g, s, found, err) < 0) return -1;
    if (g->after.key && prompt_append_key(g->ctx, r, &g->after, err) < 0) return -1;
    if (tokens && prompt_append_bytes(g->ctx, r, "TOKENS", tokens, tokens_len, err) < 0) return -1;
    if (r->n_prompt == 0)
        return reply_fail(err, "BADTOKENS", "the prompt is empty: no hit has tokens in it, and BEFORE, AFTER and TOKENS "
                                            "add none");
    return 0;
}

/* ---- both ---- */

int retrieve(RedisModuleCtx *ctx, const struct retrieve_query *q, RedisModuleUser *user, struct llm_request *r,
             struct retrieved *found, struct reply_error *err)
{
    uint64_t began_us = platform_now_us();
    struct search s = {0};
    int result = search(ctx, q, &s, err);
    uint64_t searched_us = platform_now_us();
    if (result == 0) {
        struct gathering g = {.ctx = ctx, .q = q, .user = user, .request = r};
        g.cluster = RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_CLUSTER;
        if (g.cluster && RedisModule_ClusterKeySlot) g.slot = RedisModule_ClusterKeySlot(q->vset);
        prepare_ask(&g);
        result = gather(&g, &s, found, err);
        free_ask(&g);
        if (g.before.key) prompt_key_close(&g.before);
        if (g.between.key) prompt_key_close(&g.between);
        if (g.after.key) prompt_key_close(&g.after);
    }
    search_free(&s);
    found->search_us = searched_us - began_us;
    found->gather_us = platform_now_us() - searched_us;
    return result;
}

void retrieve_free(struct retrieved *found)
{
    for (int i = 0; i < found->n_sources; i++) {
        RedisModule_Free(found->sources[i].element);
        if (found->sources[i].fault) RedisModule_Free(found->sources[i].fault);
    }
    if (found->sources) RedisModule_Free(found->sources);
    *found = (struct retrieved){0};
}
