/* The text engine on small random models. Tests that need to know what happens in which step make the steps
 * themselves; those about many clients use the runtime's own thread. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "engine_test.h"
#include "decoder.h"
#include "gguf_writer.h"
#include "kernels.h"
#include "llm.h"
#include "platform.h"

enum { VOCAB = 320 };

static uint64_t seed = 12345;
static uint32_t rng(uint32_t below)
{
    return (uint32_t)(random_u64(&seed) % below);
}

static const struct kernels *best(void)
{
    const char *why;
    const struct kernels *k = kernels_select(&why);
    if (!k) fprintf(stderr, "%s\n", why), exit(1);
    return k;
}

/* ---- an engine, and requests to it ---- */

static char model_path[64];

static void write_model(const char *architecture, enum tensor_type type)
{
    if (!model_path[0]) {
        strcpy(model_path, "/tmp/test_llm_XXXXXX");
        int fd = mkstemp(model_path);
        if (fd < 0) perror(model_path), exit(1);
        close(fd);
    }
    struct random_model o = random_model_defaults(architecture);
    o.type = type;
    o.n_vocab = VOCAB;
    if (write_random_model(model_path, &o) != 0) perror(model_path), exit(1);
}

static struct engine_limits limits;

static const struct hparams shape = {.n_layer = 2, .n_head_kv = 2, .k_dim = 16, .v_dim = 16}; /* of random_model_defaults */

static struct engine *load_with(const struct kernels *k, int max_batch, int max_queue, int pages)
{
    struct infer_error err;
    atomic_store(&limits.max_batch, max_batch);
    atomic_store(&limits.max_queue, max_queue);
    struct engine_config c = {.kv_bytes = (size_t)pages * kv_page_bytes(&shape), .kernels = k, .limits = &limits};
    struct engine *e = engine_load(model_path, &c, &err);
    if (!e) fprintf(stderr, "%s\n", err.message), exit(1);
    return e;
}

static struct engine *load(int max_batch, int max_queue, int pages)
{
    return load_with(best(), max_batch, max_queue, pages);
}

