/* avx512_peak of an emulated processor: none. Any thread. */
#include "avx512.h"

uint64_t avx512_peak(int rounds)
{
    (void)rounds;
    return 0;
}
