/* See beside_redis.h. As fast as such a client can be: one round trip for all keys, tokens turned into JSON
 * straight from Redis' replies, the request in one system call, nothing parsed that is not needed. */
#include "beside_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char path[] = "/completion";

enum { MAX_ID_CHARS = 11 }; /* ten digits and a comma */

/* The likeliest token each time by the shortest chain of samplers, and an end without the prompt's text, which would
 * otherwise be sent back. */
static const char request_head[] = "{\"stream\":true,\"cache_prompt\":true,\"return_tokens\":true,\"ignore_eos\":true,"
                                   "\"samplers\":[\"top_k\"],\"top_k\":1,"
                                   "\"response_fields\":[\"stop\",\"timings\",\"tokens_evaluated\"],";

static int reserve(struct text *text, size_t more, struct failure *failure)
{
    if (text->len + more <= text->cap) return 0;
    size_t cap = 2 * (text->len + more);
    char *grown = realloc(text->at, cap);
    if (!grown) return fail(failure, "out of memory");
    text->at = grown;
    text->cap = cap;
    return 0;
}

static char *write_id(char *to, uint32_t id)
{
    char digits[10];
    int n = 0;
    do digits[n++] = (char)('0' + id % 10);
    while ((id /= 10) > 0);
    while (n > 0) *to++ = digits[--n];
    return to;
}

static int add_tokens(struct text *text, const redisReply *packed, struct failure *failure)
{
    if (packed->len % 4 != 0) return fail(failure, "a key holds %zu bytes, no whole number of tokens", (size_t)packed->len);
    size_t n = packed->len / 4;
    if (reserve(text, n * MAX_ID_CHARS, failure) < 0) return -1;
    char *to = text->at + text->len;
    for (size_t i = 0; i < n; i++) {
        uint32_t id;
        memcpy(&id, packed->str + 4 * i, sizeof id);
        to = write_id(to, id);
        *to++ = ',';
    }
    text->len = (size_t)(to - text->at);
    return 0;
}

static int begin(struct text *text, const struct request *r, int slot, struct failure *failure)
{
    text->len = 0;
    if (reserve(text, sizeof request_head + 128, failure) < 0) return -1;
    text->len = (size_t)snprintf(text->at, text->cap, "%s\"n_predict\":%d,\"id_slot\":%d,\"prompt\":[", request_head,
                                 r->output, slot);
    return 0;
}

static int end(struct text *text, struct failure *failure)
{
    if (reserve(text, 2, failure) < 0) return -1;
    if (text->len > 0 && text->at[text->len - 1] == ',') text->len--;
    text->at[text->len++] = ']';
    text->at[text->len++] = '}';
    return 0;
}

static int get_reply(redisContext *redis, int type, redisReply **reply, struct failure *failure)
{
    if (redisGetReply(redis, (void **)reply) != REDIS_OK) return fail(failure, "Redis: %s", redis->errstr);
    if ((*reply)->type == type) return 0;
    if ((*reply)->type == REDIS_REPLY_ERROR) fail(failure, "%s", (*reply)->str);
    else fail(failure, "Redis gave a reply of type %d where %d was due: is a key missing?", (*reply)->type, type);
    freeReplyObject(*reply);
    return -1;
}

/* Fetches the keys in one round trip and writes their tokens into the body as they are parsed from the replies. What is
 * fetching and what is writing is told apart by the clock around each. */
static int fetch(redisContext *redis, int n, char *const *keys, struct text *text, struct measured *m,
                 struct failure *failure)
{
    double began = now_us(), writing = 0;
    for (int i = 0; i < n; i++) redisAppendCommand(redis, "GET %s", keys[i]);
    for (int i = 0; i < n; i++) {
        redisReply *reply;
        if (get_reply(redis, REDIS_REPLY_STRING, &reply, failure) < 0) {
            redis->err = REDIS_ERR_OTHER; /* replies are left: connect anew */
            return -1;
        }
        double from = now_us();
        int status = add_tokens(text, reply, failure);
        writing += now_us() - from;
        freeReplyObject(reply);
        if (status < 0) {
            redis->err = REDIS_ERR_OTHER;
            return -1;
        }
    }
    m->get += now_us() - began - writing;
    m->build += writing;
    return 0;
}

/* VSIM's hits and their attributes come in one round trip. The token keys are copied into `keys`; the
 * caller frees them. */
