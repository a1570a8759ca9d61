/* What all engines share: which one computes a model, asked of its file once, at load; and the counting of steps. */
#include "engine.h"

#include <stdatomic.h>

#include "llm.h"

struct engine *engine_load(const char *path, const struct engine_config *config, struct infer_error *err)
{
    struct gguf *g = gguf_open(path, err);
    return g ? llm_load(g, config, err) : NULL;
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