static struct pool *make_pool(int threads)
{
    struct infer_error err;
    struct pool *p = pool_create(threads, best()->scratch_bytes, "test", &err);
    if (!p) fprintf(stderr, "%s\n", err.message), exit(1);
    return p;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* What a client knows of its request. */
struct client {
    struct llm_request *r;
    int n_done;       /* under lock */
    int n_outputs;    /* conductor */
    int cancel_after; /* outputs; 0: not */
    size_t ready;
    bool text_shrank;
};

static void on_output(struct request *base)
{
    struct client *c = base->user;
    struct llm_request *r = (struct llm_request *)base;
    c->n_outputs++;
    c->text_shrank |= r->text.ready < c->ready;
    c->ready = r->text.ready;
    if (c->n_outputs == c->cancel_after) engine_cancel(base);
}

static void on_done(struct request *base)
{
    struct client *c = base->user;
    pthread_mutex_lock(&lock);
    c->n_done++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_for(struct client *c)
{
    pthread_mutex_lock(&lock);
    while (!c->n_done) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static struct llm_params generate(int max_tokens)
{
    return (struct llm_params){.kind = LLM_GENERATE, .max_tokens = max_tokens, .n_logprobs = -1, .ignore_eos = true,
                               .sampling = {.top_p = 1, .repeat_penalty = 1}};
}

static struct client prepare(struct engine *e, const uint32_t *tokens, int n, const struct llm_params *p)
{
    struct infer_error err;
    struct client c = {.r = llm_request_create(e, p, &err)};
    if (!c.r || llm_request_append(c.r, tokens, (size_t)n * 4, "the prompt", &err) != 0)
        fprintf(stderr, "%s\n", err.message), exit(1);
    c.r->base.output = on_output;
    c.r->base.done = on_done;
    return c;
}

/* Admission without a runtime. */
static int admit(struct engine *e, struct client *c, struct infer_error *err)
{
    c->r->base.user = c;
    c->r->base.timing.admitted_at = platform_now_us();
    atomic_store(&c->r->base.state, REQUEST_QUEUED);
    return e->ops->admit(e, &c->r->base, err);
}

static void must_admit(struct engine *e, struct client *c)
{
    struct infer_error err = {0};
    int rc = admit(e, c, &err);
    CHECKF(rc == 0, "refused: %s", err.message);
}

static void random_prompt(uint32_t *tokens, int n)
{
    for (int i = 0; i < n; i++) tokens[i] = rng(VOCAB - 1);
}

/* ---- the slow way: the decoder, one token after the other ---- */

struct reference {
    struct model *m;
    struct kv_cache *kv;
    struct kv_seq seq;
    struct decoder *d;
    struct pool *pool;
    float hidden[64];
};

static void reference_open(struct reference *f, int n_max)
{
    struct infer_error err;
    f->m = model_load(gguf_open(model_path, &err), &err);
    f->kv = kv_create(&f->m->hp, 64 * kv_page_bytes(&f->m->hp), &err);
    f->d = decoder_create(f->m, &kernels_scalar, 1, 1, &err);
    f->pool = pool_create(1, kernels_scalar.scratch_bytes, "slow", &err);
    kv_seq_start(f->kv, &f->seq, NULL, 0, n_max, 0);
}

static const float *reference_token(struct reference *f, uint32_t id)
{
    kv_seq_reserve(&f->seq, f->seq.n_tokens + 1);
    struct batch_token t = {.id = id, .pos = f->seq.n_tokens, .seq = &f->seq, .logits_row = 0, .hidden = f->hidden};
    const float *logits = decoder_forward(f->d, f->pool, &t, 1);
    f->seq.n_tokens++;
    return logits;
}

static void reference_close(struct reference *f)
{
    kv_seq_end(&f->seq, NULL, 0);
    pool_free(f->pool);
    decoder_free(f->d);
    kv_free(f->kv);
    model_free(f->m);
}

/* ---- results ---- */

static void generation_equals_the_decoder_token_by_token(void)
{
    static uint32_t prompt[300];
    random_prompt(prompt, 300);
    struct llm_params p = generate(40);
    p.n_logprobs = 3;
    struct engine *e = load(4, 4, 64);
    struct pool *pool = make_pool(2);
    struct client c = prepare(e, prompt, 300, &p);
    must_admit(e, &c);
    drain(e, pool);
    CHECK(c.n_done == 1 && c.n_outputs == 40 && c.r->n_output == 40);
    CHECK(c.r->base.error.code == INFER_OK && c.r->finish == LLM_LENGTH);

    struct reference f;
    reference_open(&f, 340);
    const float *logits = NULL;
    for (int i = 0; i < 300; i++) logits = reference_token(&f, prompt[i]);
    for (int i = 0; i < 40; i++) {
        uint32_t id = (uint32_t)kernels_scalar.argmax(logits, VOCAB), top[3];
        float values[3];
        CHECKF(c.r->tokens[300 + i] == id, "token %d is %u, not %u", i, c.r->tokens[300 + i], id);
        CHECK(c.r->logprob[i] == logprobs(logits, VOCAB, id, 3, top, values));
        CHECK(memcmp(c.r->top_ids + 3 * i, top, sizeof top) == 0);
        CHECK(memcmp(c.r->top_logprobs + 3 * i, values, sizeof values) == 0);
        logits = reference_token(&f, id);
    }
    reference_close(&f);
    llm_request_free(c.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void score_and_embed_equal_the_decoder_token_by_token(void)
{
    enum { N = 301 };
    static uint32_t prompt[N];
    random_prompt(prompt, N);
    struct engine *e = load(8, 8, 64);
    struct pool *pool = make_pool(2);
    struct llm_params score = {.kind = LLM_SCORE, .n_logprobs = 2}, embed = {.kind = LLM_EMBED};
    struct client a = prepare(e, prompt, N, &score), b = prepare(e, prompt, N, &embed);
    struct client one = prepare(e, prompt, 1, &score);
    must_admit(e, &a);
    must_admit(e, &b);
    must_admit(e, &one);
    drain(e, pool);
    CHECK(a.n_done == 1 && b.n_done == 1 && one.n_done == 1);
    CHECK(a.r->base.error.code == INFER_OK && b.r->base.error.code == INFER_OK && one.r->base.error.code == INFER_OK);
    struct client again = prepare(e, prompt, N, &score); /* now that the prefix is known */
    must_admit(e, &again);
    drain(e, pool);

    struct reference f;
    reference_open(&f, N);
    for (int i = 0; i < N; i++) {
        const float *logits = reference_token(&f, prompt[i]);
        if (i == N - 1) break;
        uint32_t top[2];
        float values[2];
        CHECK(a.r->logprob[i] == logprobs(logits, VOCAB, prompt[i + 1], 2, top, values));
        CHECK(again.r->logprob[i] == a.r->logprob[i]);
        CHECK(memcmp(a.r->top_ids + 2 * i, top, sizeof top) == 0);
        CHECK(memcmp(a.r->top_logprobs + 2 * i, values, sizeof values) == 0);
    }
    double length = 0, off = 0, norm = 0;
    for (int i = 0; i < 64; i++) length += (double)f.hidden[i] * (double)f.hidden[i];
    for (int i = 0; i < 64; i++) {
        off = fmax(off, fabs((double)b.r->embedding[i] - (double)f.hidden[i] / sqrt(length)));
        norm += (double)b.r->embedding[i] * (double)b.r->embedding[i];
    }
    CHECK(b.r->n_embedding == 64 && off < 1e-6 && fabs(norm - 1) < 1e-5);
    reference_close(&f);
    llm_request_free(a.r);
    llm_request_free(b.r);
    llm_request_free(one.r);
    llm_request_free(again.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

enum { MANY = 16, LONGEST = 260, OUTPUT = 24 };

static struct {
    uint32_t prompt[LONGEST];
    int n;
    struct llm_params params;
    uint32_t wanted[OUTPUT];
} many[MANY];

/* Prompts of many lengths, some with a common beginning, greedy and not. */
static void fill_many(void)
{
    for (int i = 0; i < MANY; i++) {
        many[i].n = i == 0 ? 1 : i == 1 ? 64 : i == 2 ? 65 : 1 + (int)rng(LONGEST - 1);
        random_prompt(many[i].prompt, LONGEST);
        if (i % 3 == 0 && i > 3) memcpy(many[i].prompt, many[3].prompt, 4 * (100 + rng(150)));
        many[i].params = generate(OUTPUT);
        if (i % 2) {
            many[i].params.sampling = (struct sampler_params){
                .temperature = 1.1f, .top_k = i % 4 == 1 ? 40 : 0, .top_p = 0.95f, .min_p = 0.01f,
                .repeat_penalty = 1.1f, .seed = (uint64_t)i};
        }
    }
}

static void run_many(struct engine *e, struct pool *p, bool at_once, bool no_cache, bool record, const char *how)
{
    struct client c[MANY];
    for (int i = 0; i < MANY; i++) {
        many[i].params.no_cache = no_cache;
        c[i] = prepare(e, many[i].prompt, many[i].n, &many[i].params);
        must_admit(e, &c[i]);
        if (!at_once) drain(e, p);
    }
    drain(e, p);
    for (int i = 0; i < MANY; i++) {
        const uint32_t *out = c[i].r->tokens + c[i].r->n_prompt;
        CHECK(c[i].n_done == 1 && c[i].r->n_output == OUTPUT && !c[i].text_shrank);
        if (record) memcpy(many[i].wanted, out, sizeof many[i].wanted);
        CHECKF(memcmp(out, many[i].wanted, sizeof many[i].wanted) == 0, "%s: request %d differs", how, i);
        if (no_cache) CHECK(c[i].r->n_cached == 0);
        llm_request_free(c[i].r);
    }
    check_idle(e);
}

static void tokens_do_not_depend_on_company_cache_threads_or_kernels(void)
{
    fill_many();
    struct engine *e = load(1, 100, 200);
    struct pool *one = make_pool(1);
    run_many(e, one, false, true, true, "alone, no cache");
    run_many(e, one, false, false, false, "alone, cold");
    run_many(e, one, false, false, false, "alone, warm");
    e->ops->free(e);
    for (int threads = 1; threads <= 3; threads++) {
        struct pool *p = make_pool(threads);
        e = load(MANY, 100, 200);
        run_many(e, p, true, false, false, "at once, cold");
        run_many(e, p, true, false, false, "at once, warm");
        run_many(e, p, true, true, false, "at once, no cache");
        struct engine_stats s;
        e->ops->get_stats(e, &s);
        CHECK(s.cached_tokens > 1000);
        e->ops->free(e);
        e = load(7, 100, 20); /* pages run out: requests wait, prefixes go */
        run_many(e, p, true, false, false, "few pages");
        run_many(e, p, true, false, false, "few pages, again");
        e->ops->free(e);
        pool_free(p);
    }
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        struct infer_error err;
        struct pool *p = pool_create(2, (*k)->scratch_bytes, "test", &err);
        e = load_with(*k, MANY, 100, 200);
        run_many(e, p, true, false, false, (*k)->name);
        e->ops->free(e);
        pool_free(p);
    }
    pool_free(one);
}

static void seeds_decide_and_nothing_else(void)
{
    struct engine *e = load(4, 8, 64);
    struct pool *pool = make_pool(1);
    uint32_t prompt[5] = {1, 2, 3, 4, 5};
    struct llm_params p = generate(32);
    p.sampling.temperature = 1.5f;
    struct client c[3];
    for (int i = 0; i < 3; i++) {
        p.sampling.seed = i == 2 ? 8 : 7;
        c[i] = prepare(e, prompt, 5, &p);
        must_admit(e, &c[i]);
    }
    drain(e, pool);
    CHECK(memcmp(c[0].r->tokens, c[1].r->tokens, 4 * 37) == 0);
    CHECK(memcmp(c[0].r->tokens, c[2].r->tokens, 4 * 37) != 0);
    for (int i = 0; i < 3; i++) llm_request_free(c[i].r);
    e->ops->free(e);
    pool_free(pool);
}

static void an_end_token_stops_and_is_the_last_output_without_text(void)
{
    struct engine *e = load(1, 1, 64);
    struct pool *pool = make_pool(2);
    uint32_t prompt[3] = {10, 20, 30};
    struct llm_params p = generate(1500);
    p.sampling.temperature = 30; /* nearly uniform: the end comes once in a few hundred tokens */
    p.sampling.seed = 4;
    struct client on = prepare(e, prompt, 3, &p);
    must_admit(e, &on);
    drain(e, pool);
    int at = 0;
    while (at < 1500 && on.r->tokens[3 + at] != VOCAB - 1) at++;
    REQUIRE(at > 0 && at < 1499); /* else choose another seed */
    CHECK(on.r->n_output == 1500 && on.r->finish == LLM_LENGTH);

    p.ignore_eos = false;
    struct client off = prepare(e, prompt, 3, &p);
    must_admit(e, &off);
    drain(e, pool);
    CHECK(off.r->finish == LLM_STOP && off.r->n_output == at + 1 && off.r->tokens[3 + at] == VOCAB - 1);
    CHECK(memcmp(on.r->tokens, off.r->tokens, 4 * (size_t)(3 + at + 1)) == 0);
    CHECK(off.r->text.ready == off.r->text.len && off.r->text.len > 0);

    p.max_tokens = at + 1; /* both at once: the end token wins */
    struct client both = prepare(e, prompt, 3, &p);
    must_admit(e, &both);
    drain(e, pool);
    CHECK(both.r->finish == LLM_STOP && both.r->n_output == at + 1);
    llm_request_free(on.r);
    llm_request_free(off.r);
    llm_request_free(both.r);
    e->ops->free(e);
    pool_free(pool);
}

static void a_stop_text_ends_the_text_before_it(void)
{
    struct engine *e = load(1, 1, 64);
    struct pool *pool = make_pool(1);
    uint32_t prompt[3] = {100, 101, 102};
    struct llm_params p = generate(100);
    p.sampling.temperature = 1.3f;
    p.sampling.seed = 3;
    struct client all = prepare(e, prompt, 3, &p);
    must_admit(e, &all);
    drain(e, pool);
    REQUIRE(all.r->text.ready > 40);

    /* nine bytes from the middle, longer than most tokens; one allocation holds array and text */
    struct text_stop *stop = malloc(sizeof *stop + 9);
    memcpy(stop + 1, all.r->text.bytes + 30, 9);
    *stop = (struct text_stop){.text = (char *)(stop + 1), .len = 9};
    const char *first = memmem(all.r->text.bytes, all.r->text.ready, stop->text, 9);
    p.stops = stop;
    p.n_stops = 1;
    struct client cut = prepare(e, prompt, 3, &p);
    must_admit(e, &cut);
    drain(e, pool);
    size_t len = (size_t)(first - all.r->text.bytes);
    CHECK(cut.r->finish == LLM_STOP && cut.r->n_output < 100);
    CHECKF(cut.r->text.ready == len && memcmp(cut.r->text.bytes, all.r->text.bytes, len) == 0,
           "the text has %zu bytes, not %zu", cut.r->text.ready, len);
    CHECK(memcmp(cut.r->tokens, all.r->tokens, 4 * (size_t)(3 + cut.r->n_output)) == 0);
    llm_request_free(all.r);
    llm_request_free(cut.r);
    e->ops->free(e);
    pool_free(pool);
}

/* ---- steps ---- */

static void a_long_prompt_delays_a_generation_by_one_slice_a_step(void)
{
    enum { N = 1000 };
    static uint32_t prompt[N], other[N];
    random_prompt(prompt, N);
    random_prompt(other, N);
    struct engine *e = load(4, 4, 100);
    struct pool *pool = make_pool(2);
    struct llm_params p = generate(60);
    struct client a = prepare(e, prompt, 1, &p), b = prepare(e, prompt, N, &p), c = prepare(e, other, N, &p);
    must_admit(e, &a);
    e->ops->step(e, pool);
    CHECK(a.r->n_output == 1);
    must_admit(e, &b);
    must_admit(e, &c);
    int ahead = 0;
    for (int step = 2; b.r->n_output == 0 || c.r->n_output == 0; step++) {
        int before = b.r->seq.n_tokens + c.r->seq.n_tokens;
        REQUIRE(e->ops->step(e, pool));
        CHECK(a.r->n_output == step); /* every step, whatever else is computed */
        int now = b.r->seq.n_tokens + c.r->seq.n_tokens, decoded = (b.r->n_output > 1) + (c.r->n_output > 1);
        CHECK(now - before <= LLM_SLICE + decoded);
        int lead = abs(b.r->seq.n_tokens - c.r->seq.n_tokens);
        ahead = lead > ahead ? lead : ahead;
        REQUIRE(step < 60);
    }
    CHECKF(ahead <= 2 * LLM_SLICE, "one of two equal prompts was %d tokens ahead", ahead);
    drain(e, pool);
    llm_request_free(a.r);
    llm_request_free(b.r);
    llm_request_free(c.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void equal_prompts_at_once_are_computed_and_stored_once(void)
{
    enum { N = 16, PREFIX = 10 * KV_PAGE, TAIL = 5 };
    uint32_t prompt[PREFIX + TAIL];
    random_prompt(prompt, PREFIX + TAIL);
    struct engine *e = load(N, N, 400);
    struct pool *pool = make_pool(2);
    struct llm_params p = generate(4);
    struct client c[N];
    for (int i = 0; i < N; i++) {
        prompt[PREFIX] = (uint32_t)i;
        c[i] = prepare(e, prompt, PREFIX + TAIL, &p);
        must_admit(e, &c[i]);
    }
    struct engine_stats s;
    do {
        e->ops->step(e, pool);
        e->ops->get_stats(e, &s);
        CHECKF(s.kv.pages_active <= PREFIX / KV_PAGE + N, "%d pages", s.kv.pages_active);
    } while (!c[0].r->n_output);
    drain(e, pool);
    e->ops->get_stats(e, &s);
    CHECK(s.cached_tokens == (N - 1) * PREFIX);
    for (int i = 0; i < N; i++) {
        CHECK(c[i].r->n_cached == (i ? PREFIX : 0));
        llm_request_free(c[i].r);
    }
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void a_prompt_that_followed_a_cancelled_one_goes_on_alone(void)
{
    enum { PREFIX = 10 * KV_PAGE };
    uint32_t prompt[PREFIX];
    random_prompt(prompt, PREFIX);
    struct engine *e = load(4, 4, 100);
    struct pool *pool = make_pool(1);
    struct llm_params p = generate(4);
    struct client a = prepare(e, prompt, PREFIX, &p), b = prepare(e, prompt, PREFIX, &p);
    must_admit(e, &a);
    must_admit(e, &b);
    e->ops->step(e, pool);
    CHECK(a.r->seq.n_tokens == LLM_STEP_TOKENS && b.r->seq.n_tokens == 0);
    engine_cancel(&a.r->base);
    drain(e, pool);
    CHECK(a.n_done == 1 && a.r->finish == LLM_CANCELLED && a.r->n_output == 0);
    CHECK(b.n_done == 1 && b.r->finish == LLM_LENGTH && b.r->n_cached == LLM_STEP_TOKENS);
    llm_request_free(a.r);
    llm_request_free(b.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

/* Ends a request at every stage, by `due`, which is called when the stage is reached. */
static void end_at_every_stage(void (*due)(struct client *c), enum llm_finish finish)
{
    enum { N = 600 };
    static uint32_t prompt[N];
    random_prompt(prompt, N);
    struct engine *e = load(1, 4, 64);
    struct pool *pool = make_pool(2);
    struct llm_params kinds[] = {generate(50), {.kind = LLM_SCORE}, {.kind = LLM_EMBED}};
    for (int kind = 0; kind < 3; kind++)
        for (int stage = 0; stage < 3; stage++) { /* queued, in the prompt, generating */
            if (stage == 2 && kind) continue;
            struct llm_params p = kinds[kind], one = generate(20);
            p.no_cache = true; /* the same prompt again and again */
            struct client first = prepare(e, prompt, 2, &one), c = prepare(e, prompt, N, &p);
            if (stage == 0) must_admit(e, &first);
            must_admit(e, &c);
            e->ops->step(e, pool);
            while (stage == 2 && c.r->n_output < 3) e->ops->step(e, pool);
            CHECK(c.r->base.state == (stage ? REQUEST_RUNNING : REQUEST_QUEUED) && c.n_done == 0);
            CHECK((c.r->seq.n_tokens > 0) == (stage > 0));
            int n_output = c.r->n_output;
            due(&c);
            e->ops->step(e, pool);
            CHECK(c.n_done == 1 && c.r->n_output == n_output && c.r->base.state == REQUEST_DONE);
            if (kind == 0) CHECK(c.r->base.error.code == INFER_OK && c.r->finish == finish);
            else CHECK(c.r->base.error.code == INFER_CANCELLED && strstr(c.r->base.error.message, "600"));
            drain(e, pool);
            CHECK(c.n_done == 1 && first.n_done == (stage == 0));
            llm_request_free(first.r);
            llm_request_free(c.r);
            check_idle(e);
        }
    struct engine_stats s;
    e->ops->get_stats(e, &s);
    CHECK((finish == LLM_CANCELLED ? s.cancelled : s.timed_out) == 7);
    e->ops->free(e);
    pool_free(pool);
}

static void cancel_it(struct client *c)
{
    engine_cancel(&c->r->base);
}

static void let_time_pass(struct client *c)
{
    c->r->base.timeout_us = 1000;
    c->r->base.timing.admitted_at -= 1001;
}

static void cancel_holds_at_every_stage(void)
{
    end_at_every_stage(cancel_it, LLM_CANCELLED);
}

static void timeout_holds_at_every_stage(void)
{
    end_at_every_stage(let_time_pass, LLM_TIMEOUT);
}

static void unloading_ends_all_requests_once_with_nomodel(void)
{
    uint32_t prompt[200];
    random_prompt(prompt, 200);
    struct engine *e = load(2, 8, 64);
    struct pool *pool = make_pool(1);
    struct llm_params p = generate(50);
    struct client c[5];
    for (int i = 0; i < 4; i++) {
        c[i] = prepare(e, prompt, 200, &p);
        must_admit(e, &c[i]);
    }
    for (int i = 0; i < 3; i++) e->ops->step(e, pool);
    c[4] = prepare(e, prompt, 200, &p); /* not even taken over */
    must_admit(e, &c[4]);
    e->ops->abort(e);
    for (int i = 0; i < 5; i++) {
        CHECK(c[i].n_done == 1 && c[i].r->base.error.code == INFER_NOMODEL);
        llm_request_free(c[i].r);
    }
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

/* ---- limits ---- */

static void requests_beyond_the_queue_are_busy(void)
{
    uint32_t prompt[4] = {1, 2, 3, 4};
    struct engine *e = load(2, 3, 64);
    struct pool *pool = make_pool(1);
    struct llm_params p = generate(8);
    struct client c[6];
    struct infer_error err = {0};
    for (int i = 0; i < 6; i++) {
        c[i] = prepare(e, prompt, 4, &p);
        CHECK(admit(e, &c[i], &err) == (i < 5 ? 0 : -1));
        if (i == 2) e->ops->step(e, pool); /* who runs and who waits makes no difference */
    }
    CHECK(err.code == INFER_BUSY && strstr(err.message, "2 running and 3 waiting"));
    drain(e, pool);
    CHECK(admit(e, &c[5], &err) == 0);
    drain(e, pool);
    for (int i = 0; i < 6; i++) {
        CHECK(c[i].n_done == 1);
        llm_request_free(c[i].r);
    }
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void requests_wait_for_pages_and_none_fails(void)
{
    enum { N = 12 };
    static uint32_t prompt[N][300];
    struct engine *e = load(8, 100, 7); /* each of them needs 6 pages in the end, 5 at first */
    struct pool *pool = make_pool(2);
    struct llm_params p = generate(60);
    struct client c[N];
    for (int i = 0; i < N; i++) {
        random_prompt(prompt[i], 300);
        c[i] = prepare(e, prompt[i], i % 4 == 3 ? 20 : 300, &p);
        must_admit(e, &c[i]);
    }
    drain(e, pool);
    for (int i = 0; i < N; i++) {
        CHECK(c[i].n_done == 1 && c[i].r->n_output == 60 && c[i].r->base.error.code == INFER_OK);
        llm_request_free(c[i].r);
    }
    struct engine_stats s;
    e->ops->get_stats(e, &s);
    CHECK(s.kv.evicted_pages > 20 && s.finished == N);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void what_cannot_fit_is_refused_with_its_numbers(void)
{
    static uint32_t prompt[2048];
    random_prompt(prompt, 2048);
    struct infer_error err = {0};
    struct engine *e = load(1, 1, 4);
    CHECK(e->info.n_ctx == 4 * KV_PAGE); /* less than the model's 2048: the budget holds no more */
    struct llm_params p = generate(57);
    struct client c = prepare(e, prompt, 200, &p);
    CHECK(admit(e, &c, &err) == -1 && err.code == INFER_CONTEXT);
    CHECK(strstr(err.message, "200") && strstr(err.message, "57") && strstr(err.message, "256"));
    CHECK(llm_request_append(c.r, prompt, 57 * 4, "key 'x'", &err) == -1 && err.code == INFER_CONTEXT);
    CHECK(strstr(err.message, "key 'x'") && strstr(err.message, "257") && c.r->n_prompt == 200);
    llm_request_free(c.r);

    p = generate(56); /* fits exactly */
    c = prepare(e, prompt, 200, &p);
    struct pool *pool = make_pool(1);
    must_admit(e, &c);
    drain(e, pool);
    CHECK(c.r->n_output == 56);
    llm_request_free(c.r);

    c = prepare(e, prompt, 0, &p);
    CHECK(admit(e, &c, &err) == -1 && err.code == INFER_BADTOKENS && strstr(err.message, "empty"));
    llm_request_free(c.r);
    check_idle(e);
    e->ops->free(e);
    pool_free(pool);
}

static void a_context_beyond_model_or_budget_is_refused(void)
{
    struct infer_error err = {0};
    struct engine_config c = {.n_ctx = 2049, .kernels = best(), .limits = &limits};
    CHECK(engine_load(model_path, &c, &err) == NULL && err.code == INFER_CONTEXT);
    CHECK(strstr(err.message, "2049") && strstr(err.message, "2048"));
    c.n_ctx = 2048;
    c.kv_bytes = 1 << 18;
    CHECK(engine_load(model_path, &c, &err) == NULL && err.code == INFER_CONTEXT && strstr(err.message, "262144"));
    c.kv_bytes = 100;
    CHECK(engine_load(model_path, &c, &err) == NULL && err.code == INFER_CONTEXT);
    c.n_ctx = 100;
    c.kv_bytes = 0;
    struct engine *e = engine_load(model_path, &c, &err);
    REQUIRE(e);
    CHECK(e->info.n_ctx == 100);
    e->ops->free(e);
    c.n_ctx = 0;
    e = engine_load(model_path, &c, &err);
    REQUIRE(e);
    CHECK(e->info.n_ctx == 2048);
    e->ops->free(e);
    CHECK(engine_load("/nonexistent/model.gguf", &c, &err) == NULL && strstr(err.message, "/nonexistent/model.gguf"));
}

/* Around the ends of pages, where the cache has as many as the context needs and no more. */
static void a_context_is_filled_to_its_last_token(void)
{
    enum { MOST = 2 * KV_PAGE + 1 };
    static const int sizes[] = {1, 2, KV_PAGE - 1, KV_PAGE, KV_PAGE + 1, 2 * KV_PAGE, MOST};
    uint32_t prompt[MOST];
    random_prompt(prompt, MOST);
    struct llm_params score = {.kind = LLM_SCORE, .n_logprobs = 0}, embed = {.kind = LLM_EMBED}, p = generate(1);
    struct pool *pool = make_pool(1);
    struct engine *large = load(1, 8, 64);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int n = sizes[i], pages = (n + KV_PAGE - 1) / KV_PAGE;
        struct infer_error err = {0};
        struct engine_config config = {.n_ctx = n, .kv_bytes = (size_t)pages * kv_page_bytes(&shape), .kernels = best(), .limits = &limits};
        struct engine *e = engine_load(model_path, &config, &err);
        REQUIRE(e);
        CHECK(e->info.n_ctx == n);
        for (int round = 0; round < 2; round++) { /* the second time with pages that the first left */
            struct client c[] = {prepare(e, prompt, n, &score), prepare(e, prompt, n, &embed), prepare(large, prompt, n, &score),
                                 prepare(large, prompt, n, &embed)};
            for (int j = 0; j < 4; j++) must_admit(j < 2 ? e : large, &c[j]);
            drain(e, pool);
            drain(large, pool);
            for (int j = 0; j < 4; j++) CHECKF(c[j].n_done == 1 && c[j].r->base.error.code == INFER_OK, "request %d of %d tokens", j, n);
            if (n > 1) CHECK(memcmp(c[0].r->logprob, c[2].r->logprob, (size_t)(n - 1) * sizeof(float)) == 0);
            CHECK(memcmp(c[1].r->embedding, c[3].r->embedding, (size_t)c[1].r->n_embedding * sizeof(float)) == 0);
            for (int j = 0; j < 4; j++) llm_request_free(c[j].r);
        }
        struct client last = prepare(e, prompt, n > 1 ? n - 1 : 1, &p);
        if (n > 1) {
            must_admit(e, &last);
            drain(e, pool);
            CHECK(last.r->n_output == 1 && last.r->finish == LLM_LENGTH);
        } else { /* no room for any output */
            CHECK(admit(e, &last, &err) == -1 && err.code == INFER_CONTEXT);
        }
        llm_request_free(last.r);
        check_idle(e);
        e->ops->free(e);
    }
    check_idle(large);
    large->ops->free(large);
    pool_free(pool);
}

/* A score leads: generations whose prompts begin like its tokens wait for it, up to a page's end or in the middle of one. */
static void a_generation_that_follows_a_score_is_as_if_alone(void)
{
    enum { MOST = 2 * KV_PAGE + 1, OUT = 5, N = 4 };
    static const int sizes[] = {KV_PAGE - 1, KV_PAGE, KV_PAGE + 1, 2 * KV_PAGE};
    uint32_t prompt[MOST];
    random_prompt(prompt, MOST);
    struct pool *pool = make_pool(2);
    struct llm_params score = {.kind = LLM_SCORE, .n_logprobs = 0}, p = generate(OUT), alone = generate(OUT), score_alone = score;
    alone.no_cache = score_alone.no_cache = true;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int n = sizes[i];
        struct engine *e = load(8, 8, 32), *other = load(8, 8, 32);
        struct client c[N] = {prepare(e, prompt, n, &score), prepare(e, prompt, n, &p), prepare(e, prompt, n + 1, &p), prepare(e, prompt, n - 1, &p)};
        struct client by_itself[N] = {prepare(other, prompt, n, &score_alone), prepare(other, prompt, n, &alone),
                                      prepare(other, prompt, n + 1, &alone), prepare(other, prompt, n - 1, &alone)};
        for (int j = 0; j < N; j++) must_admit(e, &c[j]);
        drain(e, pool);
        for (int j = 0; j < N; j++) {
            must_admit(other, &by_itself[j]);
            drain(other, pool);
            CHECK(c[j].n_done == 1 && c[j].r->base.error.code == INFER_OK);
            if (j == 0) CHECK(memcmp(c[0].r->logprob, by_itself[0].r->logprob, (size_t)(n - 1) * sizeof(float)) == 0);
            else CHECKF(memcmp(c[j].r->tokens, by_itself[j].r->tokens, (size_t)(c[j].r->n_prompt + OUT) * sizeof(uint32_t)) == 0, "request %d of %d tokens", j, n);
            llm_request_free(by_itself[j].r);
            llm_request_free(c[j].r);
        }
        check_idle(e);
        e->ops->free(e);
        other->ops->free(other);
    }
    pool_free(pool);
}

/* Of many that end in one step each has its own results, whatever the sizes that their arrays have grown to. */
static void requests_that_end_in_one_step_keep_their_own_results(void)
{
    enum { N = 9, PROMPT = 4 };
    static const int outputs[] = {1, 2, 7, 8, 9, 16, 17, 64, 65};
    uint32_t prompt[N][PROMPT];
    struct pool *pool = make_pool(2);
    struct engine *other = load(1, N, 64), *e = load(N, N, 64); /* in this order: both have the limits of the last */
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        int out = outputs[i];
        struct client c[N], alone[N];
        for (int j = 0; j < N; j++) {
            random_prompt(prompt[j], PROMPT);
            struct llm_params p = generate(out);
            p.n_logprobs = j % 3 == 0 ? LLM_MAX_LOGPROBS : j % 3 == 1 ? 0 : -1;
            c[j] = prepare(e, prompt[j], PROMPT, &p);
            alone[j] = prepare(other, prompt[j], PROMPT, &p);
            must_admit(e, &c[j]);
        }
        int done = 0, before = 0;
        while (!done && e->ops->step(e, pool)) {
            for (int j = 0; j < N; j++) done += c[j].n_done;
            before += !done;
        }
        CHECKF(done == N && before >= out - 1, "%d ended together, after %d steps", done, before);
        drain(e, pool);
        for (int j = 0; j < N; j++) {
            must_admit(other, &alone[j]);
            drain(other, pool);
            const struct llm_request *r = c[j].r, *a = alone[j].r;
            int n = r->params.max_tokens;
            CHECK(r->n_output == n && a->n_output == n && c[j].n_outputs == n);
            CHECK(memcmp(r->tokens, a->tokens, (size_t)(PROMPT + n) * sizeof(uint32_t)) == 0);
            int top = r->params.n_logprobs;
            if (top >= 0) CHECK(memcmp(r->logprob, a->logprob, (size_t)n * sizeof(float)) == 0);
            if (top > 0) {
                CHECK(memcmp(r->top_ids, a->top_ids, (size_t)(top * n) * sizeof *r->top_ids) == 0);
                CHECK(memcmp(r->top_logprobs, a->top_logprobs, (size_t)(top * n) * sizeof *r->top_logprobs) == 0);
            }
            CHECK(r->text.len == a->text.len && memcmp(r->text.bytes, a->text.bytes, r->text.len) == 0);
            llm_request_free(c[j].r);
            llm_request_free(alone[j].r);
        }
        check_idle(e);
    }
    e->ops->free(e);
    other->ops->free(other);
    pool_free(pool);
}

static void tokens_are_read_from_any_address_and_checked(void)
{
    struct engine *e = load(1, 1, 64);
    struct infer_error err = {0};
    struct llm_params p = generate(8);
    struct llm_request *r = llm_request_create(e, &p, &err);
    unsigned char raw[1 + 12] = {0xff, 5, 0, 0, 0, 0x2c, 1, 0, 0, 9, 0, 0, 0};
    CHECK(llm_request_append(r, raw + 1, 12, "key 'a'", &err) == 0);
    CHECK(r->n_prompt == 3 && r->tokens[0] == 5 && r->tokens[1] == 300 && r->tokens[2] == 9);
    CHECK(llm_request_append(r, raw + 1, 10, "key 'a'", &err) == -1 && err.code == INFER_BADTOKENS);
    CHECK(strstr(err.message, "key 'a' holds 10 bytes"));
    raw[1 + 6] = 7; /* the second one's third byte */
    CHECK(llm_request_append(r, raw + 1, 12, "key 'a'", &err) == -1 && err.code == INFER_BADTOKENS);
    CHECK(strstr(err.message, "token 459052 at position 1") && strstr(err.message, "320") && r->n_prompt == 3);
    CHECK(llm_request_append(r, NULL, 0, "key 'a'", &err) == 0 && r->n_prompt == 3);
    llm_request_free(r);
    e->ops->free(e);
}

static void parameters_out_of_range_are_refused(void)
{
    struct engine *e = load(1, 1, 64);
    struct infer_error err = {0};
    struct llm_params p = generate(0);
    CHECK(!llm_request_create(e, &p, &err) && err.code == INFER_ERR);
    p = generate(1), p.n_logprobs = LLM_MAX_LOGPROBS + 1;
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "21"));
    p = (struct llm_params){.kind = LLM_SCORE, .n_logprobs = LLM_MAX_TOP + 1};
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "257"));
    p = generate(1), p.sampling.top_p = 2;
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "top-p"));
    struct text_stop empty = {.text = "", .len = 0};
    p = generate(1), p.stops = &empty, p.n_stops = 1;
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "stop text 1"));
    static const char text[LLM_MAX_STOP_BYTES + 1] = "a";
    struct text_stop large = {.text = text, .len = LLM_MAX_STOP_BYTES + 1};
    p.stops = &large;
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "stop text 1 has 4097 bytes"));
    p.stops = &empty, p.n_stops = LLM_MAX_STOPS + 1;
    CHECK(!llm_request_create(e, &p, &err) && strstr(err.message, "17"));
    e->ops->free(e);
}

/* ---- many clients, on the runtime ---- */

enum { CLIENTS = 4, EACH = 60 };

static struct engine *shared;
static struct runtime *runtime;

/* One client: request after request, some cancelled from outside or inside, some with too little time. */
static void *be_client(void *arg)
{
    uint64_t s = (uint64_t)(size_t)arg;
    int *wrong = calloc(1, sizeof *wrong);
    for (int n = 0; n < EACH; n++) {
        uint32_t dice = (uint32_t)random_u64(&s);
        int i = (int)(dice % MANY);
        struct client c = prepare(shared, many[i].prompt, many[i].n, &many[i].params);
        struct infer_error err;
        c.r->base.user = &c;
        enum { LEFT_ALONE, CANCEL_AT_ONCE, CANCEL_LATER, CANCEL_INSIDE, NO_TIME } fate = dice >> 8 & 15;
        if (fate == CANCEL_INSIDE) c.cancel_after = 1 + (int)(dice >> 16 & 7);
        if (fate == NO_TIME) c.r->base.timeout_us = 1 + (dice >> 16 & 4095);
        if (engine_admit(shared, &c.r->base, &err) != 0) {
            if (err.code != INFER_BUSY) ++*wrong;
            llm_request_free(c.r);
            usleep(500);
            continue;
        }
        if (fate == CANCEL_LATER) usleep(dice >> 16 & 2047);
        if (fate == CANCEL_AT_ONCE || fate == CANCEL_LATER) engine_cancel(&c.r->base);
        wait_for(&c);
        if (c.n_done != 1 || c.text_shrank) ++*wrong;
        bool complete = c.r->finish == LLM_LENGTH && c.r->n_output == OUTPUT;
        if (!complete && fate != CANCEL_AT_ONCE && fate != CANCEL_LATER && fate != CANCEL_INSIDE && fate != NO_TIME) ++*wrong;
        if (memcmp(c.r->tokens + c.r->n_prompt, many[i].wanted, 4 * (size_t)c.r->n_output) != 0) ++*wrong;
        llm_request_free(c.r);
    }
    return wrong;
}

static void clients_of_all_kinds_leave_nothing_behind(void)
{
    struct infer_error err;
    struct engine *e = load(1, 100, 200);
    struct pool *one = make_pool(1);
    fill_many();
    run_many(e, one, false, true, true, "alone");
    for (int i = 0; i < MANY; i++) many[i].params.no_cache = i % 5 == 4;
    e->ops->free(e);
    pool_free(one);

    shared = load(3, 1, 24); /* fewer places, queue and pages than clients want */
    runtime = runtime_create(2, best()->scratch_bytes, &err);
    REQUIRE(runtime);
    runtime_add(runtime, shared);
    pthread_t threads[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&threads[i], NULL, be_client, (void *)(size_t)(i + 1)) == 0);
    struct engine_stats s;
    for (int i = 0; i < 20; i++) { /* statistics may be read meanwhile */
        shared->ops->get_stats(shared, &s);
        /* each count by itself: they change between one and the next */
        CHECK(s.kv.pages_active <= s.kv.pages_total && s.kv.pages_cached <= s.kv.pages_total &&
              s.kv.pages_free <= s.kv.pages_total);
        usleep(1000);
    }
    for (int i = 0; i < CLIENTS; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        CHECKF(*(int *)wrong == 0, "client %d saw %d wrong results", i, *(int *)wrong);
        free(wrong);
    }
    check_idle(shared);
    runtime_remove(runtime, shared); /* the last step, which ended with its results handed out, is timed after that */
    shared->ops->get_stats(shared, &s);
    CHECK(s.finished > 20 && s.cancelled > 5 && s.failed == 0);
    CHECK(s.queue.count > 0 && s.first_token.count > 0 && s.token.count > 0 && s.step.count == s.steps);
    CHECK(s.step.p50_us <= s.step.p99_us && s.step.p99_us <= s.step.max_us);
    shared->ops->free(shared);
    runtime_free(runtime);
}

