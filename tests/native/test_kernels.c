/* Everything of the kernel tables but matrix products (test_matmul.c): each table against the
 * scalar one for equality of bits, and the scalar one against float64. */
#include "kernel_test.h"

#include "kernels_math.h"

/* Lengths around every register width, and real ones. */
static const int lengths[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 63, 64, 65, 100, 576, 1000, 2560};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths, MAX_LENGTH = 2560 };

/* Values that exercise a function: mostly moderate, some of every kind. */
static float awkward_float(void)
{
    static const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, 87.0f, -87.0f, -87.00001f, 88.0f, 88.5f, -104.0f, 1e30f,
                                    -1e30f, 1e-30f, -1e-30f, 1e-41f, -1e-41f, 13.5f, -13.5f, INFINITY, -INFINITY};
    uint32_t pick = random_bits() % 8;
    if (pick == 0) return special[random_bits() % (sizeof special / sizeof *special)];
    return random_float() * (pick == 1 ? 100.0f : pick == 2 ? 1e-3f : 6.0f);
}

static void fill(float *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = random_float() * 3;
}

static void fill_awkward(float *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = awkward_float();
}

/* The last n floats before a page that cannot be accessed; one region for each `which`. */
static float *at_end(int which, int n)
{
    static struct guarded g[8];
    if (!g[which].page) g[which] = guarded_alloc(MAX_LENGTH * sizeof(float));
    return (float *)(void *)g[which].end - n;
}

/* ---- the recipes themselves ---- */

static double ulp_of(double v)
{
    int e;
    frexp(v, &e);
    return ldexp(1, e - 24);
}

static void kexp_is_within_one_ulp_of_exp(void)
{
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b00001u; bits += 4999) { /* 0 to 88 and, below, to -87 */
        for (uint32_t sign = 0; sign < 2; sign++) {
            float x = kfloat_of_bits(bits | sign << 31);
            if (x < KEXP_MIN) continue;
            double e = exp((double)x), error = fabs((double)kexp(x) - e) / ulp_of(e);
            if (error > worst) worst = error;
        }
    }
    CHECKF(worst <= 1, "largest error %g ulp", worst);
    CHECK(kexp(-87.01f) == 0 && kexp(-INFINITY) == 0 && !signbit(kexp(-INFINITY)));
    CHECK(kexp(INFINITY) == kexp(88.0f) && isfinite(kexp(INFINITY)));
    CHECK(isnan(kexp(NAN)) && kexp(0.0f) == 1 && kexp(-0.0f) == 1);
}

/* Errors of the exponent are relative errors of the result: the polynomial's 6.4e-8 and its evaluation's
 * about 1.6e-7, and of -a^2/2 up to a^2 * 2^-24; then one ulp of kexp and three roundings: 5 units of 2^-23 in all. */
static void kgelu_is_close_to_the_erf_form(void)
{
    for (uint32_t bits = 0; bits < 0x41500000u; bits += 4999) { /* to 13 */
        for (uint32_t sign = 0; sign < 2; sign++) {
            float x = kfloat_of_bits(bits | sign << 31);
            double g = 0.5 * (double)x * erfc(-(double)x / sqrt(2)), a = fabs((double)x);
            double bound = fabs(g) * (5 + a * a) * 0x1p-23 + 0x1p-140;
            if (fabs(g) > 0x1p-120)
                CHECKF(fabs((double)kgelu(x) - g) <= bound, "gelu(%a) is %a, float64 %a", (double)x, (double)kgelu(x), g);
        }
    }
    CHECK(kgelu(INFINITY) == INFINITY && isnan(kgelu(NAN)) && kgelu(-1e30f) == 0 && kgelu(0.0f) == 0);
}

/* ---- quantize ---- */

enum { MOST_BLOCKS = 9, QUANTIZED_ROWS = 200, QUANTIZED = QUANTIZED_ROWS * MOST_BLOCKS * ACT_BLOCK };

/* What a table makes of rows of n elements; one more of each, for what is written past the end. */
struct quantized {
    int8_t q[QUANTIZED + 1];
    float scale[QUANTIZED / 32 + 1], fsum[QUANTIZED / 16 + 1];
    int32_t sum[QUANTIZED / 16 + 1];
};

static void quantize_rows(const struct kernels *k, const float *x, int n, struct quantized *out)
{
    struct act a = {.n_rows = QUANTIZED_ROWS, .n = n, .x = x, .ld_x = (size_t)n + 5, .q = out->q, .scale = out->scale,
                    .sum = out->sum, .fsum = out->fsum};
    memset(out, 99, sizeof *out);
    for (int r = 0; r < QUANTIZED_ROWS; r++) k->quantize(&a, r);
}

