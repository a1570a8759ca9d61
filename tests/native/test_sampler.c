/* The sampler against a simple one: everything sorted, everything in double, libm's exp. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels.h"
#include "sampler.h"

static uint64_t rng_state = 88172645463325252u;
static double uniform(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (double)(rng_state >> 11) / 9007199254740992.0;
}

static int argmax(const float *x, int n)
{
    return kernels_scalar.argmax(x, n);
}

static const struct sampler_params off = {.top_p = 1, .repeat_penalty = 1};

/* ---- the simple sampler: the probability of every id ---- */

struct item {
    double logit, p;
    int id;
};

static int falling(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id - y->id;
}

static void softmax(struct item *v, int n, double temperature)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += v[i].p = exp((v[i].logit - v[0].logit) / temperature);
    for (int i = 0; i < n; i++) v[i].p /= sum;
}

static void expected(double *p, const float *logits, int n, const uint32_t *history, int n_history,
                     const struct sampler_params *params)
{
    struct item *v = malloc((size_t)n * sizeof *v);
    for (int i = 0; i < n; i++) {
        v[i] = (struct item){logits[i], 0, i};
        p[i] = 0;
        for (int h = n_history - 1; h >= 0 && h >= n_history - 64; h--)
            if (history[h] == (uint32_t)i) {
                float x = logits[i], r = params->repeat_penalty;
                v[i].logit = x > 0 ? x / r : x * r;
                break;
            }
    }
    qsort(v, (size_t)n, sizeof *v, falling);
    int k = params->temperature == 0 ? 1 : n;
    if (params->temperature > 0) {
        if (params->top_k > 0 && params->top_k < k) k = params->top_k;
        softmax(v, k, 1);
        double sum = 0;
        for (int i = 0; i < k && params->top_p < 1; i++) {
            sum += v[i].p;
            if (sum >= (double)params->top_p) k = i + 1;
        }
        for (int i = 1; i < k; i++)
            if (v[i].p < (double)params->min_p * v[0].p) k = i;
        softmax(v, k, params->temperature);
    } else {
        v[0].p = 1;
    }
    for (int i = 0; i < k; i++) p[v[i].id] = v[i].p;
    free(v);
}

/* Chi-square of counts against p, ids with small expectations taken together. The bound is
 * the Wilson-Hilferty quantile at z: for z = 5, a false alarm once in 3 million. */
static double chi_square_excess(const int *counts, const double *p, int n, int draws, double z)
{
    double chi = 0, rest_p = 0;
    int rest = 0, bins = 0;
    for (int i = 0; i < n; i++) {
        double e = p[i] * draws;
        if (e < 10) {
            rest_p += p[i];
            rest += counts[i];
            continue;
        }
        chi += (counts[i] - e) * (counts[i] - e) / e;
        bins++;
    }
    if (rest_p * draws >= 10) {
        chi += (rest - rest_p * draws) * (rest - rest_p * draws) / (rest_p * draws);
        bins++;
    }
    int df = bins - 1;
    if (df < 1) return -1;
    double c = 2.0 / (9.0 * df);
    return chi - df * pow(1 - c + z * sqrt(c), 3);
}

static void draws_follow_the_distribution_of_the_simple_sampler(void)
{
    enum { VOCAB = 400, DRAWS = 6000, CASES = 60, HISTORY = 100 };
    static float logits[VOCAB];
    static double p[VOCAB];
    static int counts[VOCAB];
    uint32_t history[HISTORY];
    for (int c = 0; c < CASES; c++) {
        double spread = 0.3 + 4 * uniform();
        for (int i = 0; i < VOCAB; i++)
            logits[i] = (float)(spread * (uniform() + uniform() + uniform() - 1.5) * 3 + 2);
        for (int i = 0; i < HISTORY; i++) history[i] = (uint32_t)(uniform() * (double)VOCAB);
        struct sampler_params params = off;
        params.temperature = (float)(0.2 + 1.5 * uniform());
        params.seed = (uint64_t)c * 77 + 5;
        if (c & 1) params.top_k = 1 + (int)(uniform() * (c & 8 ? 20 : VOCAB));
        if (c & 2) params.top_p = (float)(0.05 + 0.95 * uniform());
        if (c & 4) params.min_p = (float)(0.3 * uniform() * uniform());
        if (c % 3 == 0) params.repeat_penalty = (float)(0.8 + uniform());

        expected(p, logits, VOCAB, history, HISTORY, &params);
        memset(counts, 0, sizeof counts);
        struct sampler s;
        sampler_init(&s, &params, argmax);
        for (int d = 0; d < DRAWS; d++) counts[sampler_pick(&s, logits, VOCAB, history, HISTORY)]++;
        sampler_free(&s);

        for (int i = 0; i < VOCAB; i++)
            CHECKF(p[i] > 0 || counts[i] == 0, "case %d: id %d was cut off but drawn %d times", c, i, counts[i]);
        double excess = chi_square_excess(counts, p, VOCAB, DRAWS, 5);
        CHECKF(excess < 0, "case %d: chi-square %g above its bound", c, excess);
        double kept = 0; /* what must appear does: p >= 30/DRAWS is missed with probability e^-30 */
        for (int i = 0; i < VOCAB; i++) {
            CHECKF(p[i] * (double)DRAWS < 30 || counts[i] > 0, "case %d: id %d of p %g was never drawn", c, i, p[i]);
            kept += p[i];
        }
        CHECK(fabs(kept - 1) < 1e-9);
    }
}

