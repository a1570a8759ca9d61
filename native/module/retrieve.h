/* Retrieval: from a query vector to a prompt made of the nearest elements' tokens.
 *
 * VSIM searches; an attribute of each hit names its token key; the keys' tokens go into the
 * request in order of similarity, each read once where Redis keeps it. All of it happens in one call on the
 * main thread, in which nothing writes: what is searched and what is gathered is one
 * moment of the database.
 *
 * Keys that attributes name are in no command line, so Redis has not checked them: they are checked here
 * against the calling user's ACL and, in a cluster, the vector set's slot. */
#ifndef REDIS_INFER_RETRIEVE_H
#define REDIS_INFER_RETRIEVE_H

#include <stdbool.h>

#include "llm.h"
#include "reply.h"

struct retrieve_query { /* strings are the caller's; NULL: not given */
    RedisModuleString *model, *vset; /* model: the one that generates */
    RedisModuleString **vector; /* VSIM's words for it: ELE element, FP32 blob, VALUES n v ... */
    int n_vector;
    int top_n, ef;              /* ef 0: VSIM's own choice */
    float epsilon;              /* 0: no limit */
    RedisModuleString *filter;
    RedisModuleString *attribute; /* the field that holds the token key; NULL: "tokens" */
    RedisModuleString *before, *between, *after; /* token keys around the hits' tokens */
    RedisModuleString *tokens;  /* packed tokens: the end of the prompt */
    int budget;                 /* most tokens of hits and what is between them; 0: what the context holds */
    bool skip_bad;              /* a hit whose tokens cannot be read is left out and reported, not an error */
};

struct retrieve_source { /* a hit */
    char *element;
    size_t element_len;
    double score; /* VSIM's: 1 is the same direction, 0 the opposite one */
    int n_tokens; /* in the prompt; 0: it did not fit any more */
    char *fault;  /* it was skipped: an error line; else NULL */
};

struct retrieved { /* begins zeroed; retrieve_free ends it */
    struct retrieve_source *sources; /* nearest first */
    int n_sources, n_skipped;
    uint64_t search_us, gather_us;
};

/* Runs the query as `user`, who is ctx's user too, and appends the whole prompt to r, which has none yet. -1 and *err,
 * after which the prompt is of no use. */
int retrieve(RedisModuleCtx *ctx, const struct retrieve_query *q, RedisModuleUser *user, struct llm_request *r,
             struct retrieved *found, struct reply_error *err);

/* Whether the server can search, and ctx has a user: where it has none, asking for his name ends older servers.
 * -1 and *err. */
int retrieve_possible(RedisModuleCtx *ctx, struct reply_error *err);

/* Whether ctx's user can search the query's vector set, without doing it: the vector may be missing yet. -1 and *err. */
int retrieve_allowed(RedisModuleCtx *ctx, const struct retrieve_query *q, struct reply_error *err);

void retrieve_free(struct retrieved *found);

#endif
