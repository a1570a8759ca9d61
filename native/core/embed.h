/* Requests for vectors: one or more inputs, each a text's tokens, to one vector each.
 *
 * Every engine takes them: an embedding model pools its tokens' states as its file says, a
 * decoder gives the state of the last one. Vectors have length 1. Inputs are
 * computed together, several in a step, but no vector depends on what was beside it.
 *
 *     r = embed_request_create(engine, &err)
 *     embed_request_add(r, data, bytes, "key 'x'", &err)        for each input
 *     r->base.done = ...; r->base.user = ...; r->base.timeout_us = ...
 *     engine_admit(engine, &r->base, &err)                      done(&r->base) follows, once
 *     r->base.error, r->vectors                                 in done, and until embed_request_free
 *
 * Tokens are taken as they are: an embedding model expects the special tokens that its tokenizer adds ([CLS]
 * and [SEP]) to be among them.
 *
 * Ownership and threads are those of any request, see engine.h. */
#ifndef INFER_EMBED_H
#define INFER_EMBED_H

#include "engine.h"

enum {
    EMBED_MAX_INPUTS = 1 << 14, /* of one request */
    EMBED_MAX_TOKENS = 1 << 24, /* of all of its inputs */
    EMBED_MAX_LARGEST = 4,      /* open requests of a model take as much memory at the most as so many of the largest: enough
                                 * for two clients that have one computed and another waiting; more would wait only */
};

struct embed_request {
    struct request base; /* ends with INFER_OK and all vectors, or with an error and none */
    uint32_t *tokens;    /* [n_tokens] of all inputs, one after another */
    int *ends;           /* [n_inputs] input i ends before tokens[ends[i]] */
    int n_tokens, n_inputs;
    float *vectors;      /* [n_inputs, n_embd]; NULL before admission */
    int n_embd;
    const void *source;  /* where the last embed_request_add read its bytes: for traces, not to be read again */

    int cap_tokens, cap_inputs; /* embed.c's own */

    /* the engine's own, between admit and done */
    int n_started, n_done; /* inputs */
    int n_parts;           /* llm: inputs that have been made parts: n_started, or one more, which waits */
};

/* NULL and *err when there is no memory. */
struct embed_request *embed_request_create(struct engine *e, struct infer_error *err);

/* Appends one input of packed little-endian uint32 tokens, reading `data` (any alignment) exactly once, now.
 * -1 with INFER_BADTOKENS (length, first bad position, none at all), INFER_CONTEXT (more than the model takes) or INFER_ERR
 * (too many inputs); `what` names the source in messages ("key 'x'"). Nothing is appended then. */
int embed_request_add(struct embed_request *r, const void *data, size_t bytes, const char *what, struct infer_error *err);

/* Only for requests that the caller owns: never admitted, or done. NULL is allowed. */
void embed_request_free(struct embed_request *r);

/* Input i's tokens and their number. */
static inline const uint32_t *embed_input(const struct embed_request *r, int i, int *n_tokens)
{
    int first = i > 0 ? r->ends[i - 1] : 0;
    *n_tokens = r->ends[i] - first;
    return r->tokens + first;
}

/* Bytes of a request's tokens and vectors. */
size_t embed_request_bytes(const struct embed_request *r);
/* What those of an engine's open requests may take together. One that comes when none is open always fits. */
size_t embed_max_bytes(const struct engine *e);

/* For engines: counts r as open, as engine_open does, with its memory, and makes room for the vectors. -1 if there is nothing
 * to do, with INFER_BUSY beyond embed_max_bytes or where engine_open refuses, or without memory. Any thread. */
int embed_request_open(struct embed_request *r, int max_running, int max_waiting, struct infer_error *err);
/* r, which was opened, ends. Any thread. */
void embed_request_close(struct embed_request *r);

/* Divides x by its length; zeros stay zeros. */
void embed_normalize(float *x, int n);

#endif