static void greedy_takes_the_largest_after_the_penalty(void)
{
    enum { VOCAB = 300, HISTORY = 90 };
    float logits[VOCAB];
    double p[VOCAB];
    uint32_t history[HISTORY];
    for (int c = 0; c < 200; c++) {
        for (int i = 0; i < VOCAB; i++) logits[i] = (float)(8 * uniform() - (c % 2 ? 9 : 3));
        for (int i = 0; i < HISTORY; i++) history[i] = (uint32_t)(uniform() * (double)VOCAB);
        struct sampler_params params = off;
        params.repeat_penalty = c % 3 ? 1.3f : 1.0f;
        struct sampler s;
        sampler_init(&s, &params, argmax);
        int32_t id = sampler_pick(&s, logits, VOCAB, history, HISTORY);
        expected(p, logits, VOCAB, history, HISTORY, &params);
        CHECK(p[id] == 1);
        sampler_free(&s);
    }
}

static void the_penalty_looks_back_64_tokens_and_no_further(void)
{
    float logits[3] = {2, 1.5f, 0};
    uint32_t history[SAMPLER_REPEAT_WINDOW + 1];
    for (int i = 0; i <= SAMPLER_REPEAT_WINDOW; i++) history[i] = 2;
    struct sampler_params params = off;
    params.repeat_penalty = 2;
    struct sampler s;
    sampler_init(&s, &params, argmax);
    history[0] = 0;
    CHECK(sampler_pick(&s, logits, 3, history, SAMPLER_REPEAT_WINDOW + 1) == 0);
    history[1] = 0;
    CHECK(sampler_pick(&s, logits, 3, history, SAMPLER_REPEAT_WINDOW + 1) == 1);
    CHECK(logits[0] == 2); /* the caller's logits stay */
    sampler_free(&s);
}

static void ties_go_to_the_lower_id_everywhere(void)
{
    enum { VOCAB = 1000 };
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)(i % 7 == 3);
    struct sampler_params params = off;
    struct sampler s;
    sampler_init(&s, &params, argmax);
    CHECK(sampler_pick(&s, logits, VOCAB, NULL, 0) == 3);
    sampler_free(&s);
    params.temperature = 1;
    params.top_k = 5;
    sampler_init(&s, &params, argmax);
    for (int d = 0; d < 200; d++) {
        int32_t id = sampler_pick(&s, logits, VOCAB, NULL, 0);
        CHECK(id % 7 == 3 && id <= 31);
    }
    sampler_free(&s);
    params.top_k = 0;
    params.top_p = 2.5f * 2.7182818f / (143 * 2.7182818f + 857); /* two and a half of them */
    sampler_init(&s, &params, argmax);
    int seen[VOCAB] = {0};
    for (int d = 0; d < 200; d++) seen[sampler_pick(&s, logits, VOCAB, NULL, 0)]++;
    CHECK(seen[3] && seen[10] && seen[17] && seen[3] + seen[10] + seen[17] == 200);
    sampler_free(&s);
}

static void a_seed_gives_the_same_tokens_on_every_machine(void)
{
    /* Computed by a program in Python, from the papers of splitmix64 and xoroshiro128++:
     * u = next >> 11 over 2^53; the first id whose cumulated softmax exceeds u. */
    static const int wanted[] = {57, 20, 60, 13, 22, 6, 31, 8, 16, 19, 38, 55, 12, 29, 55, 59, 19, 39, 13, 6, 12, 51, 36, 27};
    float logits[64];
    for (int i = 0; i < 64; i++) logits[i] = (float)(i * 37 % 64) / 16.0f;
    struct sampler_params params = off;
    params.temperature = 1.25f;
    params.seed = 42;
    struct sampler s;
    sampler_init(&s, &params, argmax);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        CHECK(sampler_pick(&s, logits, 64, NULL, 0) == wanted[i]);
    sampler_free(&s);
}

