/* libcuda: the driver interface, as far as Triton's launcher and torch's allocator ask for it. */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "nullgpu.h"

#define OK return CUDA_SUCCESS
static CUcontext CONTEXT = (CUcontext)0x1234;

/* One table for both interfaces: their attributes have the same numbers. */
int nullgpu_attribute(int which) {
    const Card *card = nullgpu_card();
    switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card->shared_optin;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return card->shared_sm;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 2475000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 10501000;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card->sms;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card->bus_bits;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card->l2_bytes;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card->threads_sm;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card->blocks_sm;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card->major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card->minor;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: return card->major >= 9;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
    default: return 0;
    }
}

CUresult cuInit(unsigned flags) { OK; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; OK; }
CUresult cuDeviceGet(CUdevice *device, int which) { *device = which; OK; }
CUresult cuDeviceGetCount(int *count) { *count = 1; OK; }
CUresult cuDeviceGetName(char *name, int room, CUdevice device) { strncpy(name, nullgpu_card()->name, room); OK; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) { *value = nullgpu_attribute(which); OK; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) { *flags = 0; *active = 1; OK; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = CONTEXT; OK; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = CONTEXT; OK; }
CUresult cuCtxSetCurrent(CUcontext context) { OK; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; OK; }
CUresult cuCtxGetLimit(size_t *bytes, CUlimit which) { *bytes = 1 << 20; OK; }
CUresult cuCtxSetLimit(CUlimit which, size_t bytes) { OK; }
CUresult cuLogsRegisterCallback(CUlogsCallback function, void *data, CUlogsCallbackHandle *handle) { OK; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "null GPU error"; OK; }
CUresult cuGetErrorName(CUresult error, const char **text) { *text = "CUDA_ERROR_NULL_GPU"; OK; }

CUresult cuStreamSynchronize(CUstream stream) { nullgpu_count("sync", "cuStreamSynchronize", 0); OK; }
CUresult cuCtxSynchronize(void) { nullgpu_count("sync", "cuCtxSynchronize", 0); OK; }

CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = malloc(8); OK; }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned n, CUjit_option *options, void **values) { return cuModuleLoadData(module, image); }
CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }
CUresult cuModuleUnload(CUmodule module) { OK; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) { *function = (CUfunction)strdup(name); OK; }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    OK;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    int shared = which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    return shared && value > nullgpu_card()->shared_optin ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { OK; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) { *count = 1; OK; }

static CUresult launched(CUfunction function) { nullgpu_count("triton", (const char *)function, 0); OK; }
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream stream, void **arguments, void **extra) { return launched(function); }
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) { return launched(function); }
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream stream, void **arguments) { return launched(function); }

CUresult cuPointerGetAttribute(void *answer, CUpointer_attribute which, CUdeviceptr p) {
    if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)answer = p;
    else if (which == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
        *(unsigned *)answer = nullgpu_is_device((void *)p) ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
    else *(unsigned long long *)answer = 0;
    OK;
}

/* Expandable segments: addresses are reserved, then memory is created and mapped page by page. */
CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *kind, CUmemAllocationGranularity_flags flags) { *bytes = 2 << 20; OK; }
CUresult cuMemAddressReserve(CUdeviceptr *p, size_t bytes, size_t alignment, CUdeviceptr wish, unsigned long long flags) { *p = (CUdeviceptr)nullgpu_reserve(bytes); OK; }
CUresult cuMemAddressFree(CUdeviceptr p, size_t bytes) { OK; }
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *kind, unsigned long long flags) {
    nullgpu_count("malloc", "cuMemCreate", bytes);
    if (nullgpu_charge(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t *kept = malloc(sizeof *kept);
    *kept = bytes;
    *handle = (CUmemGenericAllocationHandle)kept;
    OK;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) { nullgpu_charge(-(long long)*(size_t *)handle); free((void *)handle); OK; }
CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap((void *)p, bytes, PROT_READ | PROT_WRITE, how, -1, 0) == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr p, size_t bytes) { munmap((void *)p, bytes); OK; }
CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *access, size_t count) { OK; }
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t bytes) { *p = (CUdeviceptr)nullgpu_alloc(bytes); return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY; }
CUresult cuMemFree_v2(CUdeviceptr p) { nullgpu_release((void *)p); OK; }
