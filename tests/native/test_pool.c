/* The thread pool: barriers, work-sharing, parking. Run it under the tsan preset too. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "platform.h"
#include "pool.h"

enum { MAX_THREADS = 7 };
static const int thread_counts[] = {1, 2, 3, MAX_THREADS};

struct counts {
    int seen[MAX_THREADS]; /* written by thread i alone, plain: a broken barrier is a race that tsan reports */
    _Atomic int wrong;
    int rounds;
};

static void add_up(struct pool_thread *t, void *arg)
{
    struct counts *c = arg;
    for (int round = 1; round <= c->rounds; round++) {
        c->seen[t->index]++;
        pool_barrier(t);
        for (int i = 0; i < t->count; i++)
            if (c->seen[i] != round) c->wrong++;
        pool_barrier(t);
    }
}

static void a_barrier_shows_what_every_thread_wrote_before_it(void)
{
    for (size_t i = 0; i < sizeof thread_counts / sizeof *thread_counts; i++) {
        struct pool *p = pool_create(thread_counts[i], 0, "t", NULL);
        REQUIRE(p);
        struct counts c = {.rounds = 300};
        pool_run(p, add_up, &c);
        CHECK(c.wrong == 0);
        for (int k = 0; k < thread_counts[i]; k++) CHECK(c.seen[k] == c.rounds);
        pool_free(p);
    }
}

static void a_run_calls_every_thread_once_and_returns_after_all(void)
{
    struct pool *p = pool_create(3, 0, "t", NULL);
    REQUIRE(p);
    CHECK(pool_threads(p) == 3);
    struct counts c = {.rounds = 0};
    for (int run = 1; run <= 500; run++) {
        c.rounds = 1;
        memset(c.seen, 0, sizeof c.seen);
        pool_run(p, add_up, &c);
        CHECK(c.seen[0] + c.seen[1] + c.seen[2] == 3);
    }
    CHECK(c.wrong == 0);
    pool_free(p);
}

struct work {
    int n, chunk, loops;
    int most;         /* chunks at once */
    int stuck_thread; /* stops in its first chunk until the others have done the rest; -1: none */
    int *taken;       /* [n]: which items were given out, in all loops */
    _Atomic int n_taken;
    _Atomic int wrong;
};

static void take(struct pool_thread *t, void *arg)
{
    struct work *w = arg;
    for (int loop = 0; loop < w->loops; loop++) {
        int begin, end;
        while (w->most ? pool_share_long(t, w->n, w->chunk, w->most, &begin, &end) : pool_share(t, w->n, w->chunk, &begin, &end)) {
            int most = w->most ? w->most * w->chunk : w->chunk;
            if (begin % w->chunk || end <= begin || end > w->n || (end % w->chunk && end != w->n) || end - begin > most) w->wrong++;
            for (int i = begin; i < end; i++) w->taken[i]++;
            if (t->index == w->stuck_thread)
                for (int ms = 0; w->n_taken < w->n - (end - begin); ms++) {
                    if (ms == 20000) {
                        w->wrong++;
                        break;
                    }
                    struct timespec ts = {.tv_nsec = 1000000};
                    nanosleep(&ts, NULL);
                }
            w->n_taken += end - begin;
        }
        pool_barrier(t);
    }
}

static void work_sharing_gives_every_item_out_once(void)
{
    static const int sizes[][2] = {{0, 1}, {1, 1}, {1, 16}, {5, 2}, {64, 16}, {100, 7}, {1000, 1}, {997, 32}};
    for (size_t i = 0; i < sizeof thread_counts / sizeof *thread_counts; i++) {
        struct pool *p = pool_create(thread_counts[i], 0, "t", NULL);
        REQUIRE(p);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            static const int most[] = {0, 1, 3, 20, 5000};
            for (size_t m = 0; m < sizeof most / sizeof *most; m++) {
                struct work w = {.n = sizes[s][0], .chunk = sizes[s][1], .most = most[m], .loops = 5, .stuck_thread = -1};
                w.taken = calloc((size_t)w.n + 1, sizeof *w.taken);
                REQUIRE(w.taken);
                pool_run(p, take, &w);
                pool_run(p, take, &w); /* counters carry over between runs */
                CHECK(w.wrong == 0);
                int bad = 0;
                for (int k = 0; k < w.n; k++) bad += w.taken[k] != 10;
                CHECKF(bad == 0, "%d threads, %d items by %d, %d at once: %d not taken once", thread_counts[i], w.n, w.chunk,
                       most[m], bad);
                free(w.taken);
            }
        }
        pool_free(p);
    }
}

