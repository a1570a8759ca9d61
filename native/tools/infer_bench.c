/* infer-bench: how fast the forward pass is, beside what the machine could do.
 *
 * Works on the decoder and the KV cache directly: no sampling, no requests, no Redis. A context of DEPTH tokens is
 * not computed but filled with small pseudo-random values, which cost the same to attend to; the tokens themselves
 * are arbitrary. All of it runs on a thread set up like the runtime's conductor. */
#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "decoder.h"
#include "gguf.h"
#include "kernels.h"
#include "kv.h"
#include "llm.h"
#include "model.h"
#include "platform.h"
#include "pool.h"
#include "product.h"

enum { MAX_LIST = 16, MAX_REPEATS = 1000 };

struct list {
    int n, value[MAX_LIST];
};

struct options {
    const char *file;
    struct list threads, prompts, depths, batches;
    int n_decode, repeats;
    bool json;
};

static const char usage[] =
    "usage: infer-bench -m FILE [-t THREADS] [-p PROMPT] [-n TOKENS] [-d DEPTH] [-b SEQUENCES] [-r REPEATS] [--json]\n"
    "\n"
    "  -m FILE       a GGUF model\n"
    "  -t THREADS    threads of the pool (default: one per processor)\n"
    "  -p PROMPT     tokens of a prompt to compute, 0: none (default 512)\n"
    "  -n TOKENS     tokens to decode per sequence, 0: none (default 64)\n"
    "  -d DEPTH      tokens that are in the KV cache before that (default 0)\n"
    "  -b SEQUENCES  sequences that decode at once (default 1)\n"
    "  -r REPEATS    measurements of each; median, least and most are shown (default 5)\n"
    "  --json        one JSON array instead of a table\n"
    "\n"
    "-t, -p, -d and -b take lists: -t 1,2,4. REDIS_INFER_KERNELS forces a kernel table.\n"
    "Example: infer-bench -m model.gguf -t 2 -p 512 -n 64 -d 0,6000 -b 1,4\n";

static _Noreturn void fail(const char *what, const char *why)
{
    fprintf(stderr, "infer-bench: %s%s%s\n", what, why ? ": " : "", why ? why : "");
    exit(1);
}

static int parse_int(const char *text, char **end, int least)
{
    long v = strtol(text, end, 10);
    if (*end == text || v < least || v > 1 << 24) fail("not a number in range", text);
    return (int)v;
}

static struct list parse_list(const char *text, int least)
{
    struct list l = {0};
    for (const char *p = text;; p++) {
        char *end;
        if (l.n == MAX_LIST) fail("too many values", text);
        l.value[l.n++] = parse_int(p, &end, least);
        p = end;
        if (*p == 0) return l;
        if (*p != ',') fail("not a comma-separated list", text);
    }
}

static int parse_one(const char *text, int least)
{
    struct list l = parse_list(text, least);
    if (l.n != 1) fail("one number is wanted", text);
    return l.value[0];
}

