/* Requests for vectors: many inputs beside other requests of a decoder, step by step, ends before the end, and limits. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bert.h"
#include "bert_writer.h"
#include "check.h"
#include "engine_test.h"
#include "embed.h"
#include "kernels.h"
#include "llm.h"
#include "platform.h"

enum { VOCAB = 320, N_EMBD = 64, CTX = 2048, MAX_INPUT = 400 };

/* ---- memory that runs out: the linker puts this in calloc's place where it can (CMakeLists.txt) ---- */

#ifdef WRAP_CALLOC
static int callocs_left = -1; /* those that succeed; -1: all */

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    if (callocs_left == 0) return NULL;
    if (callocs_left > 0) callocs_left--;
    return __real_calloc(n, bytes);
}
#endif

/* ---- an engine, and requests to it ---- */

static char model_path[] = "/tmp/test_embed_XXXXXX";
static uint32_t tokens[MAX_INPUT + 8];

static void write_model(void)
{
    uint64_t seed = 3;
    for (int i = 0; i < MAX_INPUT + 8; i++) tokens[i] = (uint32_t)(random_u64(&seed) % 100); /* BERT's have so many */
    struct random_model o = random_model_defaults("llama");
    o.type = TYPE_Q8_0;
    o.n_vocab = VOCAB;
    int fd = mkstemp(model_path);
    if (fd < 0 || write_random_model(model_path, &o) != 0) perror(model_path), exit(1);
    close(fd);
}

static const struct kernels *best(void)
{
    const char *why;
    return kernels_select(&why);
}

static struct engine_limits limits;

static struct engine *load(int max_batch, int max_queue)
{
    struct infer_error err;
    atomic_store(&limits.max_batch, max_batch);
    atomic_store(&limits.max_queue, max_queue);
    struct engine_config c = {.kv_bytes = 1 << 24, .kernels = best(), .limits = &limits};
    struct engine *e = engine_load(model_path, &c, &err);
    if (!e) fprintf(stderr, "%s\n", err.message), exit(1);
    CHECK(e->info.n_ctx == CTX && e->info.n_embd == N_EMBD);
    return e;
}

static struct pool *make_pool(void)
{
    struct infer_error err;
    return pool_create(1, best()->scratch_bytes, "test", &err);
}

static void on_done(struct request *r)
{
    ++*(int *)r->user;
}

static void queue(struct request *r, int *n_done)
{
    *n_done = 0;
    r->user = n_done;
    r->done = on_done;
    r->timing.admitted_at = platform_now_us();
    atomic_store(&r->state, REQUEST_QUEUED);
}

struct client {
    struct embed_request *r;
    int n_done;
};

/* n_inputs of about n_tokens: i's tokens begin at tokens[i % 8], and every third input is shorter. */
static struct client prepare(struct engine *e, int n_inputs, int n_tokens)
{
    struct infer_error err;
    struct client c = {.r = embed_request_create(e, &err)};
    for (int i = 0; i < n_inputs; i++)
        if (embed_request_add(c.r, tokens + i % 8, (size_t)(i % 3 ? n_tokens : (n_tokens + 1) / 2) * 4, "input", &err) != 0)
            fprintf(stderr, "%s\n", err.message), exit(1);
    return c;
}

static int admit(struct engine *e, struct client *c, struct infer_error *err)
{
    queue(&c->r->base, &c->n_done);
    return e->ops->embed(e, c->r, err);
}

static void must_admit(struct engine *e, struct client *c)
{
    struct infer_error err = {0};
    int rc = admit(e, c, &err);
    CHECKF(rc == 0, "refused: %s", err.message);
}

static const float *vector(const struct client *c, int i)
{
    return c->r->vectors + (size_t)i * N_EMBD;
}

/* ---- many inputs ---- */

static void every_vector_is_that_of_its_input_alone(void)
{
    enum { N = 100 };
    struct pool *p = make_pool();
    for (int max_batch = 1; max_batch <= 16; max_batch += 15)
        for (int n_tokens = 1; n_tokens <= 200; n_tokens = 5 * n_tokens + 2) {
            struct engine *e = load(max_batch, 8);
            struct client all = prepare(e, N, n_tokens), again = prepare(e, N, n_tokens);
            must_admit(e, &all);
            must_admit(e, &again);
            CHECK(stats(e).requests == 2 * N && stats(e).queued == 2 * N);
            drain(e, p);
            CHECK(all.n_done == 1 && all.r->base.error.code == INFER_OK && again.n_done == 1);
            CHECK(atomic_load(&all.r->base.progress.computed) == all.r->n_tokens);
            CHECK(stats(e).finished == 2 * N && stats(e).prompt_tokens == 2 * (uint64_t)all.r->n_tokens);
            for (int i = 0; i < N; i++) {
                struct infer_error err;
                struct client one = {.r = embed_request_create(e, &err)};
                int n;
                const uint32_t *input = embed_input(all.r, i, &n);
                CHECK(embed_request_add(one.r, input, (size_t)n * 4, "input", &err) == 0);
                must_admit(e, &one);
                drain(e, p);
                CHECKF(memcmp(vector(&one, 0), vector(&all, i), N_EMBD * sizeof(float)) == 0, "input %d of %d tokens", i, n);
                CHECKF(memcmp(vector(&one, 0), vector(&again, i), N_EMBD * sizeof(float)) == 0, "input %d, again", i);
                embed_request_free(one.r);
            }
            check_idle(e);
            embed_request_free(all.r), embed_request_free(again.r);
            e->ops->free(e);
        }
    pool_free(p);
}

