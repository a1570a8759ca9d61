/* One step of the text engine: who runs, what is computed, and what becomes of it.
 *
 *     take_arrivals ─ drop_ended ─ start ─ plan ─ gather ─ decoder_forward ─ pick ─ deliver
 *
 * All of it on the conductor; pick is shared over the pool. The queue
 * and the running requests are the conductor's own, so there is no lock. A
 * request leaves through end(), whose last act is to call done: it is not touched after that. */
#include <stdatomic.h>
#include <string.h>

#include "llm_internal.h"
#include "platform.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- requests leave ---- */

enum outcome { FINISHED, CANCELLED, TIMED_OUT, FAILED };

static void running_remove(struct llm *e, struct llm_request *r)
{
    int at = 0;
    while (e->running[at] != r) at++;
    e->n_running--;
    memmove(&e->running[at], &e->running[at + 1], (size_t)(e->n_running - at) * sizeof(struct llm_request *));
    for (int i = 0; i < e->n_running; i++)
        if (e->running[i]->leader == r) e->running[i]->leader = NULL;
    atomic_store(&e->running_now, e->n_running);
}

/* The one way out, from the queue or from the batch. Gives r back to its creator. Where r is a part of a request for vectors
 * and ends without one, the inputs behind it end likewise. */
static void end(struct llm *e, struct llm_request *r, enum outcome outcome)
{
    int n_dropped = r->whole && outcome != FINISHED ? llm_embed_drop(r->whole) : 0;
    uint64_t n = 1 + (uint64_t)n_dropped;
    switch (outcome) {
    case FINISHED: atomic_fetch_add(&e->n_finished, n); break;
    case CANCELLED: atomic_fetch_add(&e->n_cancelled, n); break;
    case TIMED_OUT: atomic_fetch_add(&e->n_timed_out, n); break;
    case FAILED: atomic_fetch_add(&e->n_failed, n); break;
    }
    atomic_fetch_sub(&e->n_waiting, n_dropped);
    if (atomic_load(&r->base.state) == REQUEST_RUNNING) {
        running_remove(e, r);
    } else {
        engine_dequeue(&e->base, &r->base);
        atomic_fetch_sub(&e->n_waiting, 1);
    }
    kv_seq_end(&r->seq, r->tokens, !r->params.no_cache);
    sampler_free(&r->sampler);
    r->base.timing.done_at = platform_now_us();
    atomic_store(&r->base.state, REQUEST_DONE);
    if (!r->whole) atomic_fetch_sub(&e->base.n_open, 1);
    r->base.done(&r->base);
}

static void fail_memory(struct llm *e, struct llm_request *r)
{
    infer_fail(&r->base.error, INFER_ERR, "memory ran out after %d prompt and %d output tokens", r->n_prompt,
               r->n_output);
    end(e, r, FAILED);
}

/* Ends r before its time. A generation hands over what it has; others have nothing to hand over. */
static void end_early(struct llm *e, struct llm_request *r, enum outcome outcome)
{
    r->finish = outcome == CANCELLED ? LLM_CANCELLED : LLM_TIMEOUT;
    if (r->params.kind != LLM_GENERATE) {
        int n_tokens = r->whole ? atomic_load(&r->whole->base.progress.computed) : r->seq.n_tokens;
        int n_prompt = r->whole ? r->whole->n_tokens : r->n_prompt;
        if (outcome == CANCELLED)
            infer_fail(&r->base.error, INFER_CANCELLED, "cancelled after %d of %d prompt tokens", n_tokens, n_prompt);
        else
            infer_fail(&r->base.error, INFER_CANCELLED, "timed out after %llu ms with %d of %d prompt tokens computed",
                       (unsigned long long)(r->base.timeout_us / 1000), n_tokens, n_prompt);
    } else if (text_finish(&r->text) != 0) {
        fail_memory(e, r);
        return;
    }
    end(e, r, outcome);
}

/* True if r ended: cancelled or out of time. */
static bool end_if_due(struct llm *e, struct llm_request *r, uint64_t now)
{
    if (atomic_load(&r->base.cancelled) || (r->whole && atomic_load(&r->whole->base.cancelled))) {
        end_early(e, r, CANCELLED);
        return true;
    }
    if (r->base.timeout_us && now - r->base.timing.admitted_at >= r->base.timeout_us) {
        end_early(e, r, TIMED_OUT);
        return true;
    }
    return false;
}