static struct options parse_options(int argc, char **argv)
{
    int n_cpus = platform_cpu_count();
    struct options o = {.threads = {1, {n_cpus < POOL_MAX_THREADS ? n_cpus : POOL_MAX_THREADS}}, .prompts = {1, {512}}, .depths = {1, {0}},
                        .batches = {1, {1}}, .n_decode = 64, .repeats = 5};
    static const struct option longs[] = {{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
    for (int c; (c = getopt_long(argc, argv, "m:t:p:n:d:b:r:h", longs, NULL)) != -1;)
        switch (c) {
        case 'm': o.file = optarg; break;
        case 't': o.threads = parse_list(optarg, 1); break;
        case 'p': o.prompts = parse_list(optarg, 0); break;
        case 'n': o.n_decode = parse_one(optarg, 0); break;
        case 'd': o.depths = parse_list(optarg, 0); break;
        case 'b': o.batches = parse_list(optarg, 1); break;
        case 'r': o.repeats = parse_one(optarg, 1); break;
        case 'j': o.json = true; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    if (!o.file || optind < argc) {
        fputs(usage, stderr);
        exit(2);
    }
    if (o.repeats > MAX_REPEATS) fail("too many repeats", NULL);
    return o;
}

/* ---- what the machine could do ---- */

enum {
    PEAK_ROUNDS = 1 << 16,
    PEAK_TRIES = 12,           /* of reading: each way twice */
    READ_UNIT = 1 << 14,       /* bytes; threads take pieces of up to READ_UNITS of them */
    READ_UNITS = LONG_BYTES / READ_UNIT,
    READ_AHEAD = 512,
};

struct reading {
    const struct gguf *g;
    size_t streams; /* that a piece is read in at once: which number gets the most out of a core depends on the processor, */
    bool requests;  /* and so does whether asking for lines READ_AHEAD bytes ahead helps */
    _Atomic uint64_t sum; /* so that the loads happen */
};

static void read_tensors(struct pool_thread *t, void *arg)
{
    struct reading *r = arg;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < gguf_n_tensors(r->g); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(r->g, i);
        int begin, end, n = (int)(tensor->bytes / READ_UNIT);
        while (pool_share_long(t, n, 1, READ_UNITS, &begin, &end)) {
            const unsigned char *p = (const unsigned char *)tensor->data + (size_t)begin * READ_UNIT;
            size_t stream = (size_t)(end - begin) * READ_UNIT / r->streams;
            for (size_t at = 0; at < stream; at += 64)
                for (size_t s = 0; s < r->streams; s++) {
                    const unsigned char *line = p + s * stream + at;
                    if (r->requests) __builtin_prefetch(line + READ_AHEAD, 0, 2);
                    uint64_t v[8];
                    memcpy(v, line, sizeof v);
                    for (int j = 0; j < 8; j++) sum[j] += v[j];
                }
        }
        pool_barrier(t);
    }
    for (int j = 0; j < 8; j++) atomic_fetch_add(&r->sum, sum[j]);
}

/* Bytes per second that the threads can read from the weights where these lie, best of a few. */
static double read_bandwidth(struct pool *p, const struct gguf *g)
{
    size_t bytes = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) bytes += gguf_tensor_at(g, i)->bytes / READ_UNIT * READ_UNIT;
    double best = 0;
    for (int i = 0; i < PEAK_TRIES; i++) {
        struct reading r = {.g = g, .streams = (size_t)4 << i / 2 % 3, .requests = i % 2 == 0}; /* 4, 8 and 16 */
        uint64_t start = platform_now_us();
        pool_run(p, read_tensors, &r);
        double s = 1e-6 * (double)(platform_now_us() - start + 1);
        if ((double)bytes / s > best) best = (double)bytes / s;
    }
    return best;
}

struct multiplying {
    const struct kernels *k;
    _Atomic uint64_t macs;
};

static void multiply_peak(struct pool_thread *t, void *arg)
{
    (void)t;
    struct multiplying *m = arg;
    atomic_fetch_add(&m->macs, m->k->peak(PEAK_ROUNDS));
}

/* Multiply-adds per second of the kernel table's int8 instruction, or 0 if the table can't tell. */
static double multiply_bandwidth(struct pool *p, const struct kernels *k)
{
    double best = 0;
    for (int i = 0; k->peak && i < PEAK_TRIES; i++) {
        struct multiplying m = {.k = k};
        uint64_t start = platform_now_us();
        pool_run(p, multiply_peak, &m);
        double s = 1e-6 * (double)(platform_now_us() - start + 1);
        if ((double)m.macs / s > best) best = (double)m.macs / s;
    }
    return best;
}

/* ---- what the model asks for ---- */

static double weight_macs(const struct weight *w)
{
    return (double)w->n_out * w->n_in;
}

static double layer_macs(const struct model *m) /* per token, all layers */
{
    double macs = 0;
    for (int i = 0; i < m->hp.n_layer; i++) {
        const struct layer *l = &m->layers[i];
        const struct weight *w[] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof w / sizeof *w; j++) macs += weight_macs(w[j]);
    }
    return macs;
}

/* Attention's, of one token to n_keys keys. */
static double attention_macs(const struct hparams *hp, double n_keys)
{
    return (double)hp->n_layer * hp->n_head * (hp->k_dim + hp->v_dim) * n_keys;
}

/* Bytes of the weights that a step reads, with logits. */
static double step_bytes(const struct model *m)
{
    double embedding = (double)m->embedding.row_bytes * m->hp.n_vocab;
    return (double)m->weight_bytes - (m->tied ? 0 : embedding);
}