/* In as few steps as their tokens and the places in the batch allow. */
static void a_request_that_is_alone_fills_every_step(void)
{
    enum { N = 120, BATCH = 16 };
    static const int lengths[] = {1, 9, 30, 100, 300};
    struct pool *p = make_pool();
    struct engine *e = load(BATCH, 8);
    for (int i = 0; i < 5; i++) {
        struct client c = prepare(e, N, lengths[i]);
        int steps = 0, full = (c.r->n_tokens + LLM_STEP_TOKENS - 1) / LLM_STEP_TOKENS, places = (N + BATCH - 1) / BATCH;
        must_admit(e, &c);
        while (e->ops->step(e, p)) steps++;
        CHECKF(steps == (full > places ? full : places), "inputs of %d tokens, %d in all: %d steps", lengths[i],
               c.r->n_tokens, steps);
        CHECK(c.n_done == 1 && c.r->base.error.code == INFER_OK);
        embed_request_free(c.r);
    }
    check_idle(e);
    e->ops->free(e);
    pool_free(p);
}

static int steps_until(struct engine *e, struct pool *p, const int *n_done)
{
    int steps = 0;
    while (!*n_done && steps < 10000 && e->ops->step(e, p)) steps++;
    return steps;
}

/* Whoever comes waits for about a text of the other one's, with few places in the batch and with many. */
static void others_do_not_wait_for_thousands_of_inputs(void)
{
    enum { MANY = 1000, LENGTH = 100 };
    struct pool *p = make_pool();
    for (int max_batch = 1; max_batch <= 16; max_batch += 15) {
        struct infer_error err;
        struct engine *e = load(max_batch, 8);
        struct client many = prepare(e, MANY, LENGTH), one = prepare(e, 1, LENGTH), also_many = prepare(e, MANY, 10);
        must_admit(e, &many);
        for (int i = 0; i < 5; i++) CHECK(e->ops->step(e, p));
        must_admit(e, &one);
        int steps = steps_until(e, p, &one.n_done);
        CHECKF(one.n_done == 1 && steps <= 4, "batch of %d: one text took %d steps", max_batch, steps);

        struct llm_params g = {.kind = LLM_GENERATE, .max_tokens = 4, .n_logprobs = -1, .ignore_eos = true,
                               .sampling = {.top_p = 1, .repeat_penalty = 1}};
        struct llm_request *text = llm_request_create(e, &g, &err);
        CHECK(llm_request_append(text, tokens, 40, "the prompt", &err) == 0);
        int text_done;
        must_admit(e, &also_many); /* ahead of it in the queue: two have thousands now */
        queue(&text->base, &text_done);
        CHECK(e->ops->admit(e, &text->base, &err) == 0);
        steps = steps_until(e, p, &text_done);
        CHECKF(text_done == 1 && steps <= 8, "batch of %d: a generation took %d steps", max_batch, steps);
        CHECK(many.n_done == 0 && also_many.n_done == 0);

        struct client score = {0}; /* requests that come one after another all get their turn */
        for (int i = 0; i < 20; i++) {
            score = prepare(e, 1, 20);
            must_admit(e, &score);
            CHECK(steps_until(e, p, &score.n_done) <= 6);
            embed_request_free(score.r);
        }
        CHECK(many.n_done == 0 && also_many.n_done == 0);
        CHECK(atomic_load(&also_many.r->base.progress.computed) > 0);
        drain(e, p);
        CHECK(many.n_done == 1 && many.r->base.error.code == INFER_OK);
        CHECK(also_many.n_done == 1 && also_many.r->base.error.code == INFER_OK);
        check_idle(e);
        embed_request_free(many.r), embed_request_free(one.r), embed_request_free(also_many.r);
        llm_request_free(text);
        e->ops->free(e);
    }
    pool_free(p);
}

/* ---- limits ---- */

