/* Matrix products of every table and type: against the scalar table for equality, and the scalar
 * table against float64 sums over the dequantized weights. */
#include "kernel_test.h"

#include "blocks.h"
#include "unpack.h"

enum { MAX_ROWS = 48, MAX_TOKENS = 100 };

/* ---- inputs ---- */

enum data { DATA_RANDOM, DATA_LARGEST, DATA_SMALLEST, DATA_ZERO, DATA_TINY_SCALES, DATA_HUGE_SCALES, N_DATA };

/* A finite half-precision float for a block's scale or minimum. */
static void set_f16(uint8_t *p, enum data data)
{
    float v = random_float() * 0.125f;
    if (data == DATA_TINY_SCALES) v = random_float() * 0x1p-16f; /* subnormal as f16 */
    if (data == DATA_HUGE_SCALES) v = random_float() < 0 ? -65504.0f : 65504.0f;
    if (data == DATA_ZERO) v = 0;
    uint16_t h = f32_to_f16(v);
    memcpy(p, &h, sizeof h);
}

/* Any bytes are a valid block as long as its floats are. */
static void fill_block(enum tensor_type type, uint8_t *block, size_t bytes, enum data data)
{
    for (size_t i = 0; i < bytes; i++)
        block[i] = data == DATA_LARGEST ? 0xff : data == DATA_ZERO || data == DATA_SMALLEST ? 0 : (uint8_t)random_bits();
#define FLOAT_AT(name, field) set_f16(block + offsetof(struct block_##name, field), data)
    switch (type) {
    case TYPE_Q4_0: FLOAT_AT(q4_0, d); break;
    case TYPE_Q4_1: FLOAT_AT(q4_1, d), FLOAT_AT(q4_1, m); break;
    case TYPE_Q5_0: FLOAT_AT(q5_0, d); break;
    case TYPE_Q5_1: FLOAT_AT(q5_1, d), FLOAT_AT(q5_1, m); break;
    case TYPE_Q8_0:
        FLOAT_AT(q8_0, d);
        if (data == DATA_LARGEST) memset(block + offsetof(struct block_q8_0, q), 0x80, 32); /* -128 */
        break;
    case TYPE_Q2_K: FLOAT_AT(q2_K, d), FLOAT_AT(q2_K, dmin); break;
    case TYPE_Q3_K: FLOAT_AT(q3_K, d); break;
    case TYPE_Q4_K: FLOAT_AT(q4_K, d), FLOAT_AT(q4_K, dmin); break;
    case TYPE_Q5_K: FLOAT_AT(q5_K, d), FLOAT_AT(q5_K, dmin); break;
    case TYPE_Q6_K:
        FLOAT_AT(q6_K, d);
        if (data == DATA_SMALLEST) memset(block + offsetof(struct block_q6_K, scales), 0x7f, 16);
        break;
    case TYPE_F32: {
        float v = random_float() * (data == DATA_HUGE_SCALES ? 0x1p60f : data == DATA_TINY_SCALES ? 0x1p-130f : 1.0f);
        if (data == DATA_ZERO) v = 0;
        memcpy(block, &v, sizeof v);
        break;
    }
    case TYPE_F16: set_f16(block, data); break;
    case TYPE_BF16: {
        uint16_t h = (uint16_t)(random_bits() & 0xbfff); /* below 2 in magnitude */
        if (data == DATA_ZERO) h = 0;
        memcpy(block, &h, sizeof h);
        break;
    }
    default: break;
    }
#undef FLOAT_AT
}

struct problem {
    enum tensor_type type;
    enum data data;
    int n_in, n_tokens, n_rows;
    size_t row_bytes;
    uint8_t *weights;   /* [n_rows rows] */
    struct act act;
    float *expected;    /* [n_tokens, n_rows], by the scalar table */
};

static void fill_activation(float *x, int n, int token, enum data data)
{
    for (int i = 0; i < n; i++) {
        x[i] = random_float();
        switch ((token + (data == DATA_LARGEST || data == DATA_SMALLEST ? 4 : 0)) % 7) { /* some rows are awkward, with the largest weights the first */
        case 1: x[i] = i % 2 ? 1.0f : -1.0f; break;
        case 2: x[i] *= i % 50 == 3 ? 1000.0f : 0.001f; break; /* outliers */
        case 3: if (i / 32 % 2) x[i] = 0; break;               /* blocks of zeros */
        case 4: x[i] = 127; break;                             /* every q is the largest */
        case 5: x[i] = (float)(i % 255 - 127) * 0.5f; break;   /* ties, and every q */
        }
        if (data == DATA_TINY_SCALES) x[i] *= token % 2 ? 0x1p-95f : 0x1p-130f;
        if (data == DATA_HUGE_SCALES) x[i] *= 0x1p20f;
    }
}