static void quantization_is_the_same_in_every_table_and_close(void)
{
    static float x[QUANTIZED_ROWS * (MOST_BLOCKS * ACT_BLOCK + 5)];
    static struct quantized expected, found;
    for (int n = ACT_BLOCK; n <= MOST_BLOCKS * ACT_BLOCK; n += ACT_BLOCK) {
        for (int r = 0; r < QUANTIZED_ROWS; r++) {
            float *row = x + r * (n + 5);
            for (int i = 0; i < n; i++) {
                row[i] = r % 4 == 0 ? awkward_float() : random_float() * ldexpf(1, r - 100);
                if (r % 5 == 1) row[i] = (float)(i % 255 - 127) * 0.5f;
                if (r % 5 == 2 && i / 32 == n / 64) row[i] = 0;
            }
            if (r == 8) row[random_bits() % (uint32_t)n] = NAN;
        }
        quantize_rows(&kernels_scalar, x, n, &expected);
        for_each_table(k) {
            quantize_rows(k, x, n, &found);
            size_t all = (size_t)(QUANTIZED_ROWS * n);
            CHECKF(memcmp(expected.q, found.q, all + 1) == 0, "%s, %d: q", k->name, n);
            CHECKF(memcmp(expected.sum, found.sum, (all / 16 + 1) * sizeof *found.sum) == 0, "%s, %d: sum", k->name, n);
            CHECK_SAME(found.scale, expected.scale, all / 32 + 1, "%s, %d: scale", k->name, n);
            CHECK_SAME(found.fsum, expected.fsum, all / 16 + 1, "%s, %d: fsum", k->name, n);
        }
        for (int r = 0; r < QUANTIZED_ROWS; r++)
            for (int i = 0; i < n; i++) {
                float s = expected.scale[(r * n + i) / 32], v = x[r * (n + 5) + i];
                int8_t q = expected.q[r * n + i];
                CHECKF(q >= -127, "q %d", q);
                if (isnan(s)) CHECK(q == 0);
                /* half a step, and the roundings of scale, inv and x*inv: 3 * 127 * 2^-24 of a step */
                else CHECKF(fabsf(v - s * (float)q) <= s * 0.50003f + KQUANT_TINY, "x %a q %d scale %a", (double)v, q, (double)s);
            }
    }
}

/* ---- rows ---- */

static void norms_are_the_same_in_every_table_and_close(void)
{
    for (int l = 0; l < N_LENGTHS; l++) {
        int n = lengths[l];
        float *x = at_end(0, n), *w = at_end(1, n), *b = at_end(2, n), *y = at_end(3, n);
        static float rms[MAX_LENGTH], layer[MAX_LENGTH];
        fill(x, n), fill(w, n), fill(b, n);
        kernels_scalar.rmsnorm(rms, x, w, n, 1e-5f);
        kernels_scalar.layernorm(layer, x, w, b, n, 1e-5f);
        double squares = 0, mean = 0, variance = 0;
        for (int i = 0; i < n; i++) squares += (double)x[i] * (double)x[i], mean += (double)x[i] / n;
        for (int i = 0; i < n; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean) / n;
        for (int i = 0; i < n; i++) {
            double r = (double)x[i] / sqrt(squares / n + 1e-5) * (double)w[i];
            double v = ((double)x[i] - mean) / sqrt(variance + 1e-5) * (double)w[i] + (double)b[i];
            CHECKF(fabs((double)rms[i] - r) <= 1e-6 * (fabs(r) + 1e-3), "rmsnorm %d of %d: %g, float64 %g", i, n, (double)rms[i], r);
            /* x - mean loses what mean lost, 16 roundings of at most 3, over a deviation that may be as small as sqrt(eps) */
            double bound = 3e-6 / sqrt(variance + 1e-5) * fabs((double)w[i]) + 1e-6 * (fabs(v) + 1);
            CHECKF(fabs((double)layer[i] - v) <= bound, "layernorm %d of %d: %g, float64 %g", i, n, (double)layer[i], v);
        }
        for_each_table(k) {
            k->rmsnorm(y, x, w, n, 1e-5f);
            CHECK_SAME(y, rms, n, "%s rmsnorm of %d", k->name, n);
            k->layernorm(y, x, w, b, n, 1e-5f);
            CHECK_SAME(y, layer, n, "%s layernorm of %d", k->name, n);
            memcpy(y, x, (size_t)n * sizeof *y);
            k->rmsnorm(y, y, w, n, 1e-5f);
            CHECK_SAME(y, rms, n, "%s rmsnorm in place of %d", k->name, n);
        }
    }
}

