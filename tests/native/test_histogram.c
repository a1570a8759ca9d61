/* The histogram's percentiles against those of the sorted values. */
#include "histogram.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { N = 20000 };

static uint64_t values[N];

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t exact(int permille)
{
    return values[(N * permille + 999) / 1000 - 1];
}

static bool close_to(uint64_t got, uint64_t wanted)
{
    uint64_t off = got > wanted ? got - wanted : wanted - got;
    return off <= wanted / 8;
}

static void percentiles_are_within_an_eighth_over_nine_decades(void)
{
    static struct histogram h;
    uint64_t x = 1, sum = 0;
    for (int i = 0; i < N; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        values[i] = (x >> 33) >> (x >> 8 & 31); /* every power of two is as likely */
        sum += values[i];
        histogram_add(&h, values[i]);
    }
    qsort(values, N, sizeof *values, ascending);
    struct histogram_summary s;
    histogram_read(&h, &s);
    CHECK(s.count == N && s.mean_us == sum / N && s.max_us == values[N - 1]);
    CHECKF(close_to(s.p50_us, exact(500)), "p50 %llu, exact %llu", (unsigned long long)s.p50_us, (unsigned long long)exact(500));
    CHECKF(close_to(s.p90_us, exact(900)), "p90 %llu, exact %llu", (unsigned long long)s.p90_us, (unsigned long long)exact(900));
    CHECKF(close_to(s.p99_us, exact(990)), "p99 %llu, exact %llu", (unsigned long long)s.p99_us, (unsigned long long)exact(990));
}

static void small_values_are_exact_and_huge_ones_are_counted(void)
{
    static struct histogram h, huge;
    struct histogram_summary s;
    histogram_read(&h, &s);
    CHECK(s.count == 0 && s.p99_us == 0 && s.max_us == 0);
    for (uint64_t v = 1; v <= 10; v++) histogram_add(&h, v);
    histogram_read(&h, &s);
    CHECK(s.p50_us == 5 && s.p90_us == 9 && s.p99_us == 10 && s.max_us == 10);
    histogram_add(&huge, UINT64_MAX);
    histogram_read(&huge, &s);
    CHECK(s.count == 1 && s.max_us == UINT64_MAX);
}

static void merged_histograms_say_what_one_would(void)
{
    static struct histogram all, parts[2], merged;
    for (uint64_t i = 0; i < N; i++) {
        uint64_t v = i * i % 90001;
        histogram_add(&all, v);
        histogram_add(&parts[i % 3 == 0], v);
    }
    histogram_merge(&merged, &parts[0]);
    histogram_merge(&merged, &parts[1]);
    struct histogram_summary one, other;
    histogram_read(&all, &one);
    histogram_read(&merged, &other);
    CHECK(memcmp(&one, &other, sizeof one) == 0);
}

static struct histogram shared;

static void *add(void *arg)
{
    for (uint64_t v = 0; v < N; v++) histogram_add(&shared, v + (uint64_t)(size_t)arg);
    return NULL;
}

static void threads_lose_no_count(void)
{
    pthread_t t[3];
    for (size_t i = 0; i < 3; i++) pthread_create(&t[i], NULL, add, (void *)i);
    struct histogram_summary s;
    histogram_read(&shared, &s);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    histogram_read(&shared, &s);
    CHECK(s.count == 3 * N && s.max_us == N + 1 && s.mean_us == (N - 1) / 2 + 1);
}

int main(void)
{
    RUN(percentiles_are_within_an_eighth_over_nine_decades);
    RUN(small_values_are_exact_and_huge_ones_are_counted);
    RUN(merged_histograms_say_what_one_would);
    RUN(threads_lose_no_count);
    return check_result();
}
