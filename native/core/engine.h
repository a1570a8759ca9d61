/* What every engine (text, embeddings, later speech and images) looks like to the runtime and to the module.
 *
 * A request is created and admitted on the caller's thread (Redis' main thread),
 * computed in steps on the runtime's conductor thread, and handed back
 * through its `done` callback on the conductor. What is only true of one kind
 * of engine lives in the structure that embeds struct request as its first member.
 *
 * Ownership: the creator owns a request until engine_admit succeeds; then the
 * engine does, until `done` is called, which gives it back to the creator.
 * `done` is called exactly once for each admitted request, whatever happens
 * (end, cancel, timeout, unload). Callbacks must not block and must not call
 * back into the engine, except engine_cancel. */
#ifndef INFER_ENGINE_H
#define INFER_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "kernels.h"
#include "pool.h"
#include "stats.h"

struct engine;
struct request;
struct embed_request;

enum request_state { REQUEST_NEW, REQUEST_QUEUED, REQUEST_RUNNING, REQUEST_DONE };

struct request_timing { /* microseconds; times are platform_now_us, 0: not reached */
    uint64_t admitted_at, started_at, first_output_at, done_at;
    uint64_t admit_us; /* parsing and reading of the keys: set by the creator */
};

/* How far a request is, in tokens: written by the conductor once a step, read by any thread. */
struct request_progress {
    _Atomic int cached;   /* input tokens taken from the prefix cache */
    _Atomic int computed; /* input tokens that are done, those included */
    _Atomic int output;
};

struct request {
    uint64_t id;               /* unique in the process, set by engine_admit */
    struct engine *engine;
    bool is_embed;             /* it begins a struct embed_request (embed.h), not the engine's own kind */
    _Atomic int state;         /* enum request_state: any thread may read it */
    _Atomic bool cancelled;    /* set by engine_cancel; the step loop obeys */
    uint64_t timeout_us;       /* from admission; 0: none */
    struct request_timing timing;
    struct request_progress progress;
    struct infer_error error;  /* code INFER_OK: it succeeded */

    void (*output)(struct request *r); /* conductor: new output is there (a token); may be NULL */
    void (*done)(struct request *r);   /* conductor: finished; the creator owns it again */
    void *user;                        /* the creator's */

    struct request *next, *prev;       /* the engine's queues */
};

/* What was loaded: constant from then on. */
struct engine_info {
    char architecture[16]; /* general.architecture of the file */
    char title[96];        /* general.name, or "" */
    const char *quantization, *kernels; /* names; static storage */
    size_t n_parameters, weight_bytes;
    int n_ctx, n_ctx_train;      /* most tokens of one input: as loaded, and of the model */
    int n_vocab, n_embd;         /* ids are 0 .. n_vocab-1; vectors have n_embd elements */
    int n_layer, n_head, n_head_kv;
};

struct engine_ops {
    const char *name; /* "llm", "bert" */
    /* Checks and queues r; -1 and *err if refused (r stays the caller's). Any thread. */
    int (*admit)(struct engine *e, struct request *r, struct infer_error *err);
    /* The same for vectors. Any thread. */
    int (*embed)(struct engine *e, struct embed_request *r, struct infer_error *err);
    /* One step. Conductor. Returns false when there was nothing to do. */
    bool (*step)(struct engine *e, struct pool *p);
    /* Ends all requests as cancelled with INFER_NOMODEL. Conductor. */
    void (*abort)(struct engine *e);
    void (*get_stats)(struct engine *e, struct engine_stats *s); /* any thread */
    void (*free)(struct engine *e);
};

/* Since load; any thread reads them while the conductor adds. */
struct engine_latency {
    struct histogram queue, first_token, token, step; /* as in struct engine_stats */
    _Atomic uint64_t slowest_step_us;                 /* since engine_take_slowest_step */
};

struct engine {
    const struct engine_ops *ops;
    struct engine_info info;
    struct engine_latency latency;
    struct runtime *_Atomic runtime; /* set while it is registered */
    struct engine *next;             /* the runtime's list */

