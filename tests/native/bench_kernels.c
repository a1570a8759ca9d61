/* Speed of the matrix products, by table, type and number of activation rows, and of
 * attention ("attend" for a type), by number of queries, on one thread:
 *
 *     bench_kernels [table [type [n_in [MB]]]]      "all" stands for any
 *
 * GB/s counts the bytes of weights read: the weights are 192 MB, larger than most caches, if
 * not told otherwise (0.3 lie in L2), so that with one row of activations it says how close decoding comes to memory. GMAC/s counts
 * multiplications. Time is this thread's processor time, so that other load on the machine disturbs
 * little; each figure is the best of several runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blocks.h"
#include "kernels.h"
#include "kv_head.h"
#include "platform.h"

enum { RUNS = 9, MAX_TOKENS = 256 };

static size_t weight_bytes;

static void *allocate(size_t bytes)
{
    void *p = platform_map_anonymous(bytes);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* In runs of at least 5 ms, going on through the weights from run to run. */
static double seconds_per_row(const struct kernels *k, const struct weight *w, const struct act *a, float *y, void *scratch)
{
    static int at; /* first row of the next run */
    double best = 1;
    int rows = ROW_TILE;
    for (int run = 0; run < RUNS;) {
        if (at + rows > w->n_out) at = 0;
        double start = thread_seconds();
        k->matmul[w->type](w, at, at + rows, a, y, (size_t)w->n_out, scratch);
        double seconds = thread_seconds() - start;
        at += rows;
        if (seconds < 0.005 && 2 * rows <= w->n_out) {
            rows *= 2; /* not long enough to be measured */
            continue;
        }
        if (seconds / rows < best) best = seconds / rows;
        run++;
    }
    return best;
}

static void bench(const struct kernels *k, enum tensor_type type, int n_in, unsigned char *data, struct act *a, float *y,
                  void *scratch)
{
    struct weight w = {.type = type, .n_in = n_in, .row_bytes = tensor_row_bytes(type, n_in), .data = data};
    w.n_out = (int)(weight_bytes / w.row_bytes) / ROW_TILE * ROW_TILE;
    if (tensor_type_info(type)->block == 1) /* floats: exponents that multiply to something */
        for (size_t i = (size_t)tensor_type_info(type)->block_bytes - 1; i < weight_bytes; i += (size_t)tensor_type_info(type)->block_bytes)
            data[i] = 0x3c;
    printf("%-8s %-5s", k->name, tensor_type_name(type));
    static const int counts[] = {1, 2, 3, 4, 6, 8, 16, 64, MAX_TOKENS};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        a->n_rows = counts[i];
        double s = seconds_per_row(k, &w, a, y, scratch);
        if (counts[i] <= 4) printf("  %d: %5.1f GB/s", counts[i], (double)w.row_bytes / s * 1e-9);
        else printf("  %d: %4.0f GMAC/s", counts[i], (double)n_in * counts[i] / s * 1e-9);
        fflush(stdout);
    }
    putchar('\n');
}

