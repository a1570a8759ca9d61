/* Tensor types: dequantization against the gguf package's (data/quant_reference.bin,
 * written by data/make_quant_reference.py), half precision against its definition. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "quant.h"

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void every_quantized_type_is_bit_equal_to_the_reference(void)
{
    FILE *f = fopen(TEST_DATA_DIR "/quant_reference.bin", "rb");
    REQUIRE(f);
    uint32_t head[2];
    bool seen[TYPE_COUNT] = {false};
    while (fread(head, sizeof head, 1, f) == 1) {
        enum tensor_type t = (enum tensor_type)head[0];
        size_t n = head[1];
        REQUIRE(tensor_type_supported(head[0]));
        size_t row_bytes = tensor_row_bytes(t, (int64_t)n);
        /* one byte off, so that a load which assumes alignment shows under the sanitizers */
        unsigned char *row = malloc(row_bytes + 1);
        float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        REQUIRE(row && want && got);
        REQUIRE(fread(row + 1, row_bytes, 1, f) == 1);
        REQUIRE(fread(want, n * sizeof *want, 1, f) == 1);
        dequantize_row(t, row + 1, got, (int64_t)n);
        size_t wrong = 0, first = 0;
        for (size_t i = n; i-- > 0;)
            if (bits(got[i]) != bits(want[i])) wrong++, first = i;
        CHECKF(wrong == 0, "%s: %zu of %zu differ, first at %zu: %a, reference %a", tensor_type_name(t), wrong, n,
               first, (double)got[first], (double)want[first]);
        seen[t] = true;
        free(row);
        free(want);
        free(got);
    }
    fclose(f);
    for (uint32_t t = 1; t < TYPE_COUNT; t++) /* F32 (0) is a copy */
        CHECKF(seen[t] == tensor_type_supported(t), "no reference for %s", tensor_type_name(t));
}

/* The definition: (-1)^s * 2^(e-15) * (1 + m/1024), or m * 2^-24 where e is 0. */
static double f16_value(uint32_t h)
{
    int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
    double v = e ? ldexp(1 + m / 1024.0, e - 15) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

static void every_f16_widens_to_its_defined_value(void)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float got = f16_to_f32((uint16_t)h);
        if ((h & 0x7c00) != 0x7c00)
            CHECKF(bits(got) == bits((float)f16_value(h)), "0x%04x gives %a", h, (double)got);
        else if (h & 0x03ff)
            CHECKF(isnan(got), "0x%04x gives %a", h, (double)got);
        else
            CHECKF(bits(got) == bits(h == 0x7c00 ? INFINITY : -INFINITY), "0x%04x gives %a", h, (double)got);
    }
}

static void every_f16_survives_the_way_to_float_and_back(void)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        uint32_t back = f32_to_f16(f16_to_f32((uint16_t)h));
        if ((h & 0x7c00) == 0x7c00 && h & 0x03ff)
            CHECKF((back & 0x7c00) == 0x7c00 && back & 0x03ff, "NaN 0x%04x came back as 0x%04x", h, back);
        else
            CHECKF(back == h, "0x%04x came back as 0x%04x", h, back);
    }
}

/* Between any two neighbouring halves: below the middle goes down, above it up, the middle to the even one. */
static void f32_to_f16_rounds_to_nearest_even(void)
{
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = f16_value(h), high = h == 0x7bff ? 65536.0 : f16_value(h + 1);
        float middle = (float)((low + high) / 2); /* exact: one more bit than a half has */
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h), up = (uint16_t)(h + 1);
        for (int negative = 0; negative <= 1; negative++) {
            float s = negative ? -1.0f : 1.0f;
            uint16_t sign = negative ? 0x8000 : 0;
            CHECK(f32_to_f16(s * middle) == (even | sign));
            CHECK(f32_to_f16(s * nextafterf(middle, 0)) == (h | sign));
            CHECK(f32_to_f16(s * nextafterf(middle, INFINITY)) == (up | sign));
        }
    }
    CHECK(f32_to_f16(INFINITY) == 0x7c00);
    CHECK(f32_to_f16(-3e38f) == 0xfc00);
    CHECK(f32_to_f16(1e-30f) == 0);
    CHECK(f32_to_f16(-1e-30f) == 0x8000);
}

static void types_that_are_refused_have_names(void)
{
    CHECK(strcmp(tensor_type_name(23), "IQ4_XS") == 0);
    CHECK(strcmp(tensor_type_name(39), "MXFP4") == 0);
    CHECK(strcmp(tensor_type_name(TYPE_Q4_K), "Q4_K") == 0);
    CHECK(!tensor_type_supported(23));
    CHECK(!tensor_type_supported(9));
    for (uint32_t t = 42; t < 100; t++) CHECK(strcmp(tensor_type_name(t), "unknown") == 0);
    CHECK(strcmp(tensor_type_name(UINT32_MAX), "unknown") == 0);
    CHECK(!tensor_type_supported(UINT32_MAX));
}

static void a_row_has_the_bytes_of_its_blocks(void)
{
    CHECK(tensor_row_bytes(TYPE_F32, 7) == 28);
    CHECK(tensor_row_bytes(TYPE_BF16, 7) == 14);
    CHECK(tensor_row_bytes(TYPE_Q4_0, 64) == 36);
    CHECK(tensor_row_bytes(TYPE_Q8_0, 576) == 18 * 34);
    CHECK(tensor_row_bytes(TYPE_Q4_K, 2560) == 10 * 144);
    CHECK(tensor_row_bytes(TYPE_Q6_K, INT64_C(1) << 40) == ((size_t)1 << 32) * 210);
}

int main(void)
{
    RUN(every_quantized_type_is_bit_equal_to_the_reference);
    RUN(every_f16_widens_to_its_defined_value);
    RUN(every_f16_survives_the_way_to_float_and_back);
    RUN(f32_to_f16_rounds_to_nearest_even);
    RUN(types_that_are_refused_have_names);
    RUN(a_row_has_the_bytes_of_its_blocks);
    return check_result();
}