/* The matrices that the last layer leaves out for tokens whose output nobody asks for. */
static double left_out_macs(const struct model *m, double *bytes)
{
    const struct layer *l = &m->layers[m->hp.n_layer - 1];
    const struct weight *w[] = {&l->wq, &l->wo, &l->gate, &l->up, &l->down};
    double macs = 0;
    *bytes = 0;
    for (size_t j = 0; j < sizeof w / sizeof *w; j++) {
        macs += weight_macs(w[j]);
        *bytes += (double)w[j]->row_bytes * w[j]->n_out;
    }
    return macs;
}

/* ---- measuring ---- */

struct bench {
    struct options o;
    struct gguf *g;
    struct model *m;
    const struct kernels *k;
    struct decoder *d;
    struct kv_cache *kv;
    struct pool *p;
    double peak_bytes, peak_macs;
    int n_results;
};

struct result {
    const char *what; /* "prefill" or "decode" */
    int threads, tokens, depth, sequences;
    double seconds[MAX_REPEATS]; /* [repeats] */
    double bytes, macs;          /* of one measurement */
};

/* Small values without a pattern: of both signs, up to 1/4. */
static void fill_context(const struct hparams *hp, struct kv_seq *s, int n_tokens)
{
    uint32_t x = 1;
    for (int i = 0; i < n_tokens; i += KV_PAGE)
        for (int j = 0; j < hp->n_layer * hp->n_head_kv; j++) {
            struct kv_head head = kv_head_of(hp, s->pages[i / KV_PAGE], 0, j); /* layers lie next to each other */
            for (int e = 0; e < KV_SCALES; e++) head.scale[e] = 0x3980; /* 2^-12 */
            for (size_t e = 0; e < kv_count(hp->k_dim, hp->v_dim); e++) {
                x = x * 1664525 + 1013904223;
                head.data[e] = (int16_t)((int)(x >> 16 & 2047) - 1024);
            }
        }
}

static uint32_t arbitrary_token(const struct bench *b, int i)
{
    return (uint32_t)i * 7919u % (uint32_t)b->m->hp.n_vocab;
}

static void prefill(struct bench *b, struct kv_seq *s, int n)
{
    static struct batch_token batch[LLM_STEP_TOKENS];
    for (int done = 0; done < n;) {
        int take = n - done < LLM_STEP_TOKENS ? n - done : LLM_STEP_TOKENS;
        for (int i = 0; i < take; i++, done++)
            batch[i] = (struct batch_token){.id = arbitrary_token(b, done), .pos = s->n_tokens + i, .seq = s,
                                            .logits_row = done == n - 1 ? 0 : -1};
        decoder_forward(b->d, b->p, batch, take);
        s->n_tokens += take;
    }
}