static bool drop_ended(struct llm *e)
{
    uint64_t now = platform_now_us();
    bool any = false;
    for (struct request *q = e->base.queue, *next; q; q = next) {
        next = q->next;
        any |= end_if_due(e, (struct llm_request *)q, now);
    }
    for (int i = e->n_running - 1; i >= 0; i--) any |= end_if_due(e, e->running[i], now);
    return any;
}

/* ---- requests start ---- */

/* How many of the known tokens have to be computed in all. */
static int n_target(const struct llm_request *r)
{
    return r->params.kind == LLM_SCORE ? r->n_prompt - 1 : r->n_prompt + r->n_output;
}

/* A position of a prompt needs no computing if another one left it in the cache. LLM_SCORE needs the logits
 * of all of them. */
static bool may_match(const struct llm_request *r)
{
    return !r->params.no_cache && r->params.kind != LLM_SCORE;
}

static bool in_prompt(const struct llm_request *r)
{
    return r->n_output == 0;
}

/* Several prompts with the same beginning that come at once: the first computes it, the others wait
 * for its pages and take turns with the rest meanwhile. The leader started earlier, so no circle arises. */
static void find_leader(struct llm *e, struct llm_request *r)
{
    if (!may_match(r)) return;
    for (int i = 0; i < e->n_running; i++) {
        struct llm_request *a = e->running[i];
        if (a == r || a->params.no_cache || !in_prompt(a)) continue;
        int n = min_int(a->n_prompt, r->n_prompt - 1), common = 0;
        while (common < n && a->tokens[common] == r->tokens[common]) common++;
        common -= common % KV_PAGE;
        int known = r->leader ? r->follow_to : r->seq.n_tokens;
        if (common > known && common > a->seq.n_tokens) {
            r->leader = a;
            r->follow_to = common;
        }
    }
}

static void count_cached(struct llm *e, struct llm_request *r, int n)
{
    r->n_cached += n;
    atomic_store(&r->base.progress.cached, r->n_cached);
    atomic_fetch_add(&e->cached_tokens, (uint64_t)n);
}

static void start(struct llm *e)
{
    int max_batch = llm_max_batch(e);
    while (e->base.queue && e->n_running < max_batch) {
        struct llm_request *r = (struct llm_request *)e->base.queue;
        int n_max = llm_request_max_positions(r), cached = 0;
        if (n_max > 0) /* a score of one token has nothing to compute */
            cached = kv_seq_start(e->kv, &r->seq, r->tokens, r->n_prompt, n_max, may_match(r));
        if (cached == KV_NO_ROOM) break; /* those behind wait too: else a large one might wait for ever */
        if (cached == KV_NO_MEMORY || llm_request_make_room(r, &e->model->hp) != 0) {
            fail_memory(e, r);
            continue;
        }
        engine_dequeue(&e->base, &r->base);
        atomic_fetch_sub(&e->n_waiting, 1);
        e->running[e->n_running++] = r;
        atomic_store(&e->running_now, e->n_running);
        atomic_store(&r->base.state, REQUEST_RUNNING);
        r->base.timing.started_at = platform_now_us();
        if (r->whole) llm_embed_started(e, r);
        histogram_add(&e->base.latency.queue, r->base.timing.started_at - r->base.timing.admitted_at);
        atomic_fetch_add(&e->prompt_tokens, (uint64_t)r->n_prompt);
        count_cached(e, r, cached);
        find_leader(e, r);
        if (n_max == 0) end(e, r, FINISHED);
    }
}

/* ---- what a step computes ---- */

/* Whether r waits for the pages of its leader; takes them when they are there. */
static bool follows(struct llm *e, struct llm_request *r)
{
    if (r->leader && r->leader->seq.n_tokens < r->follow_to) return true;
    r->leader = NULL;
    if (may_match(r)) count_cached(e, r, kv_seq_match(&r->seq, r->tokens, r->n_prompt));
    return false;
}

/* Sets n_step of every running request. Generations first, one token each; then slices of
 * prompts, those first that have waited longest since their last one. */
