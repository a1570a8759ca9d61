/* Attention kernels of every table: against the scalar table for equality of bits, and the
 * scalar table against a softmax in float64. */
#include "kernel_test.h"

enum { MAX_PAGES = 5, MAX_DIM = 136, MAX_QUERIES = 40, MAX_KEYS = MAX_PAGES * KV_PAGE };

/* Keys and values of one head, as pages and as they were. Slots past the last key hold NaN. */
struct cache {
    int k_dim, v_dim;
    float k[MAX_KEYS][MAX_DIM], v[MAX_KEYS][MAX_DIM];
    uint16_t *k_pages[MAX_PAGES + 1], *v_pages[MAX_PAGES + 1]; /* the last one NULL */
};

static struct cache cache;

/* The f16 numbers that end at a page that cannot be accessed. */
static uint16_t *page_at_end(int which, int n)
{
    static struct guarded g[2 * MAX_PAGES];
    if (!g[which].page) g[which] = guarded_alloc(MAX_DIM * KV_PAGE * sizeof(uint16_t));
    return (uint16_t *)(void *)g[which].end - n;
}

static void fill_cache(const struct kernels *k, int k_dim, int v_dim, int n_keys)
{
    cache.k_dim = k_dim;
    cache.v_dim = v_dim;
    for (int p = 0; p < MAX_PAGES; p++) {
        cache.k_pages[p] = page_at_end(2 * p, k_dim * KV_PAGE);
        cache.v_pages[p] = page_at_end(2 * p + 1, v_dim * KV_PAGE);
        for (int i = 0; i < k_dim * KV_PAGE; i++) cache.k_pages[p][i] = 0x7e00; /* NaN */
        for (int i = 0; i < v_dim * KV_PAGE; i++) cache.v_pages[p][i] = 0x7e00;
    }
    for (int j = 0; j < n_keys; j++) {
        for (int d = 0; d < k_dim; d++) cache.k[j][d] = random_float() * 2;
        for (int d = 0; d < v_dim; d++) cache.v[j][d] = random_float();
        k->kv_store(cache.k_pages[j / KV_PAGE], cache.v_pages[j / KV_PAGE], cache.k[j], cache.v[j], k_dim, v_dim,
                    j % KV_PAGE);
    }
}

struct result {
    float m[MAX_QUERIES], l[MAX_QUERIES], acc[MAX_QUERIES * MAX_DIM];
};

static void attend(const struct kernels *k, const float *const *q, const int *n_keys, int n_q, struct result *r)
{
    memset(r, 0xff, sizeof *r); /* NaN: nothing may be taken over */
    k->attend(q, n_keys, n_q, cache.k_dim, cache.v_dim, (const uint16_t *const *)cache.k_pages,
              (const uint16_t *const *)cache.v_pages, r->m, r->l, r->acc, table_scratch(k));
}

static const int dims[][2] = {{64, 64}, {128, 128}, {96, 96}, {80, 80}, {32, 64}, {1, 1}, {7, 5}, {33, 47}, {72, 120}, {136, 136}};
enum { N_DIMS = sizeof dims / sizeof *dims };

