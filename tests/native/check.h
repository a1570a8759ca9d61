/* The native tests' whole framework: a test is a function whose name says what
 * should hold; CHECK states it and goes on after a failure, REQUIRE leaves the test.
 *
 *     static void empty_file_is_refused(void) { CHECK(open("") == NULL); }
 *     int main(void) { RUN(empty_file_is_refused); return check_result(); }
 *
 * One thread only. RUN prints the name of a test that fails, and nothing for one that holds. */
#ifndef INFER_CHECK_H
#define INFER_CHECK_H

#include <stdio.h>

static int check_failures, check_tests;

#define CHECK(cond) CHECKF(cond, "%s", #cond)
/* With a message of one's own: the values that differ. */
#define CHECKF(cond, ...)                                   \
    do {                                                    \
        if (!(cond)) {                                      \
            check_failures++;                               \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                   \
            fputc('\n', stderr);                            \
        }                                                   \
    } while (0)
#define REQUIRE(cond)                                                                      \
    do {                                                                                   \
        if (!(cond)) {                                                                     \
            check_failures++;                                                              \
            fprintf(stderr, "%s:%d: %s (test left)\n", __FILE__, __LINE__, #cond);         \
            return;                                                                        \
        }                                                                                  \
    } while (0)

#define RUN(test) check_run(#test, test)

static inline void check_run(const char *name, void (*test)(void))
{
    int before = check_failures;
    test();
    check_tests++;
    if (check_failures != before) fprintf(stderr, "FAILED %s\n", name);
}

/* main's return value. */
static inline int check_result(void)
{
    fprintf(stderr, "%d tests, %d failed checks\n", check_tests, check_failures);
    return check_failures != 0;
}

#endif
