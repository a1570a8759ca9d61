/* See in_redis.h. The command and, where output is streamed, the first XREAD go out in one write: the server blocks on
 * XREAD until there is a token. */
#include "in_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_OTHER_ARGUMENTS = 24 };

struct command {
    int n;
    const char **argv;
    size_t *lens;
    char numbers[4][16];
    int n_numbers;
};

static void add(struct command *c, const char *bytes, size_t len)
{
    c->argv[c->n] = bytes;
    c->lens[c->n++] = len;
}

static void add_text(struct command *c, const char *text)
{
    add(c, text, strlen(text));
}

static void add_number(struct command *c, int number)
{
    char *digits = c->numbers[c->n_numbers++];
    snprintf(digits, sizeof c->numbers[0], "%d", number);
    add_text(c, digits);
}

static void compose(struct command *c, const char *model, const struct request *r, const redisReply *vector,
                    const char *stream)
{
    if (r->n_keys > 0) {
        add_text(c, "INFER.GENERATE");
        add_text(c, model);
        add_number(c, r->n_keys);
        for (int i = 0; i < r->n_keys; i++) add_text(c, r->keys[i]);
    } else {
        add_text(c, "INFER.RAG");
        add_text(c, model);
        add_text(c, r->rag.vset);
        add_text(c, "FP32");
        add(c, vector->str, vector->len);
        add_text(c, "TOPN");
        add_number(c, r->rag.hits);
        add_text(c, "BEFORE");
        add_text(c, r->rag.before);
        add_text(c, "AFTER");
        add_text(c, r->rag.after);
    }
    add_text(c, "MAXTOKENS");
    add_number(c, r->output);
    add_text(c, "IGNOREEOS");
    if (r->way == WAY_STREAM) {
        add_text(c, "STREAM");
        add_text(c, stream);
        add_text(c, "ASYNC");
    }
}

static int get_reply(redisContext *redis, redisReply **reply, struct failure *failure)
{
    if (redisGetReply(redis, (void **)reply) != REDIS_OK) return fail(failure, "Redis: %s", redis->errstr);
    if ((*reply)->type != REDIS_REPLY_ERROR) return 0;
    fail(failure, "%s", (*reply)->str);
    freeReplyObject(*reply);
    return -1;
}

/* A field of a map or stream entry, as RESP2 has it: names and values in turn. NULL: there is none. */
static const redisReply *field(const redisReply *map, const char *name)
{
    if (map->type != REDIS_REPLY_ARRAY) return NULL;
    for (size_t i = 0; i + 1 < map->elements; i += 2)
        if (map->element[i]->type == REDIS_REPLY_STRING && strcmp(map->element[i]->str, name) == 0)
            return map->element[i + 1];
    return NULL;
}

static double number(const redisReply *map, const char *name)
{
    const redisReply *value = field(map, name);
    if (!value) return -1;
    return value->type == REDIS_REPLY_INTEGER ? (double)value->integer : strtod(value->str, NULL);
}

static void take_counts(const redisReply *map, struct measured *m)
{
    m->admit = number(map, "admit_us");
    m->queue = number(map, "queue_us");
    m->model = number(map, "first_token_us") - m->queue;
    m->prompt_tokens = number(map, "prompt_tokens");
    m->cached_tokens = number(map, "cached_tokens");
}

static int take_reply(redisContext *redis, double began, struct measured *m, struct failure *failure)
{
    redisReply *reply;
    if (get_reply(redis, &reply, failure) < 0) return -1;
    m->total = now_us() - began;
    take_counts(reply, m);
    m->model = number(reply, "total_us") - m->queue;
    const redisReply *tokens = field(reply, "tokens");
    if (!tokens || tokens->len > sizeof m->tokens) {
        freeReplyObject(reply);
        return fail(failure, "the reply has no field 'tokens', or too long a one");
    }
    memcpy(m->tokens, tokens->str, tokens->len);
    m->n_tokens = (int)(tokens->len / sizeof m->tokens[0]);
    freeReplyObject(reply);
    return 0;
}

/* The entries of one XREAD; 1: the last one is among them. `last_id`: of the newest. */
static int take_entries(const redisReply *entries, char *last_id, size_t last_id_size, struct measured *m,
                        struct failure *failure)
{
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *entry = entries->element[i];
        if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2) return fail(failure, "a malformed stream entry");
        snprintf(last_id, last_id_size, "%s", entry->element[0]->str);
        const redisReply *fields = entry->element[1], *error = field(fields, "error");
        if (error) return fail(failure, "%s", error->str);
        if (field(fields, "finish_reason")) {
            take_counts(fields, m);
            return 1;
        }
        if (m->n_tokens < MAX_OUTPUT) m->tokens[m->n_tokens++] = (uint32_t)number(fields, "token");
    }
    return 0;
}

static int take_stream(redisContext *redis, const char *stream, double began, struct measured *m, struct failure *failure)
{
    redisReply *reply;
    if (get_reply(redis, &reply, failure) < 0) { /* the command's; XREAD would wait for ever */
        redis->err = REDIS_ERR_OTHER;
        return -1;
    }
    freeReplyObject(reply);
    char last_id[64] = "0";
    for (;;) {
        if (get_reply(redis, &reply, failure) < 0) return -1;
        double now = now_us() - began;
        if (m->first < 0) m->first = now;
        m->total = now;
        const redisReply *streams = reply;
        int status = streams->type == REDIS_REPLY_ARRAY && streams->elements == 1
                         ? take_entries(streams->element[0]->element[1], last_id, sizeof last_id, m, failure)
                         : fail(failure, "XREAD gave no entries");
        freeReplyObject(reply);
        if (status != 0) return status < 0 ? -1 : 0;
        redisAppendCommand(redis, "XREAD BLOCK 0 STREAMS %s %s", stream, last_id);
    }
}

int in_redis_run(redisContext *redis, const char *model, const struct request *r, const redisReply *vector,
                 const char *stream, struct measured *m, struct failure *failure)
{
    if (r->way == WAY_STREAM) freeReplyObject(redisCommand(redis, "DEL %s", stream));
    double began = now_us();
    struct command c = {0};
    c.argv = malloc((size_t)(r->n_keys + N_OTHER_ARGUMENTS) * sizeof *c.argv);
    c.lens = malloc((size_t)(r->n_keys + N_OTHER_ARGUMENTS) * sizeof *c.lens);
    if (!c.argv || !c.lens) {
        free(c.argv);
        free(c.lens);
        return fail(failure, "out of memory");
    }
    compose(&c, model, r, vector, stream);
    redisAppendCommandArgv(redis, c.n, c.argv, c.lens);
    if (r->way == WAY_STREAM) redisAppendCommand(redis, "XREAD BLOCK 0 STREAMS %s 0", stream);
    int status = r->way == WAY_STREAM ? take_stream(redis, stream, began, m, failure)
                                      : take_reply(redis, began, m, failure);
    free(c.argv);
    free(c.lens);
    return status;
}
