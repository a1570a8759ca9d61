/* What the client's files share: a request that is measured, and how failures are told.
 *
 * Each request belongs to the thread that runs it. */
#ifndef SIDECAR_REQUEST_H
#define SIDECAR_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

struct failure {
    char text[512];
};

/* Fills in the text; returns -1, as the functions that fail do. */
int fail(struct failure *failure, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Monotonic, microseconds. */
double now_us(void);

enum way { WAY_REPLY, WAY_STREAM, WAY_SIDECAR };
enum transport { OVER_UNIX, OVER_TCP };
enum { N_TRANSPORTS = 2, MAX_OUTPUT = 4096 };

/* What is asked for. All strings are the job line's. */
struct request {
    enum way way;
    enum transport transport;
    int output; /* tokens */
    int n_keys; /* 0: retrieval */
    char **keys;
    struct {
        char *vset, *query; /* query: the key that holds the FP32 vector */
        int hits;
        char *before, *after; /* token keys */
    } rag;
};

/* Microseconds; -1 where the way has no such thing. */
struct measured {
    double search, get, build, send; /* of the sidecar's client, one after the other from 0 */
    double first; /* the first token is in the client's hands; a reply brings all at once and has no such time */
    double total; /* the last one is */
    double model; /* of `first`, or where there is none of `total`: what the server says its model took */
    double admit, queue; /* as INFER.GENERATE's reply has them */
    double body_bytes; /* of the HTTP request */
    double prompt_tokens, cached_tokens;
    int n_tokens;
    uint32_t tokens[MAX_OUTPUT];
};

#endif
