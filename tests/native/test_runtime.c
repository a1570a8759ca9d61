/* The runtime with a small engine that counts: admission, turns, cancelling, removal, threads. Run it under the tsan preset too. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "check.h"
#include "engine.h"
#include "platform.h"

/* An engine whose requests each take some steps of the pool. */
struct counter {
    struct engine engine;
    pthread_mutex_t lock;
    struct request *queue; /* under lock, any order */
    int step_us;
    bool refuse;
    _Atomic bool held; /* a step that has begun does not end */
    _Atomic int steps, in_step, pool_threads; /* the last: the most that a step had */
};

struct count_request {
    struct request base;
    int steps_left; /* < 0: runs until it is cancelled */
    _Atomic int n_done;
};

static void sleep_us(int us)
{
    struct timespec ts = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&ts, NULL);
}

static int counter_admit(struct engine *e, struct request *r, struct infer_error *err)
{
    struct counter *c = (struct counter *)e;
    if (c->refuse) return infer_fail(err, INFER_BUSY, "the queue is full");
    pthread_mutex_lock(&c->lock);
    r->next = c->queue;
    c->queue = r;
    pthread_mutex_unlock(&c->lock);
    return 0;
}

static void count_thread(struct pool_thread *t, void *arg)
{
    struct counter *c = arg;
    if (t->index == 0 && t->count > c->pool_threads) c->pool_threads = t->count;
}

static bool counter_step(struct engine *e, struct pool *p)
{
    struct counter *c = (struct counter *)e;
    c->in_step = 1;
    struct request *done = NULL;
    pthread_mutex_lock(&c->lock);
    bool any = c->queue != NULL;
    for (struct request **at = &c->queue; *at;) {
        struct count_request *r = (struct count_request *)*at;
        if (r->steps_left > 0) r->steps_left--;
        if (r->steps_left == 0 || r->base.cancelled) {
            *at = r->base.next;
            r->base.next = done;
            done = &r->base;
        } else {
            at = &r->base.next;
        }
    }
    pthread_mutex_unlock(&c->lock);
    if (any) {
        pool_run(p, count_thread, c);
        c->steps++;
        if (c->step_us) sleep_us(c->step_us);
        for (int i = 0; c->held && i < 50000; i++) sleep_us(200); /* a test that waits for the step shall fail, not hang */
    }
    while (done) {
        struct request *r = done;
        done = r->next;
        r->state = REQUEST_DONE;
        r->done(r);
    }
    c->in_step = 0;
    return any;
}

static void counter_abort(struct engine *e)
{
    struct counter *c = (struct counter *)e;
    pthread_mutex_lock(&c->lock);
    struct request *r = c->queue;
    c->queue = NULL;
    pthread_mutex_unlock(&c->lock);
    while (r) {
        struct request *next = r->next;
        infer_fail(&r->error, INFER_NOMODEL, "unloaded");
        r->state = REQUEST_DONE;
        r->done(r);
        r = next;
    }
}

static const struct engine_ops counter_ops = {
    .name = "counter", .admit = counter_admit, .step = counter_step, .abort = counter_abort};

static void counter_init(struct counter *c, int step_us)
{
    memset(c, 0, sizeof *c);
    c->engine.ops = &counter_ops;
    pthread_mutex_init(&c->lock, NULL);
    c->step_us = step_us;
}

static void on_done(struct request *r)
{
    atomic_fetch_add(&((struct count_request *)r)->n_done, 1);
}

static bool wait_done(struct count_request *r)
{
    for (int i = 0; i < 20000 && !r->n_done; i++) sleep_us(500);
    return r->n_done == 1;
}

static void admitted_requests_run_to_their_end_once(void)
{
    struct runtime *rt = runtime_create(2, 0, NULL);
    REQUIRE(rt);
    struct counter c;
    counter_init(&c, 0);
    runtime_add(rt, &c.engine);
    enum { N = 50 };
    struct count_request r[N];
    memset(r, 0, sizeof r);
    for (int i = 0; i < N; i++) {
        r[i].base.done = on_done;
        r[i].steps_left = 1 + i % 5;
        CHECK(engine_admit(&c.engine, &r[i].base, NULL) == 0);
        if (i % 7 == 0) sleep_us(300); /* lets it park in between */
    }
    for (int i = 0; i < N; i++) {
        CHECK(wait_done(&r[i]));
        CHECK(r[i].base.id > 0 && (i == 0 || r[i].base.id > r[i - 1].base.id));
        CHECK(r[i].base.timing.admitted_at > 0 && r[i].base.engine == &c.engine);
    }
    CHECK(c.pool_threads == 2);
    runtime_remove(rt, &c.engine);
    for (int i = 0; i < N; i++) CHECK(r[i].n_done == 1);
    runtime_free(rt);
}