static struct act make_act(int n_tokens, int n)
{
    size_t rows = (size_t)n_tokens, len = (size_t)n;
    return (struct act){
        .n_rows = n_tokens, .n = n, .ld_x = len,
        .x = checked_calloc(rows * len, sizeof(float)),
        .q = checked_calloc(rows * len, 1),
        .scale = checked_calloc(rows * (len / 32), sizeof(float)),
        .sum = checked_calloc(rows * (len / 16), sizeof(int32_t)),
        .fsum = checked_calloc(rows * (len / 16), sizeof(float)),
    };
}

static struct problem make_tall_problem(enum tensor_type type, enum data data, int n_in, int n_tokens, int n_rows)
{
    struct problem p = {.type = type, .data = data, .n_in = n_in, .n_tokens = n_tokens, .n_rows = n_rows};
    p.row_bytes = tensor_row_bytes(type, n_in);
    p.weights = checked_calloc((size_t)n_rows, p.row_bytes);
    size_t block = (size_t)tensor_type_info(type)->block_bytes;
    for (size_t i = 0; i < (size_t)n_rows * p.row_bytes; i += block) fill_block(type, p.weights + i, block, data);
    p.act = make_act(n_tokens, n_in);
    for (int t = 0; t < n_tokens; t++) {
        fill_activation((float *)(uintptr_t)p.act.x + (size_t)t * p.act.ld_x, n_in, t, data);
        if (quant_format(type)) kernels_scalar.quantize(&p.act, t);
    }
    p.expected = checked_calloc((size_t)n_tokens * (size_t)n_rows, sizeof(float));
    struct weight w = {type, n_rows, n_in, p.row_bytes, p.weights};
    kernels_scalar.matmul[type](&w, 0, n_rows, &p.act, p.expected, (size_t)n_rows, table_scratch(&kernels_scalar));
    return p;
}

static struct problem make_problem(enum tensor_type type, enum data data, int n_in, int n_tokens)
{
    return make_tall_problem(type, data, n_in, n_tokens, MAX_ROWS);
}

static void free_problem(struct problem *p)
{
    free(p->weights);
    free((void *)(uintptr_t)p->act.x);
    free(p->act.q);
    free(p->act.scale);
    free(p->act.sum);
    free(p->act.fsum);
    free(p->expected);
}

/* ---- one product ---- */

/* Rows row0..row1 of the matrix of the first n_out rows, whose data begins `shift` bytes off
 * alignment or, if shift is negative, ends where the mapping does. */
static void check_product(const struct kernels *k, const struct problem *p, int n_out, int row0, int row1,
                          int n_tokens, int shift)
{
    static struct guarded g;
    static size_t capacity;
    size_t bytes = (size_t)n_out * p->row_bytes;
    if (bytes + 64 > capacity) {
        capacity = bytes + 64;
        g = guarded_alloc(capacity);
    }
    unsigned char *data = shift < 0 ? g.end - bytes : g.page + shift;
    memcpy(data, p->weights, bytes);

    enum { PAD = 3 };
    size_t ld = (size_t)n_out + PAD;
    float *y = checked_calloc((size_t)n_tokens * ld, sizeof *y), untouched = 12345.75f;
    for (size_t i = 0; i < (size_t)n_tokens * ld; i++) y[i] = untouched;
    struct weight w = {p->type, n_out, p->n_in, p->row_bytes, data};
    struct act a = p->act;
    a.n_rows = n_tokens;
    k->matmul[p->type](&w, row0, row1, &a, y, ld, table_scratch(k));
    for (int t = 0; t < n_tokens; t++) {
        const float *row = y + (size_t)t * ld, *expected = p->expected + (size_t)(t * p->n_rows);
        CHECK_SAME(row + row0, expected + row0, row1 - row0, "%s %s n %d, %d rows of %d from %d, token %d of %d",
                   k->name, tensor_type_name(p->type), p->n_in, row1 - row0, n_out, row0, t, n_tokens);
        for (int r = 0; r < (int)ld; r++)
            if (r < row0 || r >= row1)
                CHECKF(row[r] == untouched, "%s %s wrote row %d outside %d..%d", k->name, tensor_type_name(p->type), r,
                       row0, row1);
    }
    free(y);
}

