/* Attention kernels of every table: against the scalar table for equality of bits, and the
 * scalar table against a softmax in float64. */
#include "kernel_test.h"
#include "kv_head.h"

enum { MAX_PAGES = 5, MAX_DIM = 1024, MAX_QUERIES = 80, MAX_KEYS = MAX_PAGES * KV_PAGE };

/* Keys and values of one head, as pages and as they were. Slots past the last key hold what must not matter. */
struct cache {
    int k_dim, v_dim;
    float k[MAX_KEYS][MAX_DIM], v[MAX_KEYS][MAX_DIM];
    struct kv_head pages[MAX_PAGES + 1]; /* the last one NULL */
};

static struct cache cache;

/* Both of its parts end at a page that cannot be accessed. */
static struct kv_head head_at_end(int which, int k_dim, int v_dim)
{
    static struct guarded data[MAX_PAGES], scale[MAX_PAGES];
    if (!data[which].page) data[which] = guarded_alloc(kv_count(MAX_DIM, MAX_DIM) * sizeof(int16_t));
    if (!scale[which].page) scale[which] = guarded_alloc(KV_SCALES * sizeof(uint16_t));
    return (struct kv_head){.data = (int16_t *)(void *)data[which].end - kv_count(k_dim, v_dim),
                            .scale = (uint16_t *)(void *)scale[which].end - KV_SCALES};
}

static void fill_cache(int k_dim, int v_dim, int n_keys)
{
    cache.k_dim = k_dim;
    cache.v_dim = v_dim;
    for (int p = 0; p < MAX_PAGES; p++) {
        cache.pages[p] = head_at_end(p, k_dim, v_dim);
        for (size_t i = 0; i < kv_count(k_dim, v_dim); i++) cache.pages[p].data[i] = INT16_MIN;
        for (int j = 0; j < KV_SCALES; j++) cache.pages[p].scale[j] = 0x7fc0; /* NaN */
    }
    for (int j = 0; j < n_keys; j++) {
        for (int d = 0; d < k_dim; d++) cache.k[j][d] = random_float() * 2;
        for (int d = 0; d < v_dim; d++) cache.v[j][d] = random_float();
        kv_head_store(&kernels_scalar, &cache.pages[j / KV_PAGE], cache.k[j], cache.v[j], k_dim, v_dim, j % KV_PAGE);
    }
}

static int k_element(int j, int d) { return cache.pages[j / KV_PAGE].data[kv_k_at(cache.k_dim, j % KV_PAGE, d)]; }

static int v_element(int j, int d)
{
    return cache.pages[j / KV_PAGE].data[kv_k_count(cache.k_dim) + kv_v_at(cache.v_dim, j % KV_PAGE, d)];
}

static double k_scale(int j) { return (double)bf16_to_f32(cache.pages[j / KV_PAGE].scale[j % KV_PAGE]); }
static double v_scale(int j) { return (double)bf16_to_f32(cache.pages[j / KV_PAGE].scale[KV_PAGE + j % KV_PAGE]); }

/* Queries of k_dim elements, each at the end of its row. */
static void narrow_queries(struct kv_query *queries, float (*q)[MAX_DIM], const int *n_keys, int n_q, int k_dim)
{
    static int16_t narrow[MAX_QUERIES][MAX_DIM];
    for (int i = 0; i < n_q; i++) {
        int16_t *at = narrow[i] + MAX_DIM - (k_dim + 1) / 2 * 2;
        queries[i] = (struct kv_query){.q = at, .n_keys = n_keys[i]};
        queries[i].scale = kernels_scalar.narrow(at, q[i], k_dim, NARROW_BY_LENGTH);
    }
}

struct result {
    float m[MAX_QUERIES], l[MAX_QUERIES], acc[MAX_QUERIES * MAX_DIM];
};

static void attend(const struct kernels *k, const struct kv_query *queries, int n_q, struct result *r)
{
    memset(r, 0xff, sizeof *r); /* NaN: nothing may be taken over */
    k->attend(queries, n_q, cache.k_dim, cache.v_dim, cache.pages, r->m, r->l, r->acc,
              table_scratch(k));
}