static void a_refusal_is_passed_on_and_the_request_stays_new(void)
{
    struct runtime *rt = runtime_create(1, 0, NULL);
    REQUIRE(rt);
    struct counter c;
    counter_init(&c, 0);
    struct count_request r = {.base.done = on_done, .steps_left = 1};
    struct infer_error err = {0};
    CHECK(engine_admit(&c.engine, &r.base, &err) == -1 && err.code == INFER_NOMODEL); /* not registered */
    runtime_add(rt, &c.engine);
    c.refuse = true;
    CHECK(engine_admit(&c.engine, &r.base, &err) == -1 && err.code == INFER_BUSY);
    CHECK(r.base.state == REQUEST_NEW && r.n_done == 0);
    runtime_remove(rt, &c.engine);
    CHECK(engine_admit(&c.engine, &r.base, &err) == -1 && err.code == INFER_NOMODEL);
    runtime_remove(rt, &c.engine); /* a second time: no effect */
    runtime_free(rt);
}

static void engines_take_turns(void)
{
    struct runtime *rt = runtime_create(1, 0, NULL);
    REQUIRE(rt);
    struct counter a, b;
    counter_init(&a, 100);
    counter_init(&b, 100);
    runtime_add(rt, &a.engine);
    runtime_add(rt, &b.engine);
    struct count_request ra = {.base.done = on_done, .steps_left = -1}, rb = {.base.done = on_done, .steps_left = 40};
    engine_admit(&a.engine, &ra.base, NULL);
    while (!a.steps) sleep_us(100);
    int before = a.steps;
    engine_admit(&b.engine, &rb.base, NULL);
    CHECK(wait_done(&rb));
    CHECKF(a.steps - before >= 38, "%d steps beside the other's 40", a.steps - before);
    engine_cancel(&ra.base);
    CHECK(wait_done(&ra));
    runtime_remove(rt, &a.engine);
    runtime_remove(rt, &b.engine);
    runtime_free(rt);
}

static void removing_an_engine_ends_its_requests_and_its_steps(void)
{
    struct runtime *rt = runtime_create(2, 0, NULL);
    REQUIRE(rt);
    struct counter stays;
    counter_init(&stays, 0);
    runtime_add(rt, &stays.engine);
    for (int i = 0; i < 20; i++) {
        struct counter c;
        counter_init(&c, 500);
        struct count_request r = {.base.done = on_done, .steps_left = -1};
        runtime_add(rt, &c.engine);
        if (i % 2) CHECK(engine_admit(&c.engine, &r.base, NULL) == 0);
        if (i % 3) sleep_us(700);
        runtime_remove(rt, &c.engine); /* c is on this stack: a step after it would show under the sanitizers */
        CHECK(!c.in_step && c.queue == NULL);
        if (i % 2) CHECK(r.n_done == 1 && r.base.error.code == INFER_NOMODEL);
    }
    struct count_request r = {.base.done = on_done, .steps_left = 3};
    CHECK(engine_admit(&stays.engine, &r.base, NULL) == 0);
    CHECK(wait_done(&r)); /* the others' leaving left it in place */
    runtime_remove(rt, &stays.engine);
    runtime_free(rt);
}

static void threads_change_between_steps_under_load(void)
{
    struct runtime *rt = runtime_create(1, 4096, NULL);
    REQUIRE(rt);
    CHECK(runtime_threads(rt) == 1);
    struct counter c;
    counter_init(&c, 0);
    runtime_add(rt, &c.engine);
    struct count_request r = {.base.done = on_done, .steps_left = -1};
    CHECK(engine_admit(&c.engine, &r.base, NULL) == 0);
    for (int n = 1; n <= 5; n++) { /* ascending, so that the most is what the first step with so many had */
        CHECK(runtime_set_threads(rt, n, NULL) == 0);
        int before = c.steps;
        while (c.steps < before + 2) sleep_us(200);
        CHECK(c.pool_threads == n && runtime_threads(rt) == n);
    }
    struct infer_error err = {0};
    CHECK(runtime_set_threads(rt, 100000, &err) == -1 && err.code == INFER_ERR);
    CHECK(runtime_threads(rt) == 5 && !r.n_done);
    CHECK(runtime_set_threads(rt, 0, NULL) == 0);
    CHECK(runtime_threads(rt) == (platform_cpu_count() < POOL_MAX_THREADS ? platform_cpu_count() : POOL_MAX_THREADS));
    engine_cancel(&r.base);
    CHECK(wait_done(&r));
    runtime_remove(rt, &c.engine);
    runtime_free(rt);
}

