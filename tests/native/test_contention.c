/* How many threads a run gets beside other processes, in simulated time. */
#include "check.h"
#include "contention.h"

enum { RUN_US = 10000, MAX = 8 };

struct machine {
    struct contention c;
    struct contention_part parts[MAX];
    uint64_t now_us;
};

static struct machine machine_with(int threads)
{
    struct machine m = {.now_us = 1000000};
    contention_init(&m.c, threads);
    return m;
}

/* A run in which each of the first `crowded` threads has its processor for one part in `parts` of the time; the others
 * work as long as those do, and wait for them. */
static int run(struct machine *m, int crowded, uint64_t parts, uint64_t preemptions)
{
    uint64_t wall_us = crowded ? RUN_US * parts : RUN_US;
    m->now_us += wall_us;
    for (int i = 0; i < m->c.threads; i++) {
        m->parts[i].worked_us += RUN_US;
        if (i < crowded) {
            m->parts[i].lost_us += wall_us - RUN_US;
            m->parts[i].preemptions += preemptions;
        }
    }
    contention_after_run(&m->c, m->now_us, wall_us, m->parts);
    return m->c.threads;
}

static void alone_all_threads_run(void)
{
    struct machine m = machine_with(4);
    for (int i = 0; i < 1000; i++) CHECK(run(&m, 0, 1, 0) == 4);
}

static void a_thread_that_hardly_runs_is_left_out(void)
{
    struct machine m = machine_with(4);
    CHECK(run(&m, 1, 10, 3) == 3);
    for (int i = 0; i < 5; i++) CHECK(run(&m, 0, 1, 0) == 3); /* 50 ms */
}

static void two_of_two_that_share_go_down_to_one(void)
{
    struct machine m = machine_with(2);
    CHECK(run(&m, 1, 10, 1) == 1);
    m = machine_with(2);
    CHECK(run(&m, 2, 10, 1) == 1);
}

static void many_that_all_share_stay_because_fewer_do_less(void)
{
    struct machine m = machine_with(8);
    for (int i = 0; i < 20; i++) CHECK(run(&m, 8, 3, 1) == 8); /* 8 thirds of a processor are more than one */
}

static void a_little_loss_is_no_reason(void)
{
    struct machine m = machine_with(2);
    for (int i = 0; i < 100; i++) {
        m.now_us += 11 * RUN_US / 10;
        for (int k = 0; k < 2; k++) m.parts[k] = (struct contention_part){m.parts[k].worked_us + RUN_US, m.parts[k].lost_us + RUN_US / 10, 1};
        contention_after_run(&m.c, m.now_us, 11 * RUN_US / 10, m.parts);
        CHECK(m.c.threads == 2);
    }
}

static void waiting_for_a_page_of_the_file_is_no_contention(void)
{
    struct machine m = machine_with(2);
    for (int i = 0; i < 100; i++) CHECK(run(&m, 2, 50, 0) == 2);
}

static void all_are_tried_again_ever_more_rarely(void)
{
    struct machine m = machine_with(2);
    uint64_t last_us = 0, pause_us = 0;
    for (int failures = 0; failures < 9; failures++) {
        CHECK(run(&m, 1, 10, 1) == 1);
        last_us = m.now_us;
        while (run(&m, 0, 1, 0) == 1) CHECK(m.now_us < last_us + 10000000);
        CHECK(m.now_us - last_us >= pause_us);
        pause_us = m.now_us - last_us;
    }
    CHECKF(pause_us > 3000000 && pause_us < 3400000, "%d us", (int)pause_us);
    /* and once the others are gone, the next disturbance costs no long pause */
    for (int i = 0; i < 5; i++) CHECK(run(&m, 0, 1, 0) == 2);
    CHECK(run(&m, 1, 10, 1) == 1);
    last_us = m.now_us;
    while (run(&m, 0, 1, 0) == 1) continue;
    CHECK(m.now_us - last_us < 200000);
}

static void a_single_thread_always_runs(void)
{
    struct machine m = machine_with(1);
    for (int i = 0; i < 10; i++) CHECK(run(&m, 1, 10, 1) == 1);
}

int main(void)
{
    RUN(alone_all_threads_run);
    RUN(a_thread_that_hardly_runs_is_left_out);
    RUN(two_of_two_that_share_go_down_to_one);
    RUN(many_that_all_share_stay_because_fewer_do_less);
    RUN(a_little_loss_is_no_reason);
    RUN(waiting_for_a_page_of_the_file_is_no_contention);
    RUN(all_are_tried_again_ever_more_rarely);
    RUN(a_single_thread_always_runs);
    return check_result();
}