static const int token_counts[] = {1, 2, 3, 4, 5, 6, 8, 9, 13, 14, 16, 17, 33, 64, 100};
enum { N_TOKEN_COUNTS = sizeof token_counts / sizeof *token_counts };

static int lengths_of(enum tensor_type type, const int **lengths)
{
    static const int floats[] = {1, 7, 15, 16, 17, 31, 33, 100, 577, 1536}, blocks[] = {32, 64, 96, 256, 576, 1536, 9728},
                     super[] = {256, 512, 1536, 2560, 9728};
    int block = tensor_type_info(type)->block;
    *lengths = block == 1 ? floats : block == 32 ? blocks : super;
    return (int)(block == 1 ? sizeof floats : block == 32 ? sizeof blocks : sizeof super) / (int)sizeof(int);
}

static void each_type(void (*test)(enum tensor_type type))
{
    for (int t = 0; t < TYPE_COUNT; t++)
        if (tensor_type_supported((uint32_t)t)) test((enum tensor_type)t);
}

/* ---- tests ---- */

static void check_sizes(enum tensor_type type)
{
    const int *lengths, n_lengths = lengths_of(type, &lengths);
    for (int l = 0; l < n_lengths; l++) {
        int n = lengths[l], most = n <= 600 ? MAX_TOKENS : 6;
        struct problem p = make_problem(type, DATA_RANDOM, n, most);
        for_each_table(k) {
            for (int c = 0; c < N_TOKEN_COUNTS && token_counts[c] <= most; c++) check_product(k, &p, 40, 0, 40, token_counts[c], -1);
            for (int rows = 1; rows <= 40; rows += n <= 600 ? 1 : 7) {
                check_product(k, &p, rows, 0, rows, 1, -1);
                check_product(k, &p, rows, 0, rows, 3, -1);
                check_product(k, &p, rows, 0, rows, 6, -1);
            }
        }
        free_problem(&p);
    }
}

static void every_table_multiplies_as_the_scalar_one(void) { each_type(check_sizes); }

/* More tokens, and longer rows, than kernels take at once. */
static void many_tokens_and_long_rows_multiply_alike(void)
{
    static const struct {
        enum tensor_type type;
        int n, n_tokens;
    } cases[] = {{TYPE_Q4_1, 64, 1100},  {TYPE_Q6_K, 256, 1100},  {TYPE_Q2_K, 256, 1100}, {TYPE_Q4_K, 65536, 4}, {TYPE_Q4_K, 65536, 6},
                 {TYPE_Q4_K, 70144, 61}, {TYPE_Q3_K, 70144, 61}, {TYPE_Q6_K, 70144, 4},  {TYPE_Q4_0, (1 << 22) + 32, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct problem p = make_problem(cases[i].type, DATA_RANDOM, cases[i].n, cases[i].n_tokens);
        for_each_table(k) check_product(k, &p, 17, 0, 17, cases[i].n_tokens, -1);
        free_problem(&p);
    }
}

/* More rows than kernels take at once; the last of them are no whole tile. */
static void many_rows_multiply_alike(void)
{
    static const enum tensor_type types[] = {TYPE_Q4_K, TYPE_Q6_K, TYPE_Q8_0, TYPE_F16};
    static const int token_counts_here[] = {1, 9, 16, 70, 130};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct problem p = make_tall_problem(types[i], DATA_RANDOM, 768, 130, 587);
        for_each_table(k)
            for (size_t c = 0; c < sizeof token_counts_here / sizeof *token_counts_here; c++)
                check_product(k, &p, p.n_rows, 0, p.n_rows, token_counts_here[c], -1);
        free_problem(&p);
    }
}