static void removal_from_the_runtime_ends_what_runs(void)
{
    struct infer_error err;
    struct engine *e = load(2, 10, 64);
    struct runtime *rt = runtime_create(2, best()->scratch_bytes, &err);
    REQUIRE(rt);
    runtime_add(rt, e);
    uint32_t prompt[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct llm_params p = generate(2000);
    struct client c[6];
    for (int i = 0; i < 6; i++) {
        c[i] = prepare(e, prompt, 8, &p);
        c[i].r->base.user = &c[i];
        CHECK(engine_admit(e, &c[i].r->base, &err) == 0);
    }
    usleep(3000);
    runtime_remove(rt, e);
    for (int i = 0; i < 6; i++) {
        CHECK(c[i].n_done == 1); /* no wait: it has returned */
        CHECK(c[i].r->base.error.code == INFER_NOMODEL || c[i].r->n_output == 2000);
        llm_request_free(c[i].r);
    }
    check_idle(e);
    e->ops->free(e);
    runtime_free(rt);
}

int main(void)
{
    write_model("llama", TYPE_F32);
    RUN(generation_equals_the_decoder_token_by_token);
    RUN(score_and_embed_equal_the_decoder_token_by_token);
    write_model("qwen3", TYPE_Q8_0);
    RUN(generation_equals_the_decoder_token_by_token);
    RUN(tokens_do_not_depend_on_company_cache_threads_or_kernels);
    write_model("llama", TYPE_Q4_0);
    RUN(tokens_do_not_depend_on_company_cache_threads_or_kernels);
    RUN(seeds_decide_and_nothing_else);
    RUN(an_end_token_stops_and_is_the_last_output_without_text);
    RUN(a_stop_text_ends_the_text_before_it);
    RUN(a_long_prompt_delays_a_generation_by_one_slice_a_step);
    RUN(equal_prompts_at_once_are_computed_and_stored_once);
    RUN(a_prompt_that_followed_a_cancelled_one_goes_on_alone);
    RUN(cancel_holds_at_every_stage);
    RUN(timeout_holds_at_every_stage);
    RUN(unloading_ends_all_requests_once_with_nomodel);
    RUN(requests_beyond_the_queue_are_busy);
    RUN(requests_wait_for_pages_and_none_fails);
    RUN(what_cannot_fit_is_refused_with_its_numbers);
    RUN(a_context_beyond_model_or_budget_is_refused);
    RUN(a_context_is_filled_to_its_last_token);
    RUN(a_generation_that_follows_a_score_is_as_if_alone);
    RUN(requests_that_end_in_one_step_keep_their_own_results);
    RUN(tokens_are_read_from_any_address_and_checked);
    RUN(parameters_out_of_range_are_refused);
    RUN(clients_of_all_kinds_leave_nothing_behind);
    RUN(removal_from_the_runtime_ends_what_runs);
    unlink(model_path);
    return check_result();
}