static void decode(struct bench *b, struct kv_seq *s, int n_seqs, int n)
{
    struct batch_token *batch = calloc((size_t)n_seqs, sizeof *batch);
    if (!batch) fail("no memory", NULL);
    for (int step = 0; step < n; step++) {
        for (int i = 0; i < n_seqs; i++)
            batch[i] = (struct batch_token){.id = arbitrary_token(b, step * n_seqs + i), .pos = s[i].n_tokens, .seq = &s[i],
                                            .logits_row = i};
        decoder_forward(b->d, b->p, batch, n_seqs);
        for (int i = 0; i < n_seqs; i++) s[i].n_tokens++;
    }
    free(batch);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_result(struct bench *b, struct result *r)
{
    int n = b->o.repeats;
    qsort(r->seconds, (size_t)n, sizeof *r->seconds, compare_doubles);
    double median = n % 2 ? r->seconds[n / 2] : (r->seconds[n / 2 - 1] + r->seconds[n / 2]) / 2;
    double tokens = (double)r->tokens * r->sequences;
    double bytes = r->bytes / median, macs = r->macs / median;
    if (b->o.json) {
        printf("%s\n  {\"what\": \"%s\", \"kernels\": \"%s\", \"threads\": %d, \"depth\": %d, \"sequences\": %d, "
               "\"tokens\": %d, \"repeats\": %d, \"tokens_per_s\": %.3f, \"tokens_per_s_min\": %.3f, "
               "\"tokens_per_s_max\": %.3f, \"gb_per_s\": %.3f, \"gmac_per_s\": %.3f, \"peak_gb_per_s\": %.3f, ",
               b->n_results ? "," : "[", r->what, b->k->name, r->threads, r->depth, r->sequences, r->tokens, n,
               tokens / median, tokens / r->seconds[n - 1], tokens / r->seconds[0], bytes * 1e-9, macs * 1e-9,
               b->peak_bytes * 1e-9);
        if (b->peak_macs > 0)
            printf("\"peak_gmac_per_s\": %.3f}", b->peak_macs * 1e-9);
        else
            printf("\"peak_gmac_per_s\": null}");
    } else {
        char what[32], share[16] = "";
        snprintf(what, sizeof what, "%s %d", r->what, r->tokens);
        if (b->peak_macs > 0) snprintf(share, sizeof share, "%3.0f%%", 100 * macs / b->peak_macs);
        printf("%-14s %7d %6d %5d %10.1f %10.1f %10.1f %8.1f %3.0f%% %9.1f %s\n", what, r->threads, r->depth, r->sequences,
               tokens / median, tokens / r->seconds[n - 1], tokens / r->seconds[0], bytes * 1e-9,
               100 * bytes / b->peak_bytes, macs * 1e-9, share);
    }
    b->n_results++;
    fflush(stdout);
}

static void measure(struct bench *b, int threads, const char *what, int tokens, int depth, int n_seqs, struct kv_seq *s)
{
    static struct result r;
    const struct hparams *hp = &b->m->hp;
    bool is_prefill = strcmp(what, "prefill") == 0;
    r = (struct result){.what = what, .threads = threads, .tokens = tokens, .depth = depth, .sequences = n_seqs};
    double kv_bytes = (double)kv_page_bytes(hp) / KV_PAGE; /* of one token */
    double keys = (double)tokens * (depth + 0.5 * (tokens + 1)); /* seen by one sequence's tokens */
    int steps = is_prefill ? (tokens + LLM_STEP_TOKENS - 1) / LLM_STEP_TOKENS : tokens;
    r.bytes = steps * step_bytes(b->m) + n_seqs * kv_bytes * (is_prefill ? (double)steps * (depth + tokens / 2.0) : keys);
    r.macs = n_seqs * (tokens * layer_macs(b->m) + attention_macs(hp, keys) +
                       (is_prefill ? 1 : tokens) * weight_macs(&b->m->output));
    if (is_prefill) { /* only the last token's output is asked for */
        double bytes, macs = left_out_macs(b->m, &bytes);
        r.bytes -= (steps - 1) * (bytes + (double)b->m->output.row_bytes * b->m->output.n_out);
        r.macs -= (tokens - 1) * macs + attention_macs(hp, keys - depth - tokens) / hp->n_layer;
    }
    for (int i = -1; i < b->o.repeats; i++) { /* the first one warms up */
        for (int j = 0; j < n_seqs; j++) s[j].n_tokens = depth;
        uint64_t start = platform_now_us();
        if (is_prefill)
            prefill(b, s, tokens);
        else
            decode(b, s, n_seqs, i < 0 && tokens > 4 ? 4 : tokens);
        if (i >= 0) r.seconds[i] = 1e-6 * (double)(platform_now_us() - start + 1);
    }
    print_result(b, &r);
}

static struct kv_seq *start_sequences(struct bench *b, int n_seqs, int depth, int tokens)
{
    struct kv_seq *s = calloc((size_t)n_seqs, sizeof *s);
    if (!s) fail("no memory", NULL);
    for (int i = 0; i < n_seqs; i++) {
        static const uint32_t none[1];
        if (kv_seq_start(b->kv, &s[i], none, 1, depth + tokens, 0) != 0 || kv_seq_reserve(&s[i], depth + tokens) != 0)
            fail("no room in the KV cache", NULL);
        fill_context(&b->m->hp, &s[i], depth);
    }
    return s;
}

static void end_sequences(struct kv_seq *s, int n_seqs)
{
    for (int i = 0; i < n_seqs; i++) kv_seq_end(&s[i], NULL, 0);
    free(s);
}

static int most(const struct list *l)
{
    int m = 0;
    for (int i = 0; i < l->n; i++) m = l->value[i] > m ? l->value[i] : m;
    return m;
}

/* The most memory that this process had at once, the file's pages that it touched included. */
static double most_resident_mb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
#ifdef __APPLE__
    return (double)u.ru_maxrss * 1e-6; /* bytes there, kilobytes elsewhere */
#else
    return (double)u.ru_maxrss * 1024e-6;
#endif
}