static void attention_is_the_same_in_every_table(void)
{
    static float q[MAX_QUERIES][MAX_DIM];
    static struct result expected, got;
    for (int i = 0; i < N_DIMS; i++) {
        int k_dim = dims[i][0], v_dim = dims[i][1];
        fill_cache(&kernels_scalar, k_dim, v_dim, MAX_KEYS - 5);
        for (int round = 0; round < 30; round++) {
            int n_q = 1 + (int)(random_bits() % (round < 15 ? 6 : MAX_QUERIES)), n_keys[MAX_QUERIES];
            const float *rows[MAX_QUERIES];
            for (int j = 0; j < n_q; j++) {
                n_keys[j] = (int)(random_bits() % (MAX_KEYS - 5 + 1));
                if (round % 3 == 1) n_keys[j] = 200 + j;                 /* tokens of one prompt */
                if (round % 3 == 2) n_keys[j] = round * 8 - 4 * (j % 5 == 0); /* heads of one token */
                rows[j] = q[j];
                for (int d = 0; d < k_dim; d++) q[j][d] = random_float() * (round % 7 == 6 ? 40.0f : 1.0f);
            }
            attend(&kernels_scalar, rows, n_keys, n_q, &expected);
            for_each_table(k) {
                attend(k, rows, n_keys, n_q, &got);
                CHECK_SAME(got.m, expected.m, n_q, "%s m, heads of %d, round %d", k->name, k_dim, round);
                CHECK_SAME(got.l, expected.l, n_q, "%s l, heads of %d, round %d", k->name, k_dim, round);
                CHECK_SAME(got.acc, expected.acc, n_q * v_dim, "%s acc, heads of %d, round %d", k->name, v_dim, round);
            }
        }
    }
}

/* Scores, weights and sums have relative errors of about (dim + keys) * 2^-24 of their magnitudes; scores
 * below 20 in magnitude make that of a weight 20 times as much at most. K and V are taken as rounded to f16. */
static void attention_is_a_softmax_average(void)
{
    enum { DIM = 64, KEYS = 150, QUERIES = 5 };
    static struct result r;
    fill_cache(&kernels_scalar, DIM, DIM, KEYS);
    float q[QUERIES][DIM];
    const float *rows[QUERIES];
    int n_keys[QUERIES] = {1, 64, 65, 128, 150};
    for (int i = 0; i < QUERIES; i++) {
        rows[i] = q[i];
        for (int d = 0; d < DIM; d++) q[i][d] = random_float() / 4;
    }
    attend(&kernels_scalar, rows, n_keys, QUERIES, &r);
    for (int i = 0; i < QUERIES; i++) {
        double p[KEYS], total = 0, top = -INFINITY;
        for (int j = 0; j < n_keys[i]; j++) {
            p[j] = 0;
            for (int d = 0; d < DIM; d++) p[j] += (double)q[i][d] * (double)f16_to_f32(f32_to_f16(cache.k[j][d]));
            if (p[j] > top) top = p[j];
        }
        for (int j = 0; j < n_keys[i]; j++) total += p[j] = exp(p[j] - top);
        CHECKF(fabs((double)r.m[i] - top) <= 1e-5, "maximum %g, float64 %g", (double)r.m[i], top);
        CHECKF(fabs((double)r.l[i] - total) <= total * 1e-5, "sum %g, float64 %g", (double)r.l[i], total);
        for (int d = 0; d < DIM; d++) {
            double v = 0;
            for (int j = 0; j < n_keys[i]; j++) v += p[j] / total * (double)f16_to_f32(f32_to_f16(cache.v[j][d]));
            CHECKF(fabs((double)(r.acc[i * DIM + d] / r.l[i]) - v) <= 1e-5, "query %d element %d: %g, float64 %g", i, d,
                   (double)(r.acc[i * DIM + d] / r.l[i]), v);
        }
    }
}

static void a_query_without_keys_is_empty(void)
{
    static float q[MAX_DIM];
    const float *rows[3] = {q, q, q};
    int n_keys[3] = {0, 70, 0};
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        static struct result r;
        fill_cache(&kernels_scalar, 8, 8, 80);
        attend(*k, rows, n_keys, 3, &r);
        for (int i = 0; i < 3; i += 2) {
            CHECKF(r.m[i] == -INFINITY && r.l[i] == 0, "%s", (*k)->name);
            for (int d = 0; d < 8; d++) CHECK(r.acc[i * 8 + d] == 0);
        }
        CHECKF(fabsf(r.l[1] - 70) < 1e-3f, "%s: 70 equal weights sum to %g", (*k)->name, (double)r.l[1]);
    }
}