static void numbers_that_are_none_are_never_chosen(void)
{
    enum { VOCAB = 100 };
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++) logits[i] = i % 2 ? NAN : i % 4 ? -INFINITY : (float)(i % 5);
    struct sampler_params params[] = {off, off, off, off, off};
    for (int i = 1; i < 5; i++) params[i].temperature = 0.9f;
    params[2].top_k = 60;
    params[3].top_p = 0.9999f;
    params[4].min_p = 0.0001f;
    for (int c = 0; c < 5; c++) {
        struct sampler s;
        sampler_init(&s, &params[c], argmax);
        for (int d = 0; d < 300; d++) CHECK(sampler_pick(&s, logits, VOCAB, NULL, 0) % 4 == 0);
        sampler_free(&s);
    }
    logits[9] = INFINITY;
    struct sampler s;
    sampler_init(&s, &params[1], argmax);
    CHECK(sampler_pick(&s, logits, VOCAB, NULL, 0) == 9);
    sampler_free(&s);
}

static void logprobs_are_those_of_softmax_and_the_best_come_first(void)
{
    enum { VOCAB = 5000, TOP = 20 };
    static float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)(20 * uniform() - 10 - (i % 3 ? 0 : 200));
    logits[77] = logits[4000]; /* a tie */
    logits[78] = logits[79] = 11;
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += exp((double)logits[i]);
    struct item *v = malloc(VOCAB * sizeof *v);
    for (int i = 0; i < VOCAB; i++) v[i] = (struct item){logits[i], (double)logits[i] - log(sum), i};
    qsort(v, VOCAB, sizeof *v, falling);
    uint32_t ids[TOP];
    float lp[TOP];
    for (uint32_t id = 0; id < VOCAB; id += 501) {
        float got = logprobs(logits, VOCAB, id, TOP, ids, lp);
        CHECK(fabs((double)got - ((double)logits[id] - log(sum))) < 1e-5 * (1 + fabs((double)got)));
        CHECK(got == logprobs(logits, VOCAB, id, 0, NULL, NULL));
    }
    for (int i = 0; i < TOP; i++) {
        CHECK(ids[i] == (uint32_t)v[i].id);
        CHECK(fabs((double)lp[i] - v[i].p) < 1e-5);
    }
    free(v);
    float two[2] = {0, 0};
    logprobs(two, 2, 0, 4, ids, lp);
    CHECK(ids[0] == 0 && ids[1] == 1 && fabs((double)lp[0] + log(2)) < 1e-6 && lp[2] == -INFINITY);
}

static void parameters_out_of_range_are_named(void)
{
    struct infer_error err;
    struct sampler_params p = off;
    CHECK(sampler_check(&p, &err) == 0);
    p.temperature = -1;
    CHECK(sampler_check(&p, &err) == -1 && strstr(err.message, "temperature -1"));
    p.temperature = NAN;
    CHECK(sampler_check(&p, &err) == -1);
    p = off, p.top_k = -3;
    CHECK(sampler_check(&p, &err) == -1 && strstr(err.message, "top-k -3"));
    p = off, p.top_p = 0;
    CHECK(sampler_check(&p, &err) == -1 && strstr(err.message, "top-p 0"));
    p = off, p.min_p = 1.5f;
    CHECK(sampler_check(&p, &err) == -1 && strstr(err.message, "min-p 1.5"));
    p = off, p.repeat_penalty = 0;
    CHECK(sampler_check(&p, &err) == -1 && strstr(err.message, "penalty 0"));
}

int main(void)
{
    RUN(draws_follow_the_distribution_of_the_simple_sampler);
    RUN(greedy_takes_the_largest_after_the_penalty);
    RUN(the_penalty_looks_back_64_tokens_and_no_further);
    RUN(ties_go_to_the_lower_id_everywhere);
    RUN(a_seed_gives_the_same_tokens_on_every_machine);
    RUN(numbers_that_are_none_are_never_chosen);
    RUN(logprobs_are_those_of_softmax_and_the_best_come_first);
    RUN(parameters_out_of_range_are_named);
    return check_result();
}