/* Admits requests until one is refused. */
static void fill(struct engine *e, struct pool *p, int n_inputs, int n_tokens, size_t request_bytes)
{
    enum { MOST = 100 };
    static struct client c[MOST];
    static uint32_t text[CTX];
    struct infer_error err = {0};
    int n = 0, admitted = (int)(embed_max_bytes(e) / request_bytes);
    CHECK(admitted > 4 && admitted < MOST);
    for (; n < MOST; n++) {
        c[n] = (struct client){.r = embed_request_create(e, &err)};
        for (int i = 0; i < n_inputs; i++)
            if (embed_request_add(c[n].r, text, (size_t)n_tokens * 4, "input", &err) != 0)
                fprintf(stderr, "%s\n", err.message), exit(1);
        CHECK(embed_request_bytes(c[n].r) == request_bytes);
        if (admit(e, &c[n], &err) != 0) break;
        CHECK(c[n].r->cap_tokens == c[n].r->n_tokens && c[n].r->cap_inputs == c[n].r->n_inputs);
        if (n < 2) CHECK(e->ops->step(e, p)); /* who runs and who waits makes no difference */
    }
    CHECKF(n == admitted && err.code == INFER_BUSY, "%d admitted, not %d: %s", n, admitted, err.message);
    REQUIRE(n < MOST);
    char most[64];
    snprintf(most, sizeof most, "the most is %zu: try again", embed_max_bytes(e));
    CHECKF(strstr(err.message, most) && strstr(err.message, "fewer texts"), "%s", err.message);
    CHECK(atomic_load(&e->n_open) == admitted && !c[n].r->vectors);
    struct client one = prepare(e, 1, 10);
    CHECK(embed_max_bytes(e) % request_bytes < embed_request_bytes(one.r) || admit(e, &one, &err) == 0); /* room is room */
    engine_cancel(&c[0].r->base);
    CHECK(e->ops->step(e, p) && c[0].n_done == 1);
    must_admit(e, &c[n++]); /* now that another one is gone */
    e->ops->abort(e);
    for (int i = 0; i < n; i++) {
        CHECK(c[i].n_done == 1);
        embed_request_free(c[i].r);
    }
    embed_request_free(one.r);
    check_idle(e);
}

static void memory_of_open_requests_has_a_limit(void)
{
    struct pool *p = make_pool();
    struct engine *e = load(4, 1024);
    CHECK(embed_max_bytes(e) == 4 * ((1u << 24) * 4 + (1u << 14) * (4 + 4 * (size_t)N_EMBD)));
    fill(e, p, 5000, CTX, 5000 * ((size_t)CTX * 4 + 4 + 4 * N_EMBD));
    fill(e, p, EMBED_MAX_INPUTS, 1, EMBED_MAX_INPUTS * (4 + 4 + 4 * (size_t)N_EMBD)); /* vectors count, too */
    e->ops->free(e);

    struct random_bert o = random_bert_defaults();
    struct infer_error err;
    size_t bytes;
    unsigned char *data = random_bert_bytes(&o, &bytes);
    struct engine_config config = {.kernels = best(), .limits = &limits};
    e = bert_load(gguf_open_memory(data, bytes, &err), &config, &err);
    REQUIRE(e && e->info.n_embd == N_EMBD);
    fill(e, p, EMBED_MAX_INPUTS, 100, EMBED_MAX_INPUTS * (400 + 4 + 4 * (size_t)N_EMBD));
    e->ops->free(e);
    free(data);
    pool_free(p);
}

static void the_largest_request_is_admitted_where_no_other_is(void)
{
    struct infer_error err = {0};
    struct pool *p = make_pool();
    struct engine *e = load(4, 1024);
    struct client c = {.r = embed_request_create(e, &err)};
    static uint32_t text[CTX];
    for (int i = 0; i < EMBED_MAX_INPUTS; i++)
        CHECK(embed_request_add(c.r, text, EMBED_MAX_TOKENS / EMBED_MAX_INPUTS * 4, "input", &err) == 0);
    CHECK(c.r->n_tokens == EMBED_MAX_TOKENS && embed_request_add(c.r, text, 4, "input", &err) == -1);
    must_admit(e, &c);
    CHECK(e->ops->step(e, p));
    struct client one = prepare(e, 1, 10);
    must_admit(e, &one); /* and does not shut others out */
    e->ops->abort(e);
    CHECK(c.n_done == 1 && one.n_done == 1);
    check_idle(e);
    embed_request_free(c.r), embed_request_free(one.r);
    e->ops->free(e);
    pool_free(p);
}

/* ---- ends before the end ---- */