static const int dims[][2] = {{64, 64}, {128, 128}, {96, 96}, {80, 80}, {32, 64}, {1, 1}, {7, 5}, {33, 47}, {72, 120}, {136, 136},
                              {1024, 1023}};
enum { N_DIMS = sizeof dims / sizeof *dims };

static void attention_is_the_same_in_every_table(void)
{
    static float q[MAX_QUERIES][MAX_DIM];
    static struct result expected, got;
    for (int i = 0; i < N_DIMS; i++) {
        int k_dim = dims[i][0], v_dim = dims[i][1];
        fill_cache(k_dim, v_dim, MAX_KEYS - 5);
        for (int round = 0; round < (k_dim > 200 ? 3 : 30); round++) {
            int n_q = 1 + (int)(random_bits() % (round < 15 ? 6 : MAX_QUERIES)), n_keys[MAX_QUERIES];
            struct kv_query queries[MAX_QUERIES];
            for (int j = 0; j < n_q; j++) {
                n_keys[j] = (int)(random_bits() % (MAX_KEYS - 5 + 1));
                if (round % 3 == 1) n_keys[j] = 200 + j;                 /* tokens of one prompt */
                if (round % 3 == 2) n_keys[j] = round * 8 - 4 * (j % 5 == 0); /* heads of one token */
                for (int d = 0; d < k_dim; d++) q[j][d] = random_float() * (round % 7 == 6 ? 40.0f : 1.0f);
            }
            narrow_queries(queries, q, n_keys, n_q, k_dim);
            attend(&kernels_scalar, queries, n_q, &expected);
            for_each_table(k) {
                attend(k, queries, n_q, &got);
                CHECK_SAME(got.m, expected.m, n_q, "%s m, heads of %d, round %d", k->name, k_dim, round);
                CHECK_SAME(got.l, expected.l, n_q, "%s l, heads of %d, round %d", k->name, k_dim, round);
                CHECK_SAME(got.acc, expected.acc, n_q * v_dim, "%s acc, heads of %d, round %d", k->name, v_dim, round);
            }
        }
    }
}

/* Of the integers: scores, weights and sums have relative errors of about 64 * 2^-24 of their magnitudes; scores
 * below 20 in magnitude make that of a weight 20 times as much at most. The weights of a page are rounded to WEIGHT_LEVELS
 * of the largest. Of the vectors that were stored: an element of a vector of some length is off by half of a level of it, one
 * of a value by half of a level of the largest. */
static void attention_is_a_softmax_average(void)
{
    enum { DIM = 64, KEYS = 150, QUERIES = 5 };
    static struct result r;
    fill_cache(DIM, DIM, KEYS);
    static float q[MAX_QUERIES][MAX_DIM];
    struct kv_query queries[QUERIES];
    int n_keys[QUERIES] = {1, 64, 65, 128, 150};
    for (int i = 0; i < QUERIES; i++)
        for (int d = 0; d < DIM; d++) q[i][d] = random_float() / 4;
    narrow_queries(queries, q, n_keys, QUERIES, DIM);
    attend(&kernels_scalar, queries, QUERIES, &r);
    for (int i = 0; i < QUERIES; i++) {
        double p[KEYS], exact[KEYS], total = 0, exact_total = 0, top = -INFINITY, largest[MAX_PAGES] = {0};
        for (int j = 0; j < n_keys[i]; j++) {
            p[j] = exact[j] = 0;
            for (int d = 0; d < DIM; d++) {
                p[j] += (double)queries[i].q[d] * k_element(j, d);
                exact[j] += (double)q[i][d] * (double)cache.k[j][d];
            }
            p[j] *= (double)queries[i].scale * k_scale(j);
            CHECKF(fabs(p[j] - exact[j]) <= 8e-4, "score %g, of vectors in float64 %g", p[j], exact[j]);
            if (p[j] > top) top = p[j];
        }
        for (int j = 0; j < n_keys[i]; j++) {
            total += p[j] = exp(p[j] - top);
            exact_total += exact[j] = exp(exact[j] - top);
            double weight = p[j] * v_scale(j);
            if (weight > largest[j / KV_PAGE]) largest[j / KV_PAGE] = weight;
        }
        CHECKF(fabs((double)r.m[i] - top) <= 1e-5, "maximum %g, float64 %g", (double)r.m[i], top);
        CHECKF(fabs((double)r.l[i] - total) <= total * 1e-5, "sum %g, float64 %g", (double)r.l[i], total);
        for (int d = 0; d < DIM; d++) {
            double v = 0, exact_v = 0, bound = 1e-5, got = (double)(r.acc[i * DIM + d] / r.l[i]);
            for (int j = 0; j < n_keys[i]; j++) {
                v += p[j] / total * v_element(j, d) * v_scale(j);
                exact_v += exact[j] / exact_total * (double)cache.v[j][d];
                bound += largest[j / KV_PAGE] / WEIGHT_LEVELS / 2 * abs(v_element(j, d)) / total;
            }
            CHECKF(fabs(got - v) <= bound, "query %d element %d: %g, float64 %g", i, d, got, v);
            CHECKF(fabs(got - exact_v) <= 5e-4, "query %d element %d: %g, of vectors in float64 %g", i, d, got, exact_v);
        }
    }
}