static void the_chunks_of_a_stuck_thread_are_taken_by_others(void)
{
    struct pool *p = pool_create(2, 0, "t", NULL);
    REQUIRE(p);
    struct work w = {.n = 400, .chunk = 1, .loops = 1, .stuck_thread = 1};
    w.taken = calloc((size_t)w.n, sizeof *w.taken);
    REQUIRE(w.taken);
    pool_run(p, take, &w);
    CHECK(w.wrong == 0);
    CHECK(w.n_taken == w.n);
    free(w.taken);
    pool_free(p);
}

static void note_pieces(struct pool_thread *t, void *arg)
{
    int *piece = arg, n = 0, begin, end;
    while (t->index == 0 && pool_share_long(t, 100, 1, 24, &begin, &end)) piece[n++] = end - begin;
    pool_barrier(t);
}

/* Thread 0 takes its share and then that of the other one, which does nothing. */
static void long_pieces_get_shorter_towards_the_end(void)
{
    static const int expected[] = {24, 20, 6};
    int piece[100] = {0};
    struct pool *p = pool_create(2, 0, "t", NULL);
    REQUIRE(p);
    pool_run(p, note_pieces, piece);
    for (int i = 0; i < 7; i++) CHECKF(piece[i] == (i < 6 ? expected[i % 3] : 0), "piece %d: %d items", i, piece[i]);
    pool_free(p);
}

static double process_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void an_idle_pool_uses_no_processor(void)
{
    struct pool *p = pool_create(4, 0, "t", NULL);
    REQUIRE(p);
    struct counts c = {.rounds = 10};
    pool_run(p, add_up, &c);
    struct timespec ts = {.tv_nsec = 20000000};
    nanosleep(&ts, NULL); /* the spin after the run */
    double before = process_seconds();
    ts.tv_nsec = 200000000;
    nanosleep(&ts, NULL);
    double used = process_seconds() - before;
    CHECKF(used < 0.02, "%.3f s of 0.2 s", used);
    memset(c.seen, 0, sizeof c.seen);
    pool_run(p, add_up, &c); /* and it wakes from there */
    CHECK(c.wrong == 0 && c.seen[3] == c.rounds);
    pool_free(p);
}

static void fill_scratch(struct pool_thread *t, void *arg)
{
    _Atomic int *wrong = arg;
    if ((uintptr_t)t->scratch % 64) ++*wrong;
    memset(t->scratch, t->index + 1, 5000);
    pool_barrier(t);
    const char *s = t->scratch;
    for (int i = 0; i < 5000; i++)
        if (s[i] != t->index + 1) ++*wrong;
}

static void every_thread_has_aligned_scratch_of_its_own(void)
{
    struct pool *p = pool_create(MAX_THREADS, 5000, "t", NULL);
    REQUIRE(p);
    _Atomic int wrong = 0;
    pool_run(p, fill_scratch, &wrong);
    CHECK(wrong == 0);
    pool_free(p);
}

struct identity {
    char name[MAX_THREADS][16];
    int nice[MAX_THREADS], term_blocked[MAX_THREADS], fault_blocked[MAX_THREADS];
};

static void look_at_yourself(struct pool_thread *t, void *arg)
{
    struct identity *id = arg;
    pthread_getname_np(pthread_self(), id->name[t->index], 16);
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    id->term_blocked[t->index] = sigismember(&set, SIGTERM);
    id->fault_blocked[t->index] = sigismember(&set, SIGSEGV);
#ifdef __linux__
    id->nice[t->index] = getpriority(PRIO_PROCESS, 0); /* of the thread, on Linux */
#endif
}

static void workers_are_named_deaf_to_signals_and_nicer_than_the_caller(void)
{
    struct pool *p = pool_create(3, 0, "infer", NULL);
    REQUIRE(p);
    struct identity id;
    memset(&id, 0, sizeof id);
    pool_run(p, look_at_yourself, &id);
    CHECKF(strcmp(id.name[1], "infer-1") == 0, "%s", id.name[1]);
    CHECKF(strcmp(id.name[2], "infer-2") == 0, "%s", id.name[2]);
    CHECK(id.term_blocked[1] && id.term_blocked[2] && !id.term_blocked[0]);
    CHECK(!id.fault_blocked[1]);
#ifdef __linux__
    CHECK(id.nice[1] > id.nice[0] || id.nice[0] == 19);
#endif
    pool_free(p);
}