/* One of 300 inputs ended after some steps, another that was not taken over yet. */
static void end_early(void (*due)(struct engine *e, struct client *c), int after, enum infer_code code, const char *names)
{
    enum { N = 300, LENGTH = 60 };
    struct pool *p = make_pool();
    struct engine *e = load(8, 8);
    struct client c = prepare(e, N, LENGTH), other = prepare(e, N, LENGTH);
    must_admit(e, &c);
    for (int i = 0; i < after; i++) CHECK(e->ops->step(e, p));
    must_admit(e, &other);
    int computed = atomic_load(&c.r->base.progress.computed);
    CHECK(computed == after * LLM_STEP_TOKENS && c.n_done == 0);
    uint64_t finished = stats(e).finished;
    due(e, &c);
    if (!c.n_done) e->ops->step(e, p);
    CHECK(c.n_done == 1 && c.r->base.error.code == code && atomic_load(&c.r->base.state) == REQUEST_DONE);
    CHECKF(strstr(c.r->base.error.message, names), "'%s' does not say '%s'", c.r->base.error.message, names);
    CHECK(atomic_load(&c.r->base.progress.computed) == computed);
    embed_request_free(c.r);
    struct engine_stats s = stats(e);
    uint64_t ended = s.cancelled + s.timed_out + s.failed;
    if (other.n_done) ended -= N; /* at unloading */
    CHECKF(ended == N - finished && (after == 0 || finished > 0), "%d inputs ended early, %d were finished", (int)ended,
           (int)finished);
    drain(e, p);
    CHECK(other.n_done == 1 && other.r->base.error.code == (code == INFER_NOMODEL ? INFER_NOMODEL : INFER_OK));
    embed_request_free(other.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(p);
}

static void cancel(struct engine *e, struct client *c)
{
    (void)e;
    engine_cancel(&c->r->base);
}

static void unload(struct engine *e, struct client *c)
{
    (void)c;
    e->ops->abort(e);
}

static void a_cancelled_request_ends_with_all_of_its_inputs(void)
{
    end_early(cancel, 0, INFER_CANCELLED, "cancelled after 0 of 15000 prompt tokens");
    end_early(cancel, 7, INFER_CANCELLED, "cancelled after 896 of 15000 prompt tokens");
}

static void unloading_ends_a_request_with_all_of_its_inputs(void)
{
    end_early(unload, 0, INFER_NOMODEL, "unloaded");
    end_early(unload, 7, INFER_NOMODEL, "unloaded");
}

static void a_request_that_is_late_ends_with_all_of_its_inputs(void)
{
    struct pool *p = make_pool();
    struct engine *e = load(4, 8);
    struct client c = prepare(e, 4000, 200);
    c.r->base.timeout_us = 20000;
    must_admit(e, &c);
    drain(e, p);
    CHECK(c.n_done == 1 && c.r->base.error.code == INFER_CANCELLED);
    CHECKF(strstr(c.r->base.error.message, "timed out after 20 ms with "), "%s", c.r->base.error.message);
    struct engine_stats s = stats(e);
    CHECK(s.timed_out > 0 && s.finished + s.timed_out == 4000 && s.failed + s.cancelled == 0);
    embed_request_free(c.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(p);
}

#ifdef WRAP_CALLOC
static void memory_that_runs_out_ends_the_request_with_an_error(void)
{
    enum { N = 300 };
    struct pool *p = make_pool();
    for (int after = 0; after < 40; after++) { /* allocations, of which the first is admission's */
        struct infer_error err = {0};
        struct engine *e = load(4, 8);
        struct client c = prepare(e, N, 60), other = prepare(e, 5, 60);
        callocs_left = after;
        int rc = admit(e, &c, &err);
        if (rc == 0) {
            drain(e, p);
            CHECK(c.n_done == 1);
            err = c.r->base.error;
        }
        callocs_left = -1;
        CHECK((rc == 0) == (after > 0));
        CHECKF(err.code == INFER_ERR && strstr(err.message, "emory"), "after %d: '%s'", after, err.message);
        if (rc == 0) CHECKF(stats(e).failed + stats(e).finished == N, "%d failed", (int)stats(e).failed);
        check_idle(e);
        must_admit(e, &other); /* the engine goes on */
        drain(e, p);
        CHECK(other.n_done == 1 && other.r->base.error.code == INFER_OK);
        check_idle(e);
        embed_request_free(c.r), embed_request_free(other.r);
        e->ops->free(e);
    }
    pool_free(p);
}
#endif

int main(void)
{
    write_model();
    RUN(every_vector_is_that_of_its_input_alone);
    RUN(a_request_that_is_alone_fills_every_step);
    RUN(others_do_not_wait_for_thousands_of_inputs);
    RUN(memory_of_open_requests_has_a_limit);
    RUN(the_largest_request_is_admitted_where_no_other_is);
    RUN(a_cancelled_request_ends_with_all_of_its_inputs);
    RUN(unloading_ends_a_request_with_all_of_its_inputs);
    RUN(a_request_that_is_late_ends_with_all_of_its_inputs);
#ifdef WRAP_CALLOC
    RUN(memory_that_runs_out_ends_the_request_with_an_error);
#endif
    unlink(model_path);
    return check_result();
}
