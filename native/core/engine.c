/* What all engines share: which one computes a model, asked of its file once, at load; the way of a request
 * to the conductor and its queue; and the counting of steps. A queue links requests and owns none. */
#include "engine.h"

#include <stdatomic.h>

#include "bert.h"
#include "llm.h"

struct engine *engine_load(const char *path, const struct engine_config *config, struct infer_error *err)
{
    struct gguf_string arch;
    struct gguf *g = gguf_open(path, err);
    if (!g) return NULL;
    bool is_bert = gguf_str(g, "general.architecture", &arch) && gguf_string_is(arch, "bert");
    return is_bert ? bert_load(g, config, err) : llm_load(g, config, err); /* which refuses what it does not know */
}

int engine_open(struct engine *e, int max_running, int max_waiting, struct infer_error *err)
{
    int open = atomic_fetch_add(&e->n_open, 1);
    if (open < max_running + max_waiting) return 0;
    atomic_fetch_sub(&e->n_open, 1);
    return infer_fail(err, INFER_BUSY,
                      "%d requests are running or waiting, the most are %d running and %d waiting: try again later", open,
                      max_running, max_waiting);
}

void engine_arrive(struct engine *e, struct request *newest, struct request *oldest)
{
    oldest->next = atomic_load(&e->arrivals);
    while (!atomic_compare_exchange_weak(&e->arrivals, &oldest->next, newest)) {
    }
}

void engine_enqueue(struct engine *e, struct request *r)
{
    r->next = NULL;
    r->prev = e->queue_last;
    if (e->queue_last) e->queue_last->next = r;
    else e->queue = r;
    e->queue_last = r;
}

void engine_dequeue(struct engine *e, struct request *r)
{
    if (r->prev) r->prev->next = r->next;
    else e->queue = r->next;
    if (r->next) r->next->prev = r->prev;
    else e->queue_last = r->prev;
    r->next = r->prev = NULL;
}

void engine_take_arrivals(struct engine *e)
{
    struct request *newest = atomic_exchange(&e->arrivals, NULL), *oldest = NULL;
    while (newest) {
        struct request *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest) {
        struct request *r = oldest;
        oldest = r->next;
        engine_enqueue(e, r);
    }
}

void engine_count_step(struct engine *e, uint64_t us)
{
    histogram_add(&e->latency.step, us);
    /* Only a reader stores besides us, and it stores zero: then this one counts again, for nothing worse. */
    if (us > atomic_load(&e->latency.slowest_step_us)) atomic_store(&e->latency.slowest_step_us, us);
}

uint64_t engine_take_slowest_step(struct engine *e)
{
    return atomic_exchange(&e->latency.slowest_step_us, 0);
}