static void *run(void *arg)
{
    struct bench *b = arg;
    struct options *o = &b->o;
    struct infer_error err;
    const char *why = NULL;
    platform_worker_thread("infer-0");
    b->k = kernels_select(&why);
    if (!b->k) fail("no kernels", why);
    uint64_t start = platform_now_us();
    b->g = gguf_open(o->file, &err);
    if (!b->g) fail(o->file, err.message);
    b->m = model_load(b->g, &err);
    if (!b->m) fail(o->file, err.message);
    double load_ms = 1e-3 * (double)(platform_now_us() - start);

    int n_seqs = most(&o->batches), prompt = most(&o->prompts), longest = prompt > o->n_decode ? prompt : o->n_decode;
    int max_tokens = n_seqs > LLM_STEP_TOKENS ? n_seqs : LLM_STEP_TOKENS;
    b->d = decoder_create(b->m, b->k, max_tokens, n_seqs, &err);
    if (!b->d) fail("decoder", err.message);
    size_t pages = ((size_t)most(&o->depths) + (size_t)longest + KV_PAGE) / KV_PAGE * (size_t)n_seqs;
    b->kv = kv_create(&b->m->hp, pages * kv_page_bytes(&b->m->hp), &err);
    if (!b->kv) fail("KV cache", err.message);

    if (!o->json)
        printf("%s: %s, %s, %.0f M parameters, %.1f MB of weights, opened in %.1f ms, %.1f MB of activations\n"
               "kernels: %s\n", o->file, b->m->hp.architecture, model_quantization(b->m),
               (double)b->m->n_parameters * 1e-6, (double)b->m->weight_bytes * 1e-6, load_ms,
               (double)decoder_bytes(b->d) * 1e-6, b->k->name);
    for (int t = 0; t < o->threads.n; t++) {
        int threads = o->threads.value[t];
        b->p = pool_create(threads, b->k->scratch_bytes, "infer", &err);
        if (!b->p) fail("threads", err.message);
        b->peak_bytes = read_bandwidth(b->p, b->g);
        b->peak_macs = multiply_bandwidth(b->p, b->k);
        pool_follow_load(b->p, true); /* as the runtime's does */
        if (!o->json) {
            printf("%d thread%s: reads %.1f GB/s", threads, threads == 1 ? "" : "s", b->peak_bytes * 1e-9);
            if (b->peak_macs > 0) printf(", multiplies %.0f GMAC/s of int8", b->peak_macs * 1e-9);
            printf("\n%-14s %7s %6s %5s %10s %10s %10s %8s %4s %9s\n", "", "threads", "depth", "seqs", "tok/s", "min",
                   "max", "GB/s", "", "GMAC/s");
        }
        for (int d = 0; d < o->depths.n; d++) {
            int depth = o->depths.value[d];
            for (int p = 0; p < o->prompts.n; p++) {
                if (o->prompts.value[p] == 0) continue;
                struct kv_seq *s = start_sequences(b, 1, depth, o->prompts.value[p]);
                measure(b, threads, "prefill", o->prompts.value[p], depth, 1, s);
                end_sequences(s, 1);
            }
            for (int i = 0; i < o->batches.n && o->n_decode > 0; i++) {
                struct kv_seq *s = start_sequences(b, o->batches.value[i], depth, o->n_decode);
                measure(b, threads, "decode", o->n_decode, depth, o->batches.value[i], s);
                end_sequences(s, o->batches.value[i]);
            }
        }
        pool_free(b->p);
    }
    if (o->json) puts(b->n_results ? "\n]" : "[]");
    else printf("%.0f MB resident at most, for %.0f MB of weights and %.0f MB of KV cache\n", most_resident_mb(),
                (double)b->m->weight_bytes * 1e-6, (double)(pages * kv_page_bytes(&b->m->hp)) * 1e-6);
    kv_free(b->kv);
    decoder_free(b->d);
    model_free(b->m);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct bench b;
    b.o = parse_options(argc, argv);
    /* A thread of its own, since the conductor's priority and signal mask are not for the
     * thread that ^C should reach. */
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, &b) != 0) fail("no thread", NULL);
    pthread_join(thread, NULL);
    return 0;
}