static void elementwise_functions_are_the_same_in_every_table(void)
{
    for (int l = 0; l < N_LENGTHS; l++) {
        int n = lengths[l];
        float *x = at_end(0, n), *u = at_end(1, n), *y = at_end(2, n);
        static float expected[MAX_LENGTH];
        for (int round = 0; round < 10; round++) {
            fill_awkward(x, n), fill_awkward(u, n);
            if (round == 9) x[n / 2] = NAN;
            for_each_table(k) {
                memcpy(expected, u, (size_t)n * sizeof *u), memcpy(y, u, (size_t)n * sizeof *u);
                kernels_scalar.add(expected, x, n);
                k->add(y, x, n);
                CHECK_SAME(y, expected, n, "%s add of %d", k->name, n);
                kernels_scalar.silu_mul(expected, x, u, n);
                k->silu_mul(y, x, u, n);
                CHECK_SAME(y, expected, n, "%s silu_mul of %d", k->name, n);
                kernels_scalar.gelu(expected, x, n);
                memcpy(y, x, (size_t)n * sizeof *u);
                k->gelu(y, y, n);
                CHECK_SAME(y, expected, n, "%s gelu of %d", k->name, n);
                CHECKF(k->argmax(x, n) == kernels_scalar.argmax(x, n), "%s argmax of %d: %d, scalar %d", k->name, n,
                       k->argmax(x, n), kernels_scalar.argmax(x, n));
            }
        }
    }
}

static void silu_mul_is_gate_times_sigmoid_times_up(void)
{
    for (int i = 0; i < 2000; i++) {
        float g = random_float() * 30, u = random_float(), y;
        kernels_scalar.silu_mul(&y, &g, &u, 1);
        double v = (double)g / (1 + exp(-(double)g)) * (double)u;
        CHECKF(fabs((double)y - v) <= fabs(v) * 4 * 0x1p-23, "silu_mul(%g, %g) is %g, float64 %g", (double)g, (double)u, (double)y, v);
    }
}

static void argmax_is_the_first_of_the_largest_and_passes_over_nan(void)
{
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        for (int n = 1; n < 70; n++) {
            float x[70];
            for (int i = 0; i < n; i++) x[i] = -INFINITY;
            CHECK((*k)->argmax(x, n) == 0);
            for (int at = 0; at < n; at++) {
                for (int i = 0; i < n; i++) x[i] = i % 3 ? NAN : -5;
                x[at] = x[n - 1] = 7;
                CHECKF((*k)->argmax(x, n) == at, "%s: %d of %d", (*k)->name, (*k)->argmax(x, n), at);
            }
            for (int i = 0; i < n; i++) x[i] = NAN;
            CHECK((*k)->argmax(x, n) == 0);
        }
    }
}

static void rope_is_the_same_in_every_table_and_a_rotation(void)
{
    for (int n_rot = 2; n_rot <= 256; n_rot += n_rot < 40 ? 2 : 24) {
        float x[256], c[128], s[128], expected[256];
        for (int neox = 0; neox < 2; neox++) {
            fill(x, n_rot);
            for (int i = 0; i < n_rot / 2; i++) {
                double angle = 3.0 * (double)random_float();
                c[i] = (float)cos(angle), s[i] = (float)sin(angle);
            }
            memcpy(expected, x, sizeof x);
            kernels_scalar.rope(expected, c, s, n_rot, neox);
            for (int i = 0; i < n_rot / 2; i++) {
                int i0 = neox ? i : 2 * i, i1 = neox ? i + n_rot / 2 : 2 * i + 1;
                double x0 = (double)x[i0] * (double)c[i] - (double)x[i1] * (double)s[i];
                double x1 = (double)x[i0] * (double)s[i] + (double)x[i1] * (double)c[i];
                CHECK(fabs((double)expected[i0] - x0) <= 1e-6 && fabs((double)expected[i1] - x1) <= 1e-6);
            }
            for_each_table(k) {
                float *y = at_end(0, n_rot), *cc = at_end(1, n_rot / 2), *ss = at_end(2, n_rot / 2);
                memcpy(y, x, (size_t)n_rot * sizeof *y);
                memcpy(cc, c, (size_t)n_rot / 2 * sizeof *c), memcpy(ss, s, (size_t)n_rot / 2 * sizeof *s);
                k->rope(y, cc, ss, n_rot, neox);
                CHECK_SAME(y, expected, n_rot, "%s rope of %d, neox %d", k->name, n_rot, neox);
            }
        }
    }
}

int main(void)
{
    RUN(kexp_is_within_one_ulp_of_exp);
    RUN(kgelu_is_close_to_the_erf_form);
    RUN(quantization_is_the_same_in_every_table_and_close);
    RUN(norms_are_the_same_in_every_table_and_close);
    RUN(elementwise_functions_are_the_same_in_every_table);
    RUN(silu_mul_is_gate_times_sigmoid_times_up);
    RUN(argmax_is_the_first_of_the_largest_and_passes_over_nan);
    RUN(rope_is_the_same_in_every_table_and_a_rotation);
    return check_result();
}
