/* The text engine: decoder models, many sequences at once.
 *
 * One step takes one token of every running sequence and a slice of waiting
 * prompts (LLM_STEP_TOKENS tokens in all at the most), runs the forward pass, and samples.
 * Requests join and leave between steps. */
#ifndef INFER_LLM_H
#define INFER_LLM_H

#include "engine.h"
#include "kv.h"
#include "model.h"
#include "sampler.h"
#include "text.h"
#include "vocab.h"

enum llm_kind { LLM_GENERATE, LLM_SCORE, LLM_EMBED };
enum llm_finish { LLM_NOT_FINISHED, LLM_STOP, LLM_LENGTH, LLM_TIMEOUT, LLM_CANCELLED };
const char *llm_finish_name(enum llm_finish f); /* "stop", "length", "timeout", "cancelled" */

enum { LLM_MAX_STOPS = 16, LLM_MAX_LOGPROBS = 20 };

struct llm_params {
    enum llm_kind kind;
    int max_tokens;                 /* generate */
    struct sampler_params sampling; /* generate */
    struct text_stop *stops;        /* generate: owned by the request, freed with it (one block: texts too) */
    int n_stops;
    bool ignore_eos;
    int n_logprobs;                 /* generate: -1 none, 0.. alternatives; score: top n, 0 none */
    bool no_cache;
};

struct llm_request {
    struct request base;
    struct llm_params params;

    uint32_t *tokens;   /* prompt, then output: [n_prompt + n_output] */
    int n_prompt, n_output, cap;
    int n_cached;       /* prompt tokens taken from the prefix cache */

    struct text_out text;      /* generate */
    enum llm_finish finish;

    float *logprob;            /* generate with logprobs: [n_output]; score: [n_prompt-1] */
    uint32_t *top_ids;         /* [n_logprobs per row] row-major beside logprob */
    float *top_logprobs;
    float *embedding;          /* embed: [n_embd], normalized to length 1 */
    int n_embedding;

    /* the engine's own, between admit and done */
    struct kv_seq seq;
    struct sampler sampler;
    int n_computed;            /* tokens whose K/V are stored or in this step */
};

/* Settings shared by all engines that the module changes at run time. */
struct llm_limits {
    _Atomic int max_batch; /* running sequences */
    _Atomic int max_queue; /* waiting requests */
};

struct llm_config {
    int n_ctx;               /* 0: the model's own, less if the budget holds less */
    size_t kv_bytes;         /* budget of the KV arena */
    const struct kernels *kernels;
    struct llm_limits *limits;
};

struct llm_stats { /* all since load, read with llm_get_stats */
    struct kv_stats kv;
    int running, queued;
    uint64_t requests, finished, cancelled, timed_out, failed;
    uint64_t prompt_tokens, cached_tokens, output_tokens, steps;
};

/* Loads a model file. The mapping, weights, arena and activations belong to the engine;
 * engine->ops->free gives them back. Any thread. */
struct engine *llm_load(const char *path, const struct llm_config *config, struct infer_error *err);

const struct model *llm_model(const struct engine *e);
const struct vocab *llm_vocab(const struct engine *e);
int llm_n_ctx(const struct engine *e);
const char *llm_kernels(const struct engine *e); /* the table's name */
void llm_get_stats(struct engine *e, struct llm_stats *s); /* any thread */

/* ---- building a request: the creator's thread, before engine_admit ---- */

struct llm_request *llm_request_create(struct engine *e, const struct llm_params *p, struct infer_error *err);

/* Appends packed little-endian uint32 tokens, reading `data` (any alignment) exactly once, now.
 * -1 with INFER_BADTOKENS (length, first bad position) or INFER_CONTEXT; `what` names the source in messages ("key 'x'"). */
int llm_request_append(struct llm_request *r, const void *data, size_t bytes, const char *what, struct infer_error *err);

/* Only for requests that the caller owns: never admitted, or done. */
void llm_request_free(struct llm_request *r);

#endif