/* Attention of 1 to 192 queries to 4096 keys, heads of 64 and 128. GMAC/s counts both products. */
static void bench_attend(const struct kernels *k)
{
    enum { KEYS = 4096, PAGES = KEYS / KV_PAGE, QUERIES = 192 };
    static float q[QUERIES][128], m[QUERIES], l[QUERIES], acc[QUERIES * 128];
    static struct kv_query queries[QUERIES];
    static int16_t q_narrow[QUERIES][128];
    void *scratch = allocate(k->scratch_bytes);
    for (int dim = 64; dim <= 128; dim *= 2) {
        struct kv_head pages[PAGES + 1] = {{NULL, NULL}}; /* no page comes next */
        int16_t *cache = allocate(PAGES * kv_count(dim, dim) * sizeof *cache);
        uint16_t *scales = allocate(PAGES * KV_SCALES * sizeof *scales);
        for (int i = 0; i < KEYS; i++) {
            size_t page = (size_t)i / KV_PAGE;
            float key[128];
            pages[page] = (struct kv_head){cache + page * kv_count(dim, dim), scales + page * KV_SCALES};
            for (int d = 0; d < dim; d++) key[d] = (float)((i * dim + d) % 997) * 0.0003f;
            kv_head_store(k, &pages[page], key, key, dim, dim, i % KV_PAGE);
        }
        for (int i = 0; i < QUERIES; i++) {
            for (int d = 0; d < dim; d++) q[i][d] = (float)((i * 31 + d) % 17 - 8) * 0.01f;
            queries[i] = (struct kv_query){.q = q_narrow[i], .n_keys = KEYS};
            queries[i].scale = k->narrow(q_narrow[i], q[i], dim, NARROW_BY_LENGTH);
        }
        printf("%-8s attend, heads of %d", k->name, dim);
        static const int counts[] = {1, 2, 3, 4, 5, 6, 7, 8, QUERIES};
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            double best = 1;
            for (int run = 0; run < RUNS; run++) {
                double start = thread_seconds();
                k->attend(queries, counts[c], dim, dim, pages, m, l, acc, scratch);
                double seconds = thread_seconds() - start;
                if (seconds < best) best = seconds;
            }
            printf("  %d: %4.1f GMAC/s", counts[c], 2.0 * (double)KEYS * counts[c] * dim / best * 1e-9);
        }
        putchar('\n');
    }
}

int main(int argc, char **argv)
{
    const char *table = argc > 1 ? argv[1] : "all", *type = argc > 2 ? argv[2] : "all";
    int n_in = argc > 3 ? atoi(argv[3]) : 2560;
    if (n_in <= 0 || n_in % 256) {
        fprintf(stderr, "n_in must be a multiple of 256, not %s\n", argv[3]);
        return 1;
    }
    double mb = argc > 4 ? atof(argv[4]) : 192;
    if (!(mb * (1 << 20) >= (double)(ROW_TILE * tensor_row_bytes(TYPE_F32, n_in)))) {
        fprintf(stderr, "weights take at least %d rows of %d floats, %g MB are fewer\n", ROW_TILE, n_in, mb);
        return 1;
    }
    weight_bytes = (size_t)(mb * (1 << 20));
    /* Small numbers everywhere: scales are no NaN, whichever bytes they are. */
    unsigned char *data = allocate(weight_bytes);
    uint32_t state = 1;
    for (size_t i = 0; i < weight_bytes; i++) {
        state = state * 1664525 + 1013904223;
        data[i] = (state >> 24) & 0x3b;
    }
    struct act a = {.n_rows = MAX_TOKENS, .n = n_in, .ld_x = (size_t)n_in};
    size_t n = (size_t)n_in * MAX_TOKENS;
    float *x = allocate(n * sizeof(float));
    for (size_t i = 0; i < n; i++) x[i] = (float)(i * 2654435761u % 1000) - 500;
    a.x = x;
    a.q = allocate(n);
    a.scale = allocate(n / 32 * sizeof(float));
    a.sum = allocate(n / 16 * sizeof(int32_t));
    a.fsum = allocate(n / 16 * sizeof(float));
    for (int t = 0; t < MAX_TOKENS; t++) kernels_scalar.quantize(&a, t);
    float *y = allocate((weight_bytes / tensor_row_bytes(TYPE_Q2_K, n_in) + ROW_TILE) * MAX_TOKENS * sizeof(float));

    for (const struct kernels *const *k = kernels_available(); *k; k++)
        if ((strcmp(type, "all") == 0 || strcmp(type, "attend") == 0) &&
            (strcmp(table, "all") == 0 || strcmp(table, (*k)->name) == 0))
            bench_attend(*k);
    for (int t = 0; t < TYPE_COUNT; t++) {
        if (!tensor_type_supported((uint32_t)t)) continue;
        if (strcmp(type, "all") != 0 && strcmp(type, tensor_type_name((uint32_t)t)) != 0) continue;
        for (const struct kernels *const *k = kernels_available(); *k; k++) {
            if (strcmp(table, "all") != 0 && strcmp(table, (*k)->name) != 0) continue;
            bench(*k, (enum tensor_type)t, n_in, data, &a, y, allocate((*k)->scratch_bytes));
        }
    }
    return 0;
}