static void plan(struct llm *e)
{
    int budget = LLM_STEP_TOKENS, score_rows = LLM_SCORE_ROWS;
    struct llm_request *prompts[LLM_MAX_BATCH];
    int n_prompts = 0;
    for (int i = 0; i < e->n_running; i++) {
        struct llm_request *r = e->running[i];
        r->n_step = in_prompt(r) ? 0 : 1;
        if (!in_prompt(r)) budget = LLM_SLICE;
        else if (!follows(e, r)) prompts[n_prompts++] = r;
    }
    while (budget > 0 && n_prompts > 0) {
        int next = 0;
        for (int i = 1; i < n_prompts; i++)
            if (prompts[i]->turn < prompts[next]->turn) next = i;
        struct llm_request *r = prompts[next];
        int n = min_int(min_int(LLM_SLICE, budget), n_target(r) - r->seq.n_tokens - r->n_step);
        if (r->params.kind == LLM_SCORE) {
            n = min_int(n, score_rows);
            score_rows -= n;
        }
        if (n == 0) {
            prompts[next] = prompts[--n_prompts];
            continue;
        }
        r->n_step += n;
        r->turn = ++e->turn;
        budget -= n;
    }
}

/* Fills the batch from the plan. */
static void gather(struct llm *e)
{
    e->n_batch = e->n_rows = 0;
    for (int i = 0; i < e->n_running; i++) {
        struct llm_request *r = e->running[i];
        if (kv_seq_reserve(&r->seq, r->seq.n_tokens + r->n_step) != 0) { /* only beyond its own promise */
            r->n_step = 0;
            infer_fail(&r->base.error, INFER_CONTEXT, "position %d is beyond the %d promised pages of the KV cache",
                       r->seq.n_tokens, r->seq.max_pages);
            continue;
        }
        for (int j = 0; j < r->n_step; j++) {
            int pos = r->seq.n_tokens + j;
            bool last = pos == r->n_prompt + r->n_output - 1;
            struct batch_token *t = &e->batch[e->n_batch++];
            *t = (struct batch_token){.id = r->tokens[pos], .pos = pos, .seq = &r->seq, .logits_row = -1};
            if (r->params.kind == LLM_SCORE || (r->params.kind == LLM_GENERATE && last)) {
                t->logits_row = e->n_rows;
                e->rows[e->n_rows++] = (struct llm_row){.request = r, .pos = pos};
            } else if (r->params.kind == LLM_EMBED && last) {
                t->hidden = r->embedding;
            }
        }
    }
}

/* ---- what becomes of the logits ---- */

/* One row: the next token, and log-probabilities where asked for. The request's own memory only. */
static void pick_row(struct llm *e, int i)
{
    struct llm_row *row = &e->rows[i];
    struct llm_request *r = row->request;
    const float *logits = e->logits + (size_t)i * (size_t)e->model->hp.n_vocab;
    int n_vocab = e->model->hp.n_vocab, n_top = r->params.n_logprobs > 0 ? r->params.n_logprobs : 0;
    int at = row->pos; /* of the result */
    uint32_t id = 0;
    if (r->params.kind == LLM_GENERATE) {
        row->id = sampler_pick(&r->sampler, logits, n_vocab, r->tokens, r->n_prompt + r->n_output);
        if (row->id < 0 || r->params.n_logprobs < 0) return;
        id = (uint32_t)row->id;
        at = r->n_output;
    } else {
        id = r->tokens[row->pos + 1];
    }
    r->logprob[at] = logprobs(logits, n_vocab, id, n_top, n_top ? r->top_ids + (size_t)at * (size_t)n_top : NULL,
                              n_top ? r->top_logprobs + (size_t)at * (size_t)n_top : NULL);
}

static void pick_some(struct pool_thread *t, void *arg)
{
    struct llm *e = arg;
    int begin, end_;
    while (pool_share(t, e->n_rows, 1, &begin, &end_))
        for (int i = begin; i < end_; i++) pick_row(e, i);
}

static void count_output(struct llm *e, struct llm_request *r, uint64_t now)
{
    if (!r->base.timing.first_output_at) {
        r->base.timing.first_output_at = now;
        histogram_add(&e->base.latency.first_token, now - r->base.timing.admitted_at);
    } else {
        histogram_add(&e->base.latency.token, now - r->last_output_at);
    }
    r->last_output_at = now;
}

