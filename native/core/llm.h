/* The text engine: decoder models, many sequences at once.
 *
 * One step takes one token of every running generation and slices of the prompts under way, runs
 * the forward pass, and samples. Requests join and leave between steps. Waiting
 * requests start in the order of admission (of one for many vectors one input after the other, which comes to the end
 * of the queue each time), as soon as there is a place in the batch and the KV arena can promise all
 * the pages that they may need; so what has started never fails for want of memory, whatever others do.
 *
 * A prompt is computed in slices of LLM_SLICE tokens, prompts taking turns. While any generation runs, a step
 * takes one slice (of one prompt, or the rests of several): this bounds how long a prompt delays the
 * next token of others. While none runs a step takes up to LLM_STEP_TOKENS. */
#ifndef INFER_LLM_H
#define INFER_LLM_H

#include "embed.h"
#include "kv.h"
#include "model.h"
#include "sampler.h"
#include "text.h"
#include "vocab.h"

enum llm_kind { LLM_GENERATE, LLM_SCORE, LLM_EMBED };
enum llm_finish { LLM_NOT_FINISHED, LLM_STOP, LLM_LENGTH, LLM_TIMEOUT, LLM_CANCELLED };
const char *llm_finish_name(enum llm_finish f); /* "stop", "length", "timeout", "cancelled" */

enum {
    LLM_MAX_STOPS = 16,
    LLM_MAX_STOP_BYTES = 4096, /* of each: they are kept while the request waits, where Redis' limits of memory do not see them */
    LLM_MAX_LOGPROBS = 20,  /* generate: alternatives of a token */
    LLM_MAX_TOP = 256,      /* score: alternatives at each position; a comparison with a reference wants many */
    LLM_MAX_BATCH = 64,     /* running requests at the most, whatever limits->max_batch says */
    LLM_SLICE = KV_PAGE,    /* tokens of a prompt in a step beside generations: whole pages, so that others can share
                             * them at once, and enough rows to pay for unpacking the weights (processor time
                             * per token, SmolLM2 Q4_1: 8 rows 1.9 ms, 16 1.5, 32 1.26, 64 1.1, 128 1.1, 256 1.1) */
    LLM_STEP_TOKENS = 128,  /* tokens of a step that computes prompts only: halves the number of barriers; a larger
                             * one would only make who arrives meanwhile wait longer */
    LLM_SCORE_ROWS = 64,    /* positions that LLM_SCORE requests advance in one step, together: each takes
                             * a row of n_vocab logits */
};

struct llm_params {
    enum llm_kind kind;
    int max_tokens;                 /* generate: at least 1 */
    struct sampler_params sampling; /* generate */
    struct text_stop *stops;        /* generate: owned by the request, freed with it (one block: texts too) */
    int n_stops;
    bool ignore_eos;                /* generate: an end token is a token like any other */
    int n_logprobs;                 /* generate: -1 none, 0.. alternatives; score: top n, 0 none */
    bool no_cache;                  /* neither takes anything from the prefix cache nor leaves anything there */
};

struct llm_request {
    struct request base;
    struct llm_params params;

    /* Prompt, then output: [n_prompt + n_output]. The output is all that the model produced: the end token
     * and the tokens of a stop text are in it (and in n_output), but not in the text. */
    uint32_t *tokens;
    int n_prompt, n_output, cap;
    int n_cached;       /* prompt tokens taken from the prefix cache */
    const void *source; /* where the last llm_request_append read its bytes: for traces, not to be read again */

    struct text_out text;      /* generate */
    enum llm_finish finish;    /* generate: why it ended, valid where base.error is INFER_OK */

    float *logprob;            /* generate with logprobs: [n_output]; score: [n_prompt-1] */
    uint32_t *top_ids;         /* [n_logprobs per row] row-major beside logprob */
    float *top_logprobs;
    float *embedding;          /* embed: [n_embd], normalized to length 1 */
    int n_embedding;

    /* the engine's own, between admit and done */
    struct kv_seq seq;
    struct sampler sampler;
    int n_step;                 /* tokens in the step under way */
    int cap_logprob;            /* rows allocated */
    uint64_t turn;              /* when a slice of it was last computed: the smallest is next */
    uint64_t last_output_at;
    struct llm_request *leader; /* computes the beginning of the same prompt: wait for it ... */
    int follow_to;              /* ... up to this position */
    struct embed_request *whole; /* llm_embed.c: the request that this one is a part of, or NULL */
    int input;                   /* which */
};

/* Loads a decoder model from g, which is the engine's from now on, also on failure. The mapping, weights, arena and
 * activations belong to the engine; engine->ops->free gives them back. Any thread. INFER_CONTEXT when n_ctx is more
 * than the model's own or than the budget holds. (engine_load picks the engine that a file needs.) */
struct engine *llm_load(struct gguf *g, const struct engine_config *config, struct infer_error *err);

bool llm_is(const struct engine *e);
const struct model *llm_model(const struct engine *e);
const struct vocab *llm_vocab(const struct engine *e);

/* How a request ends. Generate: base.error is INFER_OK and finish says why, also when it was
 * cancelled or timed out (with the output so far, which may be none). Score and embed: INFER_OK with the result, or
 * INFER_CANCELLED. Any kind: INFER_NOMODEL when the model went away, INFER_ERR when memory ran out. */

/* ---- building a request: the creator's thread, before engine_admit ---- */

/* Checks p and copies it; the stops are taken over on success only. */
struct llm_request *llm_request_create(struct engine *e, const struct llm_params *p, struct infer_error *err);

/* Appends packed little-endian uint32 tokens, reading `data` (any alignment) exactly once, now.
 * -1 with INFER_BADTOKENS (length, first bad position) or INFER_CONTEXT; `what` names the source in messages ("key 'x'").
 * Nothing is appended then. */
int llm_request_append(struct llm_request *r, const void *data, size_t bytes, const char *what, struct infer_error *err);

/* Takes back what was appended after the first n prompt tokens. */
void llm_request_truncate(struct llm_request *r, int n);

/* Only for requests that the caller owns: never admitted, or done. */
void llm_request_free(struct llm_request *r);

#endif