static void spans_merge_alike_and_to_the_whole(void)
{
    enum { DIM = 100 };
    for (int round = 0; round < 50; round++) {
        float acc[DIM], acc2[DIM], expected[DIM], m = random_float() * 20, l = 1 + random_float(), m2 = random_float() * 20, l2 = 2;
        if (round % 10 == 1) m = -INFINITY, l = 0;
        if (round % 10 == 2) m2 = -INFINITY, l2 = 0;
        if (round % 10 == 3) m = m2 = -INFINITY, l = l2 = 0;
        int dim = round * 2 + 1;
        for (int d = 0; d < dim; d++) {
            acc[d] = m == -INFINITY ? 0 : random_float();
            acc2[d] = m2 == -INFINITY ? 0 : random_float();
            expected[d] = acc[d];
        }
        float em = m, el = l;
        kernels_scalar.attend_merge(&em, &el, expected, m2, l2, acc2, dim);
        double top = fmax((double)m, (double)m2), a = top == -INFINITY ? 0 : exp((double)m - top), b = top == -INFINITY ? 0 : exp((double)m2 - top);
        CHECK((double)em == top);
        CHECK(fabs((double)el - ((double)l * a + (double)l2 * b)) <= 1e-6);
        for (int d = 0; d < dim; d++) CHECK(fabs((double)expected[d] - ((double)acc[d] * a + (double)acc2[d] * b)) <= 1e-6);
        for_each_table(k) {
            float y[DIM], gm = m, gl = l;
            memcpy(y, acc, sizeof y);
            k->attend_merge(&gm, &gl, y, m2, l2, acc2, dim);
            CHECK_SAME(&gm, &em, 1, "%s m", k->name);
            CHECK_SAME(&gl, &el, 1, "%s l", k->name);
            CHECK_SAME(y, expected, dim, "%s acc", k->name);
        }
    }
}

static void values_are_stored_in_their_slot_rounded_to_even(void)
{
    enum { K_DIM = 70, V_DIM = 45 };
    static uint16_t k_page[K_DIM * KV_PAGE], v_page[KV_PAGE * V_DIM];
    float k_in[K_DIM], v_in[V_DIM];
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        for (int slot = 0; slot < KV_PAGE; slot++) {
            for (int d = 0; d < K_DIM; d++) k_in[d] = random_float() * ldexpf(1, (int)(random_bits() % 45) - 28);
            for (int d = 0; d < V_DIM; d++) v_in[d] = random_float() * ldexpf(1, (int)(random_bits() % 45) - 28);
            k_in[0] = 65520, k_in[1] = -65519, k_in[2] = 2049, k_in[3] = 2051, k_in[4] = NAN, k_in[5] = 1e-9f, k_in[6] = -0.0f;
            v_in[0] = 65520, v_in[1] = 0x1p-25f, v_in[2] = 0x1.8p-24f, v_in[3] = INFINITY;
            memset(k_page, 0x11, sizeof k_page);
            memset(v_page, 0x11, sizeof v_page);
            (*k)->kv_store(k_page, v_page, k_in, v_in, K_DIM, V_DIM, slot);
            for (int j = 0; j < KV_PAGE; j++) {
                for (int d = 0; d < K_DIM; d++)
                    CHECKF(k_page[d * KV_PAGE + j] == (j == slot ? f32_to_f16(k_in[d]) : 0x1111), "%s k %g", (*k)->name, (double)k_in[d]);
                for (int d = 0; d < V_DIM; d++)
                    CHECKF(v_page[j * V_DIM + d] == (j == slot ? f32_to_f16(v_in[d]) : 0x1111), "%s v %g", (*k)->name, (double)v_in[d]);
            }
        }
    }
}

int main(void)
{
    RUN(values_are_stored_in_their_slot_rounded_to_even);
    RUN(attention_is_the_same_in_every_table);
    RUN(attention_is_a_softmax_average);
    RUN(a_query_without_keys_is_empty);
    RUN(spans_merge_alike_and_to_the_whole);
    return check_result();
}