/* Rows so long that kernels may read them in another order than that of the file. */
static void check_long_rows(enum tensor_type type)
{
    if (!quant_format(type)) return;
    struct problem p = make_problem(type, DATA_RANDOM, 32768, 4);
    static const int ranges[][2] = {{0, 7}, {0, 8}, {0, 32}, {0, 37}, {0, 40}, {16, 40}, {16, 39}, {32, 40}};
    for_each_table(k)
        for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
            for (int n_tokens = 1; n_tokens <= 4; n_tokens++)
                check_product(k, &p, MAX_ROWS, ranges[i][0], ranges[i][1], n_tokens, -1);
    free_problem(&p);
}

/* Several such rows in each of the pieces that kernels read in turns; and few rows, where the mapping begins. */
static void check_longer_pieces(enum tensor_type type)
{
    if (!quant_format(type)) return;
    struct problem p = make_problem(type, DATA_RANDOM, 8192, 4);
    for_each_table(k)
        for (int n_tokens = 1; n_tokens <= 4; n_tokens++) {
            check_product(k, &p, MAX_ROWS, 0, MAX_ROWS, n_tokens, -1);
            check_product(k, &p, MAX_ROWS, 0, 7, n_tokens, 0);
        }
    free_problem(&p);
}

static void long_rows_multiply_alike(void)
{
    each_type(check_long_rows);
    each_type(check_longer_pieces);
}

static void check_ranges(enum tensor_type type)
{
    struct problem p = make_problem(type, DATA_RANDOM, 512, 6);
    for_each_table(k) {
        for (int row0 = 0; row0 < MAX_ROWS; row0 += ROW_TILE)
            for (int row1 = row0 + 1; row1 <= MAX_ROWS; row1++)
                for (int n_tokens = 1; n_tokens <= 6; n_tokens += n_tokens == 1 ? 2 : 3) check_product(k, &p, MAX_ROWS, row0, row1, n_tokens, -1);
    }
    free_problem(&p);
}

static void a_range_of_rows_is_written_and_nothing_else(void) { each_type(check_ranges); }

static void check_alignment(enum tensor_type type)
{
    struct problem p = make_problem(type, DATA_RANDOM, 256, 5);
    for_each_table(k) {
        for (int shift = 0; shift < 32; shift++) {
            check_product(k, &p, 33, 0, 33, 1, shift);
            check_product(k, &p, 33, 0, 33, 5, shift);
        }
    }
    free_problem(&p);
}

static void weights_may_lie_at_any_address(void) { each_type(check_alignment); }

static void check_extremes(enum tensor_type type)
{
    for (enum data data = 0; data < N_DATA; data++) {
        struct problem p = make_problem(type, data, 768, 14);
        for_each_table(k) {
            check_product(k, &p, 17, 0, 17, 1, -1);
            check_product(k, &p, 17, 0, 17, 4, -1);
            check_product(k, &p, 17, 0, 17, 14, -1);
        }
        free_problem(&p);
    }
}

static void extreme_weights_and_activations_multiply_alike(void) { each_type(check_extremes); }

static void check_nan(enum tensor_type type)
{
    struct problem p = make_problem(type, DATA_RANDOM, 256, 2);
    ((float *)(uintptr_t)p.act.x)[40] = NAN;
    ((float *)(uintptr_t)p.act.x)[p.act.ld_x + 41] = INFINITY;
    struct weight w = {type, MAX_ROWS, p.n_in, p.row_bytes, p.weights};
    float *y = checked_calloc(2 * MAX_ROWS, sizeof *y);
    for (const struct kernels *const *k = kernels_available(); *k; k++) {
        for (int t = 0; t < 2 && quant_format(type); t++) (*k)->quantize(&p.act, t);
        (*k)->matmul[type](&w, 0, MAX_ROWS, &p.act, y, MAX_ROWS, table_scratch(*k));
        for (int i = 0; i < 2 * MAX_ROWS; i++)
            CHECKF(!isfinite(y[i]), "%s %s hides a NaN: %g", (*k)->name, tensor_type_name(type), (double)y[i]);
    }
    free(y);
    free_problem(&p);
}

static void a_nan_or_infinity_in_the_input_shows_in_the_output(void) { each_type(check_nan); }

/* |y - y64| where y64 sums w*x in float64 over the dequantized weights. Activations are rounded to
 * multiples of their scale, so each differs by at most half a scale (and the rounding of x*inv and of
 * scale, below 127 * 3 * 2^-24 of a scale). Each of the sums acc and macc makes one rounding of a term's
 * factors and one of the running sum per sub-block: at most (n_sub + 3) * 2^-24 of the sum of
 * magnitudes. Float types round once for each element of a lane and in the fold: (n/16 + 5) * 2^-24. */