static int search(redisContext *redis, const struct request *r, const redisReply *vector, char **keys,
                  struct failure *failure)
{
    redisAppendCommand(redis, "VSIM %s FP32 %b COUNT %d WITHATTRIBS", r->rag.vset, vector->str, (size_t)vector->len,
                       r->rag.hits);
    redisReply *reply;
    if (get_reply(redis, REDIS_REPLY_ARRAY, &reply, failure) < 0) return -1;
    int n = 0;
    for (size_t i = 0; i + 1 < reply->elements && n < r->rag.hits; i += 2) {
        const redisReply *attributes = reply->element[i + 1];
        struct span value, name;
        bool found = attributes->type == REDIS_REPLY_STRING &&
                     json_member((struct span){attributes->str, attributes->len}, "tokens", &value) &&
                     json_plain_string(value, &name);
        keys[n] = found ? strndup(name.at, name.len) : NULL;
        if (!keys[n]) {
            while (n > 0) free(keys[--n]);
            freeReplyObject(reply);
            return fail(failure, "a hit's attributes name no token key");
        }
        n++;
    }
    freeReplyObject(reply);
    return n;
}

static int gather(redisContext *redis, struct text *text, const struct request *r, const redisReply *vector, double began,
                  struct measured *m, struct failure *failure)
{
    if (r->n_keys > 0) return fetch(redis, r->n_keys, r->keys, text, m, failure);
    char **keys = calloc((size_t)r->rag.hits + 2, sizeof *keys);
    if (!keys) return fail(failure, "out of memory");
    int n = search(redis, r, vector, keys + 1, failure), status = n < 0 ? -1 : 0;
    m->search = now_us() - began;
    if (status == 0) {
        keys[0] = r->rag.before;
        keys[n + 1] = r->rag.after;
        status = fetch(redis, n + 2, keys, text, m, failure);
    }
    for (int i = 1; i <= n; i++) free(keys[i]);
    free(keys);
    return status;
}

/* One event: the token it brings, and at the end the server's own figures. */
static int take(struct span event, double began, struct measured *m, struct failure *failure)
{
    struct span value, member;
    if (json_member(event, "error", &value))
        return fail(failure, "llama-server: %.*s", (int)(value.len < 300 ? value.len : 300), value.at);
    if (json_member(event, "tokens", &value)) {
        int room = MAX_OUTPUT - m->n_tokens, n = json_ids(value, m->tokens + m->n_tokens, room);
        if (n < 0) return fail(failure, "llama-server: 'tokens' is no array of ids");
        if (n > 0) m->total = now_us() - began;
        if (n > 0 && m->first < 0) m->first = m->total;
        m->n_tokens += n < room ? n : room;
    }
    if (!json_member(event, "timings", &value)) return 0;
    double prompt_ms;
    if (!json_member(value, "prompt_ms", &member) || !json_number(member, &prompt_ms))
        return fail(failure, "llama-server: 'timings' has no 'prompt_ms'");
    m->model = prompt_ms * 1000;
    if (json_member(value, "cache_n", &member)) json_number(member, &m->cached_tokens);
    if (json_member(event, "tokens_evaluated", &member)) json_number(member, &m->prompt_tokens);
    return 0;
}

int beside_redis_run(redisContext *redis, struct http *http, struct text *text, int slot, const struct request *r,
                     const redisReply *vector, struct measured *m, struct failure *failure)
{
    if (http_ready(http, failure) < 0) return -1;
    m->get = m->build = 0;
    double began = now_us();
    if (begin(text, r, slot, failure) < 0 || gather(redis, text, r, vector, began, m, failure) < 0 || end(text, failure) < 0)
        return -1;
    m->body_bytes = (double)text->len;
    double sending = now_us();
    int sent = http_post(http, path, text->at, text->len, failure);
    m->send = now_us() - sending;
    if (sent < 0 || http_answer(http, failure) < 0) {
        /* A server may end a connection at the moment that it gets a request: that one was not read. */
        if (!http->reused || http->answering) return -1;
        failure->text[0] = 0;
        http_close(http);
        if (http_ready(http, failure) < 0 || http_post(http, path, text->at, text->len, failure) < 0 ||
            http_answer(http, failure) < 0)
            return -1;
    }
    struct span event;
    int status;
    while ((status = http_event(http, &event, failure)) > 0) {
        if (event.len == 6 && memcmp(event.at, "[DONE]", 6) == 0) continue;
        if (take(event, began, m, failure) < 0) return -1;
    }
    if (status == 0 && m->model < 0) return fail(failure, "llama-server's answer ended without 'timings'");
    return status;
}
