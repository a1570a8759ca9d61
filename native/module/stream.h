/* STREAM key: the output as entries of a Redis stream, while it is made.
 *
 * Main thread. */
#ifndef REDIS_INFER_STREAM_H
#define REDIS_INFER_STREAM_H

#include "args.h"
#include "store.h"

struct stream {
    char *key; /* the owner's; NULL: there is none */
    size_t key_len;
    long long max_len, ttl_ms; /* 0: not asked for */
    /* stream.c's own */
    uint64_t renewed_us; /* when the expiry was set last; 0: never */
};

/* Whether the user may add entries to the key now and, if ttl_ms is not 0, let it expire: -1 and *err if not, if the key holds
 * something else, or the server takes no writes. */
int stream_check(RedisModuleCtx *ctx, const struct arg_string *key, long long ttl_ms, struct reply_error *err);

struct stream_field {
    const char *name;
    const void *bytes;
    size_t len;
};
enum { STREAM_MAX_FIELDS = 12 };

/* Adds an entry, trims to max_len, and sets the expiry where the key has none, or half of ttl_ms has passed since it was last
 * set. The last entry always sets it, and is written over maxmemory too: it is small, and who reads shall learn how it ended.
 * -1 and *err if it can't be written (WRONGTYPE: the key holds something else by now). */
int stream_add(RedisModuleCtx *ctx, struct stream *s, const struct stream_field *fields, int n_fields, bool last,
               struct reply_error *err);

#endif
