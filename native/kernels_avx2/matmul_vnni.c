/* Prefill and batch kernels by AVX-VNNI's byte products. Memory is the caller's; any thread. */
#include "product_vnni.h"

#include "matmul_body.h"
#include "peak_body.h"

void avx2_matmul_vnni(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                      void *scratch)
{
    matmul(w, row0, row1, a, y, ld_y, scratch);
}

uint64_t avx2_peak_vnni(int rounds) { return peak(rounds); }