/* ---- other processes ---- */

#ifdef __linux__
struct crowd {
    int processor; /* everybody is there */
    _Atomic bool end;
    struct work work;
};

/* Only there: returns the processors that the thread was allowed. */
static cpu_set_t move_to(int processor)
{
    cpu_set_t before, set;
    pthread_getaffinity_np(pthread_self(), sizeof before, &before);
    CPU_ZERO(&set);
    CPU_SET((size_t)processor, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    return before;
}

static void *burn(void *arg)
{
    struct crowd *c = arg;
    move_to(c->processor);
    while (!c->end) {
    }
    return NULL;
}

static void burn_and_take(struct pool_thread *t, void *arg)
{
    struct crowd *c = arg;
    cpu_set_t before = move_to(c->processor);
    uint64_t until = platform_thread_cpu_us() + 8000;
    while (platform_thread_cpu_us() < until) {
    }
    take(t, &c->work);
    pthread_setaffinity_np(pthread_self(), sizeof before, &before);
}

static void a_pool_that_follows_the_load_leaves_threads_out(void)
{
    struct pool *p = pool_create(3, 0, "t", NULL);
    REQUIRE(p);
    struct crowd c = {.processor = sched_getcpu(), .work = {.n = 997, .chunk = 32, .loops = 5, .stuck_thread = -1}};
    c.work.taken = calloc((size_t)c.work.n, sizeof *c.work.taken);
    REQUIRE(c.work.taken);
    pthread_t other[2];
    for (int i = 0; i < 2; i++) REQUIRE(pthread_create(&other[i], NULL, burn, &c) == 0);

    int runs = 0, fewest = 3;
    for (; runs < 4; runs++) pool_run(p, burn_and_take, &c); /* not asked to follow */
    CHECK(pool_threads_now(p) == 3);
    pool_follow_load(p, true);
    uint64_t give_up = platform_now_us() + 20000000;
    /* With all of them, with fewer, and with all again. */
    for (bool back = false; !back && platform_now_us() < give_up; runs++) {
        pool_run(p, burn_and_take, &c);
        int now = pool_threads_now(p);
        back = fewest < 3 && now == 3;
        if (now < fewest) fewest = now;
    }
    c.end = true;
    for (int i = 0; i < 2; i++) pthread_join(other[i], NULL);
    CHECKF(fewest < 3, "always %d threads", fewest);
    CHECK(pool_threads(p) == 3);
    CHECK(c.work.wrong == 0);
    int bad = 0;
    for (int k = 0; k < c.work.n; k++) bad += c.work.taken[k] != runs * c.work.loops;
    CHECKF(bad == 0, "%d items not taken once in each of %d loops", bad, runs * c.work.loops);
    free(c.work.taken);
    pool_free(p);
}
#endif

static void impossible_numbers_of_threads_are_refused(void)
{
    struct infer_error err = {0};
    CHECK(pool_create(0, 0, "t", &err) == NULL && err.code == INFER_ERR);
    CHECK(pool_create(POOL_MAX_THREADS + 1, 0, "t", &err) == NULL);
    CHECKF(strstr(err.message, "257"), "%s", err.message);
    CHECK(pool_create(2, (size_t)1 << 62, "t", &err) == NULL);
}

static void processors_are_counted_within_the_affinity(void)
{
    int n = platform_cpu_count();
    CHECK(n >= 1 && n <= (int)sysconf(_SC_NPROCESSORS_CONF));
}

int main(void)
{
    RUN(a_barrier_shows_what_every_thread_wrote_before_it);
    RUN(a_run_calls_every_thread_once_and_returns_after_all);
    RUN(work_sharing_gives_every_item_out_once);
    RUN(the_chunks_of_a_stuck_thread_are_taken_by_others);
    RUN(long_pieces_get_shorter_towards_the_end);
    RUN(an_idle_pool_uses_no_processor);
    RUN(every_thread_has_aligned_scratch_of_its_own);
    RUN(workers_are_named_deaf_to_signals_and_nicer_than_the_caller);
#ifdef __linux__
    RUN(a_pool_that_follows_the_load_leaves_threads_out);
#endif
    RUN(impossible_numbers_of_threads_are_refused);
    RUN(processors_are_counted_within_the_affinity);
    return check_result();
}