static void admission_and_cancelling_do_not_wait_for_a_step(void)
{
    struct runtime *rt = runtime_create(1, 0, NULL);
    REQUIRE(rt);
    struct counter c, other;
    counter_init(&c, 0);
    counter_init(&other, 0);
    c.held = true;
    runtime_add(rt, &c.engine);
    struct count_request r = {.base.done = on_done, .steps_left = -1}, r2 = {.base.done = on_done, .steps_left = 1};
    engine_admit(&c.engine, &r.base, NULL);
    while (!c.steps) sleep_us(100); /* now it stays inside the step */
    CHECK(engine_admit(&c.engine, &r2.base, NULL) == 0);
    engine_cancel(&r.base);
    runtime_add(rt, &other.engine);
    CHECK(runtime_threads(rt) == 1);
    CHECK(c.in_step && c.steps == 1);
    c.held = false;
    CHECK(wait_done(&r) && wait_done(&r2));
    runtime_remove(rt, &c.engine);
    runtime_remove(rt, &other.engine);
    runtime_free(rt);
}

struct admitter {
    struct counter *counter;
    int admitted, refused;
};

static void *admit_until_refused(void *arg)
{
    struct admitter *a = arg;
    for (;;) {
        struct count_request *r = calloc(1, sizeof *r);
        r->base.done = on_done;
        r->steps_left = 1;
        if (engine_admit(&a->counter->engine, &r->base, NULL) != 0) {
            a->refused++;
            free(r);
            return NULL;
        }
        a->admitted++;
        if (!wait_done(r)) return NULL; /* lost: reported by the caller, since nothing was refused */
        free(r);
    }
}

static void admissions_that_race_with_a_removal_end_or_are_refused(void)
{
    struct runtime *rt = runtime_create(2, 0, NULL);
    REQUIRE(rt);
    for (int round = 0; round < 10; round++) {
        struct counter c;
        counter_init(&c, 0);
        runtime_add(rt, &c.engine);
        struct admitter a[2] = {{.counter = &c}, {.counter = &c}};
        pthread_t t[2];
        for (int i = 0; i < 2; i++) REQUIRE(pthread_create(&t[i], NULL, admit_until_refused, &a[i]) == 0);
        sleep_us(1500);
        runtime_remove(rt, &c.engine);
        for (int i = 0; i < 2; i++) {
            pthread_join(t[i], NULL);
            CHECK(a[i].refused == 1);
        }
    }
    runtime_free(rt);
}

static void an_idle_runtime_uses_no_processor(void)
{
    struct runtime *rt = runtime_create(2, 0, NULL);
    REQUIRE(rt);
    struct counter c;
    counter_init(&c, 0);
    runtime_add(rt, &c.engine);
    struct count_request r = {.base.done = on_done, .steps_left = 2};
    engine_admit(&c.engine, &r.base, NULL);
    CHECK(wait_done(&r));
    sleep_us(20000);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    sleep_us(200000);
    getrusage(RUSAGE_SELF, &after);
    double used = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
                  1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec);
    CHECKF(used < 0.02, "%.3f s of 0.2 s", used);
    runtime_remove(rt, &c.engine);
    runtime_free(rt);
}

int main(void)
{
    RUN(admitted_requests_run_to_their_end_once);
    RUN(a_refusal_is_passed_on_and_the_request_stays_new);
    RUN(engines_take_turns);
    RUN(removing_an_engine_ends_its_requests_and_its_steps);
    RUN(threads_change_between_steps_under_load);
    RUN(admission_and_cancelling_do_not_wait_for_a_step);
    RUN(admissions_that_race_with_a_removal_end_or_are_refused);
    RUN(an_idle_runtime_uses_no_processor);
    return check_result();
}
