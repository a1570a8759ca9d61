/* What all engines share: which one computes a model, asked of its file once, at load; and the counting of steps. */
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