/* A page of the largest values and weights there can be, and of keys that lie along one axis: nothing overflows. */
static void the_largest_integers_fit(void)
{
    enum { DIM = 128 };
    static struct result r, got;
    static float q[MAX_QUERIES][MAX_DIM];
    int n_keys[1] = {KV_PAGE};
    struct kv_query query;
    fill_cache(DIM, DIM, KV_PAGE);
    for (int d = 0; d < DIM; d++) q[1][d] = (d % 3 ? 1 : -1) * 0x1p-12f * VALUE_LEVELS; /* no rounding */
    q[0][5] = 0x1p-15f * KEY_LEVELS;
    for (int j = 0; j < KV_PAGE; j++) kv_head_store(&kernels_scalar, &cache.pages[0], q[0], q[1], DIM, DIM, j);
    narrow_queries(&query, q, n_keys, 1, DIM);
    attend(&kernels_scalar, &query, 1, &r);
    CHECKF(fabsf(r.m[0] - q[0][5] * q[0][5]) < 1e-6f, "score %g of a vector with itself", (double)r.m[0]);
    CHECKF(fabsf(r.l[0] - KV_PAGE) < 1e-3f, "sum %g", (double)r.l[0]);
    for (int d = 0; d < DIM; d++) CHECKF(fabsf(r.acc[d] / r.l[0] - q[1][d]) < 1e-5f, "%g", (double)r.acc[d]);
    for_each_table(k) {
        attend(k, &query, 1, &got);
        CHECK_SAME(got.acc, r.acc, DIM, "%s acc", k->name);
        CHECK_SAME(got.m, r.m, 1, "%s m", k->name);
    }
}

/* What is no number is so for all queries that see it, and for no other. */
static void nan_reaches_who_sees_it(void)
{
    static float q[MAX_QUERIES][MAX_DIM];
    int n_keys[3] = {70, 71, 72};
    struct kv_query queries[3];
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        static struct result r;
        fill_cache(16, 16, 80);
        for (int d = 0; d < 16; d++) q[0][d] = q[1][d] = q[2][d] = 0.5f;
        cache.v[70][5] = NAN;
        cache.k[71][3] = INFINITY;
        for (int j = 70; j < 72; j++) kv_head_store(*k, &cache.pages[1], cache.k[j], cache.v[j], 16, 16, j - KV_PAGE);
        narrow_queries(queries, q, n_keys, 3, 16);
        attend(*k, queries, 3, &r);
        CHECKF(r.l[0] >= 1 && r.acc[5] == r.acc[5], "%s: not seen, but there", (*k)->name);
        CHECKF(r.l[1] >= 1 && r.l[2] != r.l[2], "%s: sums without and with a key without a score", (*k)->name);
        CHECKF(r.m[2] == r.m[2], "%s: maximum", (*k)->name);
        for (int d = 16; d < 48; d++) CHECKF(r.acc[d] != r.acc[d], "%s: element %d", (*k)->name, d);
    }
}

