/* Which engine computes a model: asked of its file, once, at load. */
#include "engine.h"

#include "llm.h"

struct engine *engine_load(const char *path, const struct engine_config *config, struct infer_error *err)
{
    struct gguf *g = gguf_open(path, err);
    return g ? llm_load(g, config, err) : NULL;
}
