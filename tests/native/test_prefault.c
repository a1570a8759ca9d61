/* Memory that is fetched ahead of its use: how much of an arena has memory, as mincore tells. */
#include "prefault.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "platform.h"

enum { ARENA = 5 * (PREFAULT_AHEAD / 2) };

static size_t resident(void *p, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = bytes / page, count = 0;
    unsigned char *in = malloc(n);
    if (in && mincore(p, n * page, in) == 0)
        for (size_t i = 0; i < n; i++) count += in[i] & 1;
    free(in);
    return count * page;
}

/* Whether that much gets there: the thread runs when the machine has nothing better to do. */
static bool becomes_resident(void *p, size_t bytes)
{
    for (int i = 0; i < 60000; i++) {
        if (resident(p, bytes) == bytes) return true;
        usleep(1000);
    }
    return false;
}

static void memory_comes_ahead_of_use_and_no_further(void)
{
    char *arena = platform_map_anonymous(ARENA);
    REQUIRE(arena != NULL);
    struct prefault *p = prefault_start(arena, ARENA);
    REQUIRE(p != NULL);
    CHECK(becomes_resident(arena, PREFAULT_AHEAD));
    CHECK(resident(arena + PREFAULT_AHEAD, ARENA - PREFAULT_AHEAD) == 0);

    memset(arena, 7, 1000);
    prefault_reach(p, 1); /* still far enough ahead */
    prefault_reach(p, PREFAULT_AHEAD / 2 + 1);
    CHECK(becomes_resident(arena, PREFAULT_AHEAD / 2 * 3));
    CHECK(resident(arena + 2 * PREFAULT_AHEAD, PREFAULT_AHEAD / 2) == 0);
    CHECK(arena[0] == 7 && arena[999] == 7 && arena[1000] == 0);

    prefault_reach(p, ARENA);
    CHECK(becomes_resident(arena, ARENA));
    prefault_stop(p);
    CHECK(arena[999] == 7);
    platform_unmap(arena, ARENA);
}

static void it_ends_at_any_time(void)
{
    for (int i = 0; i < 20; i++) {
        char *arena = platform_map_anonymous(PREFAULT_PIECE);
        REQUIRE(arena != NULL);
        struct prefault *p = prefault_start(arena, PREFAULT_PIECE);
        if (i % 2) prefault_reach(p, PREFAULT_PIECE);
        if (i % 3 == 0) CHECK(becomes_resident(arena, PREFAULT_PIECE));
        prefault_stop(p);
        platform_unmap(arena, PREFAULT_PIECE);
    }
    prefault_reach(NULL, 1);
    prefault_stop(NULL);
}

int main(void)
{
    void *page = platform_map_anonymous(1 << 16);
    if (!page || !platform_populate(page, 1 << 16) || resident(page, 1 << 16) != 1 << 16) {
        fputs("left out: this kernel fetches no memory ahead\n", stderr); /* before Linux 5.14; emulators */
        return 0;
    }
    platform_unmap(page, 1 << 16);
    RUN(memory_comes_ahead_of_use_and_no_further);
    RUN(it_ends_at_any_time);
    return check_result();
}