/* Appends a token to a generation and ends it if that was the last one. */
static void deliver_token(struct llm *e, struct llm_request *r, int32_t id, uint64_t now)
{
    if (id < 0) {
        fail_memory(e, r);
        return;
    }
    r->tokens[r->n_prompt + r->n_output++] = (uint32_t)id;
    atomic_store(&r->base.progress.output, r->n_output);
    atomic_fetch_add(&e->output_tokens, 1);
    count_output(e, r, now);

    int stop_text = 0;
    if (!r->params.ignore_eos && vocab_is_end(e->vocab, (uint32_t)id)) {
        r->finish = LLM_STOP;
    } else {
        size_t len;
        const char *piece = vocab_piece(e->vocab, (uint32_t)id, &len);
        stop_text = text_append(&r->text, piece, len);
        if (stop_text > 0) r->finish = LLM_STOP;
        else if (r->n_output == r->params.max_tokens) r->finish = LLM_LENGTH;
    }
    if (stop_text < 0 || (r->finish != LLM_NOT_FINISHED && stop_text == 0 && text_finish(&r->text) != 0) ||
        (r->finish == LLM_NOT_FINISHED && llm_request_make_room(r, &e->model->hp) != 0)) {
        fail_memory(e, r);
        return;
    }
    if (r->base.output) r->base.output(&r->base);
    if (r->finish != LLM_NOT_FINISHED) end(e, r, FINISHED);
}

/* Hands the step's results out. */
static void deliver(struct llm *e)
{
    uint64_t now = platform_now_us();
    for (int i = 0; i < e->n_running; i++) {
        struct llm_request *r = e->running[i];
        r->seq.n_tokens += r->n_step;
        atomic_store(&r->base.progress.computed, min_int(r->seq.n_tokens, r->n_prompt));
        if (!r->params.no_cache) kv_seq_publish(&r->seq, r->tokens);
        if (r->whole) llm_embed_computed(e, r);
    }
    for (int i = 0; i < e->n_rows; i++)
        if (e->rows[i].request->params.kind == LLM_GENERATE)
            deliver_token(e, e->rows[i].request, e->rows[i].id, now);
    for (int i = e->n_running - 1; i >= 0; i--) { /* from the last, since they leave on the way */
        struct llm_request *r = e->running[i];
        if (r->base.error.code != INFER_OK) {
            end(e, r, FAILED);
        } else if (r->params.kind != LLM_GENERATE && r->seq.n_tokens == n_target(r)) {
            if (r->params.kind == LLM_EMBED) embed_normalize(r->embedding, r->n_embedding);
            count_output(e, r, now);
            end(e, r, FINISHED);
        }
    }
}

bool llm_step(struct engine *engine, struct pool *pool)
{
    struct llm *e = (struct llm *)engine;
    engine_take_arrivals(&e->base);
    if (!e->base.queue && e->n_running == 0) return false;
    uint64_t began = platform_now_us();
    bool ended = drop_ended(e);
    start(e);
    if (e->n_running == 0) return ended || e->base.queue;

    plan(e);
    gather(e);
    if (e->n_batch > 0) e->logits = decoder_forward(e->decoder, pool, e->batch, e->n_batch);
    if (e->n_rows > 1) pool_run(pool, pick_some, e);
    else if (e->n_rows == 1) pick_row(e, 0);
    /* Counted before a client can see what the step gave. */
    atomic_fetch_add(&e->steps, 1);
    engine_count_step(&e->base, platform_now_us() - began);
    deliver(e);
    return true;
}

void llm_abort(struct engine *engine)
{
    struct llm *e = (struct llm *)engine;
    engine_take_arrivals(&e->base);
    while (e->base.queue || e->n_running > 0) {
        struct llm_request *r = e->n_running > 0 ? e->running[0] : (struct llm_request *)e->base.queue;
        infer_fail(&r->base.error, INFER_NOMODEL, "the model was unloaded before the request was finished");
        r->finish = LLM_CANCELLED;
        end(e, r, CANCELLED);
    }
}