/* Values of zero and of nearly nothing, keys and values that are no numbers: pages whose weights have scale 0, or NaN. */
static void special_values_are_the_same_in_every_table(void)
{
    enum { DIM = 40, N = 8 };
    static float q[MAX_QUERIES][MAX_DIM];
    static struct result expected, got;
    const int n_keys[N] = {60, 100, 128, 150, 192, 197, 198, 300};
    struct kv_query queries[N];
    fill_cache(DIM, DIM, MAX_KEYS);
    for (int j = KV_PAGE; j < MAX_KEYS; j++) {
        for (int d = 0; d < DIM; d++) {
            if (j < 2 * KV_PAGE) cache.v[j][d] = 0;
            else if (j < 3 * KV_PAGE) cache.v[j][d] = 0x1p-110f;
        }
        if (j == 3 * KV_PAGE + 5) cache.v[j][1] = -INFINITY;
        if (j == 4 * KV_PAGE + 5) cache.k[j][1] = NAN;
        kv_head_store(&kernels_scalar, &cache.pages[j / KV_PAGE], cache.k[j], cache.v[j], DIM, DIM, j % KV_PAGE);
    }
    for (int first = 0; first <= MAX_PAGES; first++) { /* pages come in another order each time, then the zeros alone */
        struct kv_head pages[MAX_PAGES + 1] = {{NULL, NULL}};
        for (int p = 0; p < MAX_PAGES; p++) pages[p] = cache.pages[first < MAX_PAGES ? (first + p) % MAX_PAGES : 1];
        for (int i = 0; i < N; i++)
            for (int d = 0; d < DIM; d++) q[i][d] = first == 3 && i == 2 ? 0 : random_float();
        narrow_queries(queries, q, n_keys, N, DIM);
        kernels_scalar.attend(queries, N, DIM, DIM, pages, expected.m, expected.l, expected.acc, table_scratch(&kernels_scalar));
        for_each_table(k) {
            k->attend(queries, N, DIM, DIM, pages, got.m, got.l, got.acc, table_scratch(k));
            CHECK_SAME(got.m, expected.m, N, "%s m, order %d", k->name, first);
            CHECK_SAME(got.l, expected.l, N, "%s l, order %d", k->name, first);
            CHECK_SAME(got.acc, expected.acc, N * DIM, "%s acc, order %d", k->name, first);
        }
    }
}

