/* libcudart: the runtime interface. Functions that torch links and that are not here answer "not
   supported" and print their name (build.py adds them). */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nullgpu.h"

#define OK return cudaSuccess
int nullgpu_attribute(int which);
static __thread cudaError_t last;
static cudaError_t fail(cudaError_t error) { return last = error; }

/* --- kernels are known by their host functions --- */

#define KERNELS (1u << 20) /* torch brings some 100,000 */
typedef struct { const void *function; const char *name; } Kernel;
static Kernel *kernels;

static Kernel *kernel(const void *function) {
    if (!kernels) kernels = calloc(KERNELS, sizeof *kernels);
    size_t i = ((size_t)function >> 4) * 0x9E3779B97F4A7C15ull % KERNELS;
    while (kernels[i].function && kernels[i].function != function) i = (i + 1) % KERNELS;
    return &kernels[i];
}

static cudaError_t launched(const void *function) { nullgpu_count("kernel", kernel(function)->name, 0); OK; }

void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name, int limit, void *a, void *b, void *c, void *d, int *warp) {
    *kernel(function) = (Kernel){function, name};
}
void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int external, size_t bytes, int constant, int global) {}
char __cudaInitModule(void **handle) { return 1; }
cudaError_t __cudaGetKernel(cudaKernel_t *found, const void *function) { *found = (cudaKernel_t)function; OK; }

static __thread struct { dim3 grid, block; size_t shared; void *stream; } configured;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    configured.grid = grid, configured.block = block, configured.shared = shared, configured.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configured.grid, *block = configured.block, *shared = configured.shared, *(void **)stream = configured.stream;
    OK;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launched(function); }
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launched(function); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) { return launched(function); }
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launched(function); }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) { function(data); OK; }
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned flags) { function(stream, cudaSuccess, data); OK; }
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute which, int value) { OK; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t function, enum cudaFuncAttribute which, int value, int device) { OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *function, int block, size_t shared) { *count = 2; OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function, int block, size_t shared, unsigned flags) { *count = 2; OK; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    const Card *card = nullgpu_card();
    memset(found, 0, sizeof *found);
    /* torch's build has no code for 8.9: there it runs that for 8.6 */
    found->binaryVersion = found->ptxVersion = card->major * 10 + (card->major == 8 ? 6 : card->minor);
    found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->maxDynamicSharedSizeBytes = 49152;
    OK;
}

/* --- the device --- */

cudaError_t cudaGetDeviceCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = !(visible && !*visible);
    return *count ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int *device) { *device = 0; OK; }
cudaError_t cudaSetDevice(int device) { OK; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) { *value = nullgpu_attribute(which); OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    const Card *card = nullgpu_card();
    memset(found, 0, sizeof *found);
    strcpy(found->name, card->name);
    memcpy(&found->uuid, nullgpu_uuid, sizeof nullgpu_uuid);
    found->totalGlobalMem = nullgpu_total();
    found->major = card->major, found->minor = card->minor, found->multiProcessorCount = card->sms;
    found->memoryBusWidth = card->bus_bits, found->l2CacheSize = card->l2_bytes;
    found->sharedMemPerMultiprocessor = card->shared_sm, found->sharedMemPerBlockOptin = card->shared_optin;
    found->sharedMemPerBlock = 49152, found->reservedSharedMemPerBlock = 1024;
    found->maxThreadsPerMultiProcessor = card->threads_sm, found->maxBlocksPerMultiProcessor = card->blocks_sm;
    found->regsPerBlock = found->regsPerMultiprocessor = found->totalConstMem = 65536;
    found->warpSize = 32, found->textureAlignment = 512, found->asyncEngineCount = 2, found->pciBusID = 1;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
    found->maxGridSize[0] = 2147483647, found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->canMapHostMemory = found->concurrentKernels = found->unifiedAddressing = 1;
    found->streamPrioritiesSupported = found->managedMemory = found->cooperativeLaunch = 1;
    OK;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device) { strncpy(text, "0000:01:00.0", room); OK; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; OK; }
cudaError_t cudaGetLastError(void) { cudaError_t error = last; last = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorName(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorNullGpu"; }
const char *cudaGetErrorString(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "out of memory" : "null GPU error"; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    char newer[256];
    snprintf(newer, sizeof newer, "%s_v2", name);
    *found = dlsym(RTLD_DEFAULT, name);
    if (!*found) *found = dlsym(RTLD_DEFAULT, newer);
    if (result) *result = *found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    OK;
}
cudaError_t cudaProfilerStart(void) { OK; }
cudaError_t cudaProfilerStop(void) { OK; }

/* --- memory --- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    *p = nullgpu_alloc(bytes);
    nullgpu_count("malloc", "cudaMalloc", bytes);
    return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *p) { nullgpu_release(p); OK; }
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) { return cudaMalloc(p, bytes); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    *p = nullgpu_pin(bytes);
    nullgpu_count("malloc", "cudaHostAlloc", bytes);
    return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *p) { nullgpu_unpin(p); OK; }
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags) { return nullgpu_register(p, bytes) ? fail(cudaErrorMemoryAllocation) : cudaSuccess; }
cudaError_t cudaHostUnregister(void *p) { nullgpu_unpin(p); OK; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = nullgpu_free_bytes(), *total = nullgpu_total(); OK; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *p) {
    memset(found, 0, sizeof *found);
    int on_device = nullgpu_is_device(p), known = on_device || nullgpu_is_pinned(p);
    found->type = on_device ? cudaMemoryTypeDevice : known ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (known) found->devicePointer = (void *)p;
    if (known && !on_device) found->hostPointer = (void *)p;
    OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) { nullgpu_copy(to, from, bytes, "waiting"); OK; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) { nullgpu_copy(to, from, bytes, "queued"); OK; }
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t pitch, size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) { nullgpu_count("copy", "queued, of a rectangle", width * height); OK; }
cudaError_t cudaMemset(void *p, int value, size_t bytes) { nullgpu_count("memset", "waiting", bytes); OK; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) { nullgpu_count("memset", "queued", bytes); OK; }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
    static void *block;
    if (!block) block = nullgpu_alloc(1 << 20);
    *p = block;
    OK;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { *pool = (cudaMemPool_t)0x99; OK; }

/* --- streams and events: everything is done as soon as it is asked for --- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    static long handle;
    *stream = (cudaStream_t)__atomic_add_fetch(&handle, 16, __ATOMIC_RELAXED);
    OK;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { OK; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { OK; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) { *status = cudaStreamCaptureStatusNone; OK; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
    if (id) *id = 0;
    return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { nullgpu_count("sync", "cudaStreamSynchronize", 0); OK; }
cudaError_t cudaDeviceSynchronize(void) { nullgpu_count("sync", "cudaDeviceSynchronize", 0); OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { nullgpu_count("sync", "cudaEventSynchronize", 0); OK; }
cudaError_t cudaEventQuery(cudaEvent_t event) { OK; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = malloc(sizeof(struct timespec)); OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event); OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaEventRecord(event, stream); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t began, cudaEvent_t ended) {
    struct timespec *a = (void *)began, *b = (void *)ended;
    *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f;
    if (*ms <= 0) *ms = 1e-3f;
    OK;
}