static void check_reference(enum tensor_type type)
{
    const struct quant_format *f = quant_format(type);
    const int n = f && f->block == 32 ? 576 : 1536;
    struct problem p = make_problem(type, DATA_RANDOM, n, 14);
    float *w = checked_calloc((size_t)n, sizeof *w);
    for (int r = 0; r < MAX_ROWS; r++) {
        dequantize_row(type, p.weights + (size_t)r * p.row_bytes, w, n);
        for (int t = 0; t < p.n_tokens; t++) {
            const float *x = p.act.x + (size_t)t * p.act.ld_x;
            double y64 = 0, rounding = 0, magnitude = 0;
            for (int i = 0; i < n; i++) {
                y64 += (double)w[i] * (double)x[i];
                magnitude += fabs((double)w[i] * (double)x[i]);
            }
            double bound = (n / 16.0 + 5) * 0x1p-24 * magnitude;
            if (f) {
                struct unpacked u;
                magnitude = 0;
                for (int i = 0; i < n; i++) {
                    if (i % f->block == 0)
                        f->unpack(&u, p.weights + (size_t)r * p.row_bytes + (size_t)(i / f->block) * f->block_bytes);
                    int e = i % f->block, j = e / f->sub;
                    double d = (double)u.d[e / ACT_BLOCK] * (f->sub == 16 ? u.factor[j] : 1);
                    double q = fabs((double)p.act.q[(size_t)t * (size_t)n + (size_t)i]);
                    double scale = (double)p.act.scale[((size_t)t * (size_t)n + (size_t)i) / 32];
                    rounding += fabs((double)w[i]) * scale * (0.5 + 127 * 3 * 0x1p-24);
                    magnitude += (fabs((double)u.q[e] * d) + (f->has_min ? fabs((double)u.m[j]) : 0)) * q * scale;
                }
                bound = rounding + ((double)n / f->sub + 3) * 0x1p-24 * magnitude;
            }
            double y = (double)p.expected[(size_t)t * MAX_ROWS + (size_t)r];
            CHECKF(fabs(y - y64) <= bound, "%s row %d token %d: %g, float64 %g, bound %g", tensor_type_name(type), r, t, y,
                   y64, bound);
        }
    }
    free(w);
    free_problem(&p);
}

static void products_are_those_of_the_dequantized_weights(void) { each_type(check_reference); }

/* unpack.c and quant.c read the formats independently of each other. */
static void unpacked_blocks_are_the_dequantized_values(void)
{
    for (int t = 0; t < TYPE_COUNT; t++) {
        const struct quant_format *f = quant_format((enum tensor_type)t);
        for (int i = 0; f && i < 200; i++) {
            uint8_t block[256];
            float values[256];
            struct unpacked u;
            fill_block((enum tensor_type)t, block, f->block_bytes, (enum data)(i % N_DATA));
            f->unpack(&u, block);
            dequantize_row((enum tensor_type)t, block, values, f->block);
            for (int e = 0; e < f->block; e++) {
                float d = u.d[e / ACT_BLOCK];
                if (f->sub == 16) d *= (float)u.factor[e / 16];
                float v = d * (float)u.q[e];
                if (f->has_min) v -= u.m[e / f->sub];
                CHECKF(v == values[e], "%s element %d: %a, dequantized %a", tensor_type_name((uint32_t)t), e, (double)v,
                       (double)values[e]);
            }
        }
    }
}

int main(void)
{
    RUN(unpacked_blocks_are_the_dequantized_values);
    RUN(products_are_those_of_the_dequantized_weights);
    RUN(every_table_multiplies_as_the_scalar_one);
    RUN(many_tokens_and_long_rows_multiply_alike);
    RUN(many_rows_multiply_alike);
    RUN(long_rows_multiply_alike);
    RUN(a_range_of_rows_is_written_and_nothing_else);
    RUN(weights_may_lie_at_any_address);
    RUN(extreme_weights_and_activations_multiply_alike);
    RUN(a_nan_or_infinity_in_the_input_shows_in_the_output);
    return check_result();
}
