/* Choosing the next token: penalties, truncation, and the draw.
 *
 * A sampler owns its scratch memory and nothing else; one thread at a time uses it.
 *
 * Everything that decides about a token is computed with additions and multiplications in
 * double in a fixed order: exp_neg below instead of libm's exp, sums by ascending
 * id or by falling logit, and a generator of our own. Truncation does not sort the vocabulary: top-k keeps
 * a heap of k, and top-p takes candidates from a heap until they hold enough of the mass. */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- arithmetic ---- */

static inline uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline double double_of(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* exp(x) for x <= 0, about 1 ulp; 0 below EXP_LOWEST and for NaN. exp(x) = 2^k exp(r) with
 * |r| <= ln2/2: the first 13 terms of the series leave an error of r^13/13! < 2e-16. Selects by masks, for a
 * compiler that keeps the traps of floating point does not vectorize a loop with choices in it. */
#define EXP_LOWEST (-700.0)
static inline double exp_neg(double x)
{
    const double log2e = 1.4426950408889634, ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
    const double round = 0x1.8p52; /* adding it leaves the nearest integer in the low bits */
    uint64_t in_range = -(uint64_t)(x >= EXP_LOWEST);
    x = double_of(bits_of(x) & in_range);
    double t = x * log2e + round;
    double k = t - round;
    double r = (x - k * ln2_hi) - k * ln2_lo;
    double p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    double scale = double_of((bits_of(t) + 1023) << 52); /* 2^k */
    return double_of(bits_of(p * scale) & in_range);
}

enum { EXP_BLOCK = 256 };

/* w[i] = exp((x[i] - max) * inv_temperature), n <= EXP_BLOCK. */
static void exp_block(double *w, const float *x, int n, double max, double inv_temperature)
{
    for (int i = 0; i < n; i++) w[i] = exp_neg(((double)x[i] - max) * inv_temperature);
}

/* The sum of all w, in ascending order. */
static double exp_sum(const float *x, int n, double max, double inv_temperature)
{
    double w[EXP_BLOCK], sum = 0;
    for (int i = 0; i < n; i += EXP_BLOCK) {
        int m = n - i < EXP_BLOCK ? n - i : EXP_BLOCK;
        exp_block(w, x + i, m, max, inv_temperature);
        for (int j = 0; j < m; j++) sum += w[j];
    }
    return sum;
}

/* xoroshiro128++ 1.0 (Blackman and Vigna, https://prng.di.unimi.it/), seeded by splitmix64. */
static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static uint64_t splitmix64(uint64_t *x)
{
    uint64_t z = *x += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Uniform in [0, 1), 53 bits. */
static double next_uniform(struct sampler *s)
{
    uint64_t a = s->state[0], b = s->state[1];
    uint64_t out = rotl(a + b, 17) + a;
    b ^= a;
    s->state[0] = rotl(a, 49) ^ b ^ b << 21;
    s->state[1] = rotl(b, 28);
    return (double)(out >> 11) * 0x1p-53;
}

/* ---- candidates ---- */

struct candidate {
    float logit;
    uint32_t id;
};

/* Falling logit, then ascending id: the one order of all of this file. */
static inline bool before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* A heap whose top comes first in the order (first) or last (!first). */
static void sift_down(struct candidate *h, int n, int i, bool first)
{
    struct candidate x = h[i];
    for (;;) {
        int child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && before(h[child + 1], h[child]) == first) child++;
        if (before(h[child], x) != first) break;
        h[i] = h[child];
        i = child;
    }
    h[i] = x;
}

static void heapify(struct candidate *h, int n, bool first)
{
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(h, n, i, first);
}

/* The k that come first, in order. Returns how many there are: fewer if logits are NaN. */
static int select_top(struct candidate *h, int k, const float *logits, int n_vocab)
{
    int n = 0, i = 0;
    for (; i < n_vocab && n < k; i++)
        if (logits[i] == logits[i]) h[n++] = (struct candidate){logits[i], (uint32_t)i};
    heapify(h, n, false);
    if (n > 0)
        for (; i < n_vocab; i++)
            if (logits[i] > h[0].logit) { /* an equal one has a higher id and comes later */
                h[0] = (struct candidate){logits[i], (uint32_t)i};
                sift_down(h, n, 0, false);
            }
    /* Taking the last one off again and again leaves the array in order. */
    for (int m = n - 1; m > 0; m--) {
        struct candidate last = h[0];
        h[0] = h[m];
        h[m] = last;
        sift_down(h, m, 0, false);
    }
    return n;
}

/* Those whose logit is at least floor, by ascending id. h: [n_vocab], for what is not wanted is
 * written too and then overwritten: cheaper than a branch that cannot be foreseen. */
static int collect(struct candidate *h, const float *logits, int n_vocab, float floor)
{
    int n = 0;
    for (int i = 0; i < n_vocab; i++) {
        h[n] = (struct candidate){logits[i], (uint32_t)i};
        n += logits[i] >= floor;
    }
    return n;
}

/* The shortest beginning of the order (at least one) whose weights exp(logit - max) sum to `wanted`.
 * Puts it into h [n_vocab], in order, and returns its length. max is the largest logit, a number. */
static int select_mass(struct candidate *h, const float *logits, int n_vocab, float max, double wanted)
{
    /* Mostly it is a few tokens close to the maximum: tried with those first, and with more if
     * they do not weigh enough. */
    for (float depth = 6;; depth *= 2) {
        float floor = depth < 50 ? max - depth : -INFINITY;
        int n = collect(h, logits, n_vocab, floor), left = n;
        heapify(h, n, true);
        double sum = 0;
        while (left > 0 && sum < wanted) {
            struct candidate top = h[0]; /* goes to where the heap ends, and the heap gets shorter */
            left--;
            h[0] = h[left];
            h[left] = top;
            if (left > 0) sift_down(h, left, 0, true);
            sum += exp_neg((double)top.logit - (double)max);
        }
        if (sum < wanted && floor != -INFINITY) continue;
        for (int i = 0, j = n - 1; i < j; i++, j--) { /* they stand at the end, the first one last */
            struct candidate t = h[i];
            h[i] = h[j];
            h[j] = t;
        }
        return n - left;
    }
}

/* All that have at least min_p of the best one's probability, by ascending id. */
static int select_strong(struct candidate *h, const float *logits, int n_vocab, float max, double min_p)
{
    float floor = (float)((double)max + log(min_p) - 0.01); /* libm's log only spares work: exp_neg decides */
    int n = collect(h, logits, n_vocab, floor), keep = 0;
    for (int i = 0; i < n; i++)
        if (exp_neg((double)h[i].logit - (double)max) >= min_p) h[keep++] = h[i];
    return keep;
}

/* The same of n candidates that are in order: top_p of their own sum. */
static int cut_mass(const struct candidate *h, int n, float max, double top_p)
{
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += exp_neg((double)h[i].logit - (double)max);
    int keep = 0;
    while (keep < n && sum < top_p * total) sum += exp_neg((double)h[keep++].logit - (double)max);
    return keep;
}

/* Those of n candidates in order that have at least min_p of the best one's probability. */
static int cut_weak(const struct candidate *h, int n, float max, double min_p)
{
    int keep = 1;
    while (keep < n && exp_neg((double)h[keep].logit - (double)max) >= min_p) keep++;
    return keep;
}

/* ---- the sampler ---- */

int sampler_check(const struct sampler_params *p, struct infer_error *err)
{
    if (!(p->temperature >= 0 && p->temperature <= FLT_MAX))
        return infer_fail(err, INFER_ERR, "temperature %g: must be 0 (greedy) or more", (double)p->temperature);
    if (p->top_k < 0) return infer_fail(err, INFER_ERR, "top-k %d: must be 0 (off) or more", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return infer_fail(err, INFER_ERR, "top-p %g: must be above 0 and at most 1 (off)", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return infer_fail(err, INFER_ERR, "min-p %g: must be from 0 (off) to 1", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && p->repeat_penalty <= FLT_MAX))
        return infer_fail(err, INFER_ERR, "repetition penalty %g: must be above 0; 1 is off",
                          (double)p->repeat_penalty);
    return 0;
}

void sampler_init(struct sampler *s, const struct sampler_params *params, argmax_fn *argmax)
{
    memset(s, 0, sizeof *s);
    s->params = *params;
    s->argmax = argmax;
    uint64_t x = params->seed;
    s->state[0] = splitmix64(&x);
    s->state[1] = splitmix64(&x);
}

void sampler_free(struct sampler *s)
{
    free(s->scratch);
    s->scratch = NULL;
    s->scratch_bytes = 0;
}

static void *scratch(struct sampler *s, size_t bytes)
{
    if (bytes > s->scratch_bytes) {
        free(s->scratch);
        s->scratch = malloc(bytes);
        s->scratch_bytes = s->scratch ? bytes : 0;
    }
    return s->scratch;
}

/* Each token of the window once: away from being chosen where the penalty is above 1. */
static void penalize(float *logits, int n_vocab, const uint32_t *window, int n, float penalty)
{
    for (int i = 0; i < n; i++) {
        bool seen = window[i] >= (uint32_t)n_vocab;
        for (int j = 0; j < i && !seen; j++) seen = window[j] == window[i];
        if (seen) continue;
        float *x = &logits[window[i]];
        *x = *x <= 0 ? *x * penalty : *x / penalty;
    }
}

/* An index into x [n] with probability proportional to exp((x - max) / temperature). */
static int draw(struct sampler *s, const float *x, int n, float max)
{
    double inv = 1.0 / (double)s->params.temperature, w[EXP_BLOCK], sum = 0;
    double target = next_uniform(s) * exp_sum(x, n, max, inv);
    for (int i = 0; i < n; i += EXP_BLOCK) {
        int m = n - i < EXP_BLOCK ? n - i : EXP_BLOCK;
        exp_block(w, x + i, m, max, inv);
        for (int j = 0; j < m; j++) {
            sum += w[j];
            if (sum > target) return i + j;
        }
    }
    return n - 1; /* not reached: the sum is the same as exp_sum's, and the target below it */
}

int32_t sampler_pick(struct sampler *s, const float *logits, int n_vocab, const uint32_t *history, int n_history)
{
    const struct sampler_params *p = &s->params;
    bool penalized = p->repeat_penalty != 1.0f && n_history > 0;
    bool truncated = p->temperature > 0 && ((p->top_k > 0 && p->top_k < n_vocab) || p->top_p < 1 || p->min_p > 0);
    int k = p->top_k > 0 && p->top_k < n_vocab ? p->top_k : n_vocab; /* of candidates */

    size_t bytes = truncated ? (size_t)k * (sizeof(struct candidate) + sizeof(float)) : 0;
    if (penalized) bytes += (size_t)n_vocab * sizeof(float);
    void *memory = bytes ? scratch(s, bytes) : NULL;
    if (bytes && !memory) return -1;
    struct candidate *h = memory;
    float *x = truncated ? (float *)(h + k) : memory;

    if (penalized) {
        float *changed = truncated ? x + k : x;
        int n = n_history < SAMPLER_REPEAT_WINDOW ? n_history : SAMPLER_REPEAT_WINDOW;
        memcpy(changed, logits, (size_t)n_vocab * sizeof(float));
        penalize(changed, n_vocab, history + n_history - n, n, p->repeat_penalty);
        logits = changed;
    }

    int best = s->argmax(logits, n_vocab);
    float max = logits[best];
    if (p->temperature == 0 || !isfinite(max)) return best;
    if (!truncated) return draw(s, logits, n_vocab, max);

    int n = 0;
    if (k < n_vocab) {
        n = select_top(h, k, logits, n_vocab);
        if (p->top_p < 1) n = cut_mass(h, n, max, (double)p->top_p);
        n = cut_weak(h, n, max, (double)p->min_p);
    } else if (p->top_p < 1) {
        n = select_mass(h, logits, n_vocab, max, (double)p->top_p * exp_sum(logits, n_vocab, max, 1.0));
        n = cut_weak(h, n, max, (double)p->min_p);
    } else { /* min-p alone: needs no order */
        n = select_strong(h, logits, n_vocab, max, (double)p->min_p);
    }
    for (int i = 0; i < n; i++) x[i] = h[i].logit;
    return (int32_t)h[draw(s, x, n, max)].id;
}

/* The largest number. Eight chains, since one would wait for each comparison. */
static float largest(const float *x, int n)
{
    float m[8];
    int i = 0;
    for (int j = 0; j < 8; j++) m[j] = -INFINITY;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (; i < n; i++) m[0] = x[i] > m[0] ? x[i] : m[0];
    for (int j = 1; j < 8; j++) m[0] = m[j] > m[0] ? m[j] : m[0];
    return m[0];
}

float logprobs(const float *logits, int n_vocab, uint32_t id, int n, uint32_t *top_ids, float *top_logprobs)
{
    float max = largest(logits, n_vocab);
    double log_sum = (double)max + log(exp_sum(logits, n_vocab, max, 1.0));

    int have = 0;
    for (int i = 0; i < n_vocab && n > 0; i++) {
        float x = logits[i];
        if (x != x || (have == n && x <= top_logprobs[n - 1])) continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && top_logprobs[at - 1] < x; at--) {
            top_logprobs[at] = top_logprobs[at - 1];
            top_ids[at] = top_ids[at - 1];
        }
        top_logprobs[at] = x;
        top_ids[at] = (uint32_t)i;
    }
    for (int i = 0; i < have; i++) top_logprobs[i] = (float)((double)top_logprobs[i] - log_sum);
    for (int i = have; i < n; i++) {
        top_ids[i] = 0;
        top_logprobs[i] = -INFINITY;
    }
    return (float)((double)logits[id] - log_sum);
}