    _Atomic int n_open;                 /* requests admitted and not done */
    _Atomic size_t embed_bytes;         /* memory of those for vectors, see embed_request_open */
    struct request *_Atomic arrivals;   /* newest first, linked by next: any thread adds, the conductor takes all */
    struct request *queue, *queue_last; /* the conductor's: those that wait, linked both ways, the next one first */
};

/* Settings shared by all engines, which may change at run time. */
struct engine_limits {
    _Atomic int max_batch; /* running requests, 1 to LLM_MAX_BATCH */
    _Atomic int max_queue; /* requests beyond those; more are refused as BUSY */
};

struct engine_config {
    int n_ctx;               /* 0: the model's own, less if the budget holds less */
    size_t kv_bytes;         /* budget of the KV arena, if the engine has one; 0: ENGINE_DEFAULT_KV_BYTES */
    const struct kernels *kernels;
    struct engine_limits *limits; /* outlives the engine */
};

#define ENGINE_DEFAULT_KV_BYTES ((size_t)1 << 30)

/* Loads a model file with the engine that its architecture needs. NULL and *err on failure. Any thread. */
struct engine *engine_load(const char *path, const struct engine_config *config, struct infer_error *err);

/* ---- for engines: the way of a request in ---- */

/* Counts one more request as open, or refuses it as BUSY. Any thread; who ends a request lowers n_open. */
int engine_open(struct engine *e, int max_running, int max_waiting, struct infer_error *err);
/* Hands requests, linked from the newest to the oldest by next, to the conductor, which may end them at once. Any thread. */
void engine_arrive(struct engine *e, struct request *newest, struct request *oldest);
/* Moves what has arrived to the end of the queue, in the order of arrival. Conductor. */
void engine_take_arrivals(struct engine *e);
void engine_enqueue(struct engine *e, struct request *r); /* at the end. Conductor */
void engine_dequeue(struct engine *e, struct request *r); /* from anywhere. Conductor */

/* A step of the engine is through. Conductor. */
void engine_count_step(struct engine *e, uint64_t us);
/* The longest step since the last call, microseconds; 0: there was none. One caller. */
uint64_t engine_take_slowest_step(struct engine *e);

/* Gives r its id, admits it and wakes the conductor; never waits for a step. -1 with INFER_NOMODEL when
 * the engine is not registered (any more), or with what ops->admit (or ops->embed) found. Any thread. */
int engine_admit(struct engine *e, struct request *r, struct infer_error *err);
/* Asks for an early end; done() follows soon. Any thread, at any time before done returns. */
void engine_cancel(struct request *r);

/* ---- the runtime: one conductor thread and one pool for the whole process ---- */

struct runtime;

/* threads: 1 to POOL_MAX_THREADS; 0: one per processor, as far as that allows. scratch_bytes: what the kernel table in
 * use asks for, for each thread. */
struct runtime *runtime_create(int threads, size_t scratch_bytes, struct infer_error *err);
/* All engines must have been removed. Joins every thread. */
void runtime_free(struct runtime *rt);
/* Registers an engine, whose requests are computed from now on. Never waits. Any thread. */
void runtime_add(struct runtime *rt, struct engine *e);
int runtime_threads(const struct runtime *rt); /* any thread */
/* Threads of the last step: fewer while something else keeps processors busy. Any thread. */
int runtime_threads_now(const struct runtime *rt);

/* The two that wait, for up to one step: call them neither on the conductor (so not in a callback)
 * nor with a lock held that a done() or output() callback takes. */

/* Takes effect between steps; returns when it has. threads as above. */
int runtime_set_threads(struct runtime *rt, int threads, struct infer_error *err);
/* From now on engine_admit refuses; the engine's requests are ended (ops->abort), and no step of it is under way any more:
 * then it can be freed. No effect on an engine that is not registered. */
void runtime_remove(struct runtime *rt, struct engine *e);

#endif
