/* cuBLAS and cuBLASLt: products are counted; every other function of the real libraries succeeds
   and does nothing (build.py adds them). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nullgpu.h"

static int product(const char *how, long batch, long m, long n, long k, int type, const void *beta) {
    char name[128];
    snprintf(name, sizeof name, "%s %ld x %ldx%ldx%ld, type %d%s", how, batch, m, n, k, type, *(const float *)beta ? ", added" : "");
    nullgpu_count("gemm", name, 2ull * batch * m * n * k);
    return 0;
}

#ifdef CUBLAS
int cublasCreate_v2(void **handle) { *handle = malloc(64); return 0; }
int cublasGetStream_v2(void *handle, void **stream) { *stream = NULL; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetVersion_v2(void *handle, int *version) { *version = 130101; return 0; }
const char *cublasGetStatusString(int status) { return "null GPU status"; }
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, void *alpha, void *a, int at, int lda, void *b, int bt, int ldb, void *beta, void *c, int ct, int ldc) { return product("Ex", 1, m, n, k, ct, beta); }
int cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k, void *alpha, void *a, int lda, void *b, int ldb, void *beta) { return product("S", 1, m, n, k, 0, beta); }
int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, void *alpha, void *a, int at, int lda, long long sa, void *b, int bt, int ldb, long long sb, void *beta, void *c, int ct, int ldc, long long sc, int batch) { return product("BatchedEx", batch, m, n, k, ct, beta); }
int cublasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, void *alpha, void *a, int lda, long long sa, void *b, int ldb, long long sb, void *beta, void *c, int ldc, long long sc, int batch) { return product("BatchedS", batch, m, n, k, 0, beta); }
#else
enum { TRANSPOSE_A = 3, BATCH_COUNT = 5 };
typedef struct { int compute, transpose_a; } Product;
typedef struct { int type; long rows, columns, batch; } Matrix;

int cublasLtCreate(void **handle) { *handle = malloc(64); return 0; }
size_t cublasLtGetVersion(void) { return 130101; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
int cublasLtMatmulDescCreate(Product **d, int compute, int scale) { *d = calloc(1, sizeof **d); return 0; }
int cublasLtMatmulDescSetAttribute(Product *d, int which, const void *value, size_t bytes) { if (which == TRANSPOSE_A) d->transpose_a = *(const int *)value; return 0; }
int cublasLtMatmulDescDestroy(Product *d) { free(d); return 0; }
int cublasLtMatrixLayoutCreate(Matrix **m, int type, uint64_t rows, uint64_t columns, int64_t pitch) { *m = malloc(sizeof **m); **m = (Matrix){type, rows, columns, 1}; return 0; }
int cublasLtMatrixLayoutSetAttribute(Matrix *m, int which, const void *value, size_t bytes) { if (which == BATCH_COUNT) m->batch = *(const int *)value; return 0; }
int cublasLtMatrixLayoutDestroy(Matrix *m) { free(m); return 0; }
int cublasLtMatmulPreferenceCreate(void **p) { *p = malloc(64); return 0; }
int cublasLtMatmulPreferenceDestroy(void *p) { free(p); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *result, void *p, int wanted, char *found, int *count) { memset(found, 0, 88); *count = 1; return 0; }
int cublasLtMatmul(void *h, Product *how, void *alpha, void *a, Matrix *am, void *b, Matrix *bm, void *beta, void *c, Matrix *cm, void *d, Matrix *dm) {
    return product("Lt", dm->batch, dm->rows, dm->columns, how->transpose_a ? am->rows : am->columns, dm->type, beta);
}
#endif
