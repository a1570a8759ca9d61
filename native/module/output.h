/* What becomes of a generation's output beside the reply: STREAM and STORE.
 *
 * The conductor copies each token into an item for the writer (writer.h), and at the end leaves one more: that one
 * stores the tokens, writes the stream's last entry, and ends the job. So whoever
 * reads the last entry, or gets the reply, finds everything written.
 *
 * When an entry can't be written (another type in the key's place, maxmemory, a server that has become a
 * replica), the request is cancelled, and ends with that error. A key that was deleted meanwhile is made anew. */
#ifndef REDIS_INFER_OUTPUT_H
#define REDIS_INFER_OUTPUT_H

#include "stream.h"
#include "writer.h"

struct job;
struct request;

struct output {
    int db; /* the client's, when it asked */
    struct stream stream;
    char *store; /* key, or NULL */
    size_t store_len;

    /* output.c's own */
    size_t text_sent;         /* bytes of the text that items have; the conductor's until the end */
    struct write_item end;
    bool failed;              /* main thread; `error` says why */
    struct reply_error error;
};

static inline bool output_wanted(const struct output *o)
{
    return o->store || o->stream.key;
}

/* Before the job is started. Main thread. */
void output_prepare(RedisModuleCtx *ctx, struct job *j);

/* The request is done: the writer finishes the output and then calls job_end. Conductor. */
void output_end(struct job *j);

/* From now on nothing is written but the stream's last entry, and the job ends with this error; the first one counts. Main
 * thread. */
void output_fail(struct job *j, const struct reply_error *err);

/* Frees the keys' names. */
void output_free(struct output *o);

struct output_stats {
    uint64_t entries, stores, failures;
};
void output_get_stats(struct output_stats *s); /* any thread */

#endif
