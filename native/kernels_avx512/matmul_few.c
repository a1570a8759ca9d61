/* Products of quantized weights with a few activation rows: which sixteen weight rows are multiplied together, and where the
 * activations lie meanwhile. The products themselves are in stream.c.
 *
 * Up to SIDE_TOKENS activation rows, where memory is the limit, the weight rows asked for are cut into sixteen runs, and lane i
 * goes through run i: sixteen long pieces of memory, each read in order, are what the processor's prefetchers follow best.
 * Where runs would be short, and for more activation rows, whose arithmetic takes longer, the sixteen rows follow each other and
 * are one piece of the file.
 *
 * Scratch is the caller's, one thread's own; pure otherwise, any thread. */
#include "avx512.h"
#include "slab.h"
#include "tile.h"

enum {
    SIDE_COLUMNS = 32768,  /* of activation rows that are laid side by side, at most */
    RUN_BYTES = 6144,      /* least bytes of a run, since the prefetchers begin anew in each: for one and two activation rows, */
    RUN_BYTES_MORE = 16384, /* and for more, where less of the time is waiting for memory */
};

/* What the last sixteen dwords of a row may leave behind it, laid side by side. */
enum { SIDE_REST = SIDE_TOKENS * 16 };

struct scratch {
    int32_t sub[STREAM_SUB_BLOCKS]; /* start or fsum of act_rows, [token][sub-block] */
    int32_t side_q[SIDE_TOKENS * SIDE_COLUMNS / 4 + SIDE_REST];
    int32_t side_scale[SIDE_TOKENS * SIDE_COLUMNS / ACT_BLOCK + SIDE_REST];
    int32_t side_sub[SIDE_TOKENS * SIDE_COLUMNS / ACT_SUM_BLOCK + SIDE_REST];
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* ---- activations ---- */

/* dst: sixteen dwords of each of T > 1 rows. */
INLINE void interleave(int32_t *dst, const __m512i row[SIDE_TOKENS], int T)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512i low_pairs = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i high_pairs = _mm512_add_epi64(low_pairs, _mm512_set1_epi64(4));
    for (int h = 0; h < 2; h++, dst += 8 * SIDE_STEP(T)) {
        __m512i ab = _mm512_permutex2var_epi32(row[0], h ? high : low, row[1]);
        if (T == 2) {
            _mm512_storeu_si512(dst, ab);
            continue;
        }
        __m512i cd = _mm512_permutex2var_epi32(row[2], h ? high : low, row[3]);
        _mm512_storeu_si512(dst, _mm512_permutex2var_epi64(ab, low_pairs, cd));
        _mm512_storeu_si512(dst + 16, _mm512_permutex2var_epi64(ab, high_pairs, cd));
    }
}

/* n dwords of each of T rows, ld dwords apart, side by side: in dst, or as they are if it is one row. */
static const void *lay_side_by_side(int32_t *dst, const void *rows, size_t ld, int n, int T)
{
    if (T == 1) return rows;
    for (int i = 0; i < n; i += 16) {
        __m512i row[SIDE_TOKENS];
        for (int t = 0; t < SIDE_TOKENS; t++) /* where T is 3, the third twice */
            row[t] = _mm512_maskz_loadu_epi32(lanes_left(n - i), (const int32_t *)rows + (size_t)(t < T ? t : T - 1) * ld + i);
        interleave(dst + i * SIDE_STEP(T), row, T);
    }
    return dst;
}

static struct act_rows prepare(struct scratch *s, const struct act *a, const struct format *f, bool side)
{
    int n_sub = a->n / f->sub, n_scales = a->n / ACT_BLOCK;
    for (int t = 0; t < a->n_rows; t++) prepare_sub_blocks(s->sub + (size_t)t * (size_t)n_sub, a, t, 0, a->n, f);
    struct act_rows v = {.q = a->q, .scale = a->scale, .start = s->sub,
                         .ld_q = (size_t)a->n, .ld_scale = (size_t)n_scales, .ld_sub = (size_t)n_sub};
    if (side) {
        v.q = lay_side_by_side(s->side_q, v.q, v.ld_q / 4, a->n / 4, a->n_rows);
        v.scale = lay_side_by_side(s->side_scale, v.scale, v.ld_scale, n_scales, a->n_rows);
        v.start = lay_side_by_side(s->side_sub, v.start, v.ld_sub, n_sub, a->n_rows);
    }
    return v;
}

/* ---- weights ---- */

/* Rows in each of the sixteen runs that n rows of w are cut into; 0: in none. What is left of them is less than 16 rows. */
static int rows_of_run(const struct weight *w, int n, int n_tokens)
{
    size_t least = n_tokens <= 2 ? RUN_BYTES : RUN_BYTES_MORE;
    return (size_t)(n / ROW_TILE) * w->row_bytes >= least ? n / ROW_TILE : 0;
}

/* Rows row0 and up, ROW_TILE runs of `rows` each. */
static void multiply_runs(const struct weight *w, int row0, int rows, const struct act_rows *a, int n_tokens, float *y, size_t ld_y)
{
    stream_fn *multiply = avx512_stream_side(w->type, n_tokens, true);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i row = _mm512_mullo_epi32(lane, _mm512_set1_epi32(rows));
    size_t stride = (size_t)rows * w->row_bytes;
    int n_blocks = w->n_in / formats[w->type].block;
    for (int r = row0; r < row0 + rows; r++) {
        const unsigned char *first = (const unsigned char *)w->data + (size_t)r * w->row_bytes;
        struct rows sixteen = {.half = {first, first + ROW_TILE / 2 * stride}, .stride = stride};
        __m512 v[SIDE_TOKENS];
        multiply(v, &sixteen, n_blocks, a, n_tokens);
        for (int t = 0; t < n_tokens; t++) _mm512_i32scatter_ps(y + (size_t)t * ld_y + r, row, v[t], sizeof *y);
    }
}

void avx512_matmul_few(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, void *scratch)
{
    const struct format *f = &formats[w->type];
    int n_tokens = a->n_rows;
    bool side = n_tokens == 1 || (n_tokens <= SIDE_TOKENS && a->n <= SIDE_COLUMNS);
    struct act_rows acts = prepare(scratch, a, f, side);
    int rows = side ? rows_of_run(w, row1 - row0, n_tokens) : 0;
    if (rows) multiply_runs(w, row0, rows, &acts, n_tokens, y, ld_y);
    stream_fn *multiply = side ? avx512_stream_side(w->type, n_tokens, false) : avx512_stream(w->type);
    for (int r = row0 + ROW_TILE * rows; r < row1; r += ROW_TILE) {
        int r0 = r + ROW_TILE <= w->n_out ? r : w->n_out - ROW_TILE;
        struct rows sixteen = tile_rows(w, r0, 0, f);
        __m512 v[STREAM_TOKENS];
        multiply(v, &sixteen, w->n_in / f->block, &acts, n_tokens);
        for (int t = 0; t < n_tokens; t++) store_rows(y + (size_t)t * ld_y, r, r0, row1, v[t]);
    }
}