static void a_query_without_keys_is_empty(void)
{
    static float q[MAX_QUERIES][MAX_DIM];
    struct kv_query queries[3];
    int n_keys[3] = {0, 70, 0};
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        static struct result r;
        fill_cache(8, 8, 80);
        narrow_queries(queries, q, n_keys, 3, 8);
        attend(*k, queries, 3, &r);
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

/* Every element within half a level; the same in every table; nothing beyond the end read or written. */
static void vectors_become_integers(void)
{
    static struct guarded in;
    if (!in.page) in = guarded_alloc(MAX_DIM * sizeof(float));
    for (int n = 1; n <= MAX_DIM; n += n == 136 ? MAX_DIM - 137 : 1)
        for (int round = 0; round < 14; round++) {
            enum narrow_by by = round % 2 ? NARROW_BY_LARGEST : NARROW_BY_LENGTH;
            float *x = (float *)(void *)in.end - n;
            double length = 0, largest = 0;
            for (int i = 0; i < n; i++) {
                x[i] = random_float() * ldexpf(1, (int)(random_bits() % 20) - 10);
                if (round >= 10) x[i] = round >= 12 ? 0 : -0x1p-70f; /* squares are lost */
            }
            if (round == 2 || round == 3) x[n / 2] = NAN;
            if (round == 4 || round == 5) x[n - 1] = -INFINITY;
            if (round == 6) x[0] = 0x1p70f; /* its square is infinite */
            for (int i = 0; i < n; i++) {
                length += (double)x[i] * (double)x[i];
                if (fabs((double)x[i]) > largest) largest = fabs((double)x[i]);
            }
            int16_t expected[MAX_DIM + 2], got[MAX_DIM + 2];
            memset(expected, 0x55, sizeof expected);
            float scale = kernels_scalar.narrow(expected, x, n, by);
            for (int i = n + n % 2; i < MAX_DIM + 2; i++) CHECK(expected[i] == 0x5555);
            CHECK(n % 2 == 0 || expected[n] == 0);
            if (round >= 2 && round <= 6) {
                CHECKF(scale != scale, "scale %g of what is no number", (double)scale);
                for (int i = 0; i < n; i++) CHECK(expected[i] == 0);
            } else if (round >= 12 || round == 10) {
                CHECKF(scale == 0, "scale %g of zeros", (double)scale);
                for (int i = 0; i < n; i++) CHECK(expected[i] == 0);
            } else {
                double whole = by == NARROW_BY_LENGTH ? sqrt(length) / KEY_LEVELS : largest / VALUE_LEVELS, squares = 0;
                CHECKF((double)scale >= whole * (1 - 1e-5) && (double)scale <= whole * 1.008, "scale %g, float64 %g", (double)scale, whole);
                for (int i = 0; i < n; i++) {
                    double off = fabs((double)x[i] - expected[i] * (double)scale);
                    CHECKF(off <= 0.5001 * (double)scale, "n %d: %g is off by %g levels", n, (double)x[i], off / (double)scale);
                    CHECK(by == NARROW_BY_LENGTH || abs(expected[i]) <= VALUE_LEVELS);
                    squares += (double)expected[i] * expected[i];
                }
                CHECKF(by == NARROW_BY_LARGEST || squares < (double)INT32_MAX, "the product with itself is %g", squares);
            }
            for_each_table(k) {
                memset(got, 0x55, sizeof got);
                float got_scale = k->narrow(got, x, n, by);
                CHECK_SAME(&got_scale, &scale, 1, "%s scale, n %d, round %d", k->name, n, round);
                CHECKF(memcmp(got, expected, sizeof got) == 0, "%s integers, n %d, round %d", k->name, n, round);
            }
        }
}

static void keys_and_values_are_stored_in_their_slot(void)
{
    enum { SHAPES = 2 };
    static const int shapes[SHAPES][2] = {{70, 45}, {33, 64}};
    for (int s = 0; s < SHAPES; s++) {
        int k_dim = shapes[s][0], v_dim = shapes[s][1];
        float k_in[MAX_DIM], v_in[MAX_DIM];
        int16_t k_out[MAX_DIM], v_out[MAX_DIM];
        for (int slot = 0; slot < KV_PAGE; slot++) {
            fill_cache(k_dim, v_dim, 0);
            for (int d = 0; d < k_dim; d++) k_in[d] = random_float();
            for (int d = 0; d < v_dim; d++) v_in[d] = random_float();
            float k_out_scale = kernels_scalar.narrow(k_out, k_in, k_dim, NARROW_BY_LENGTH);
            float v_out_scale = kernels_scalar.narrow(v_out, v_in, v_dim, NARROW_BY_LARGEST);
            kv_head_store(&kernels_scalar, &cache.pages[0], k_in, v_in, k_dim, v_dim, slot);
            for (int j = 0; j < KV_PAGE; j++) {
                CHECK(j == slot ? k_scale(j) == (double)k_out_scale && v_scale(j) == (double)v_out_scale
                                : isnan(k_scale(j)) && isnan(v_scale(j)));
                for (int d = 0; d < k_dim; d++) CHECK(k_element(j, d) == (j == slot ? k_out[d] : INT16_MIN));
                for (int d = 0; d < v_dim; d++) CHECK(v_element(j, d) == (j == slot ? v_out[d] : INT16_MIN));
                if (k_dim % 2) CHECK(k_element(j, k_dim) == (j == slot ? 0 : INT16_MIN));
            }
        }
    }
}

int main(void)
{
    RUN(vectors_become_integers);
    RUN(keys_and_values_are_stored_in_their_slot);
    RUN(attention_is_the_same_in_every_table);
    RUN(attention_is_a_softmax_average);
    RUN(the_largest_integers_fit);
    RUN(nan_reaches_who_sees_it);
    RUN(special_values_are_the_same_in_every_table);
    RUN(a_query_without_keys_is_empty);
    RUN(spans_merge_alike_and_to_the_whole);
    return check_result();
}
