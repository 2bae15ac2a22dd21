/* libnvidia-ml: what the daemon and the trainer ask of it. NULLGPU_NVML holds words for what this
   card cannot tell: "off", "power", "memory", "processes". A number in the file "xid" below
   NULLGPU_HOLDERS is an error that happens once. */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nullgpu.h"

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9, TIMEOUT = 10 };
#define UUID "GPU-01020304-0506-0708-090a-0b0c0d0e0f10"
#define OK return SUCCESS
typedef void *Device;

static int lacks(const char *word) { const char *set = getenv("NULLGPU_NVML"); return set && strstr(set, word); }

int nvmlInit_v2(void) { return lacks("off") ? NOT_LOADED : SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { OK; }
const char *nvmlErrorString(int error) { return error == NOT_SUPPORTED ? "Not Supported" : "Driver Not Loaded"; }
int nvmlSystemGetDriverVersion(char *text, unsigned room) { strncpy(text, "580.00", room); OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) { *device = (Device)1; OK; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, Device *device) { *device = (Device)1; OK; }
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    *device = (Device)1;
    return strcmp(uuid, UUID) ? NOT_FOUND : SUCCESS;
}
int nvmlDeviceGetName(Device device, char *text, unsigned room) { strncpy(text, nullgpu_card()->name, room); OK; }
int nvmlDeviceGetUUID(Device device, char *text, unsigned room) { strncpy(text, UUID, room); OK; }
int nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) { *major = nullgpu_card()->major, *minor = nullgpu_card()->minor; OK; }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = 1;
    strcpy(pci->legacy, "0000:01:00.0"), strcpy(pci->address, "00000000:01:00.0");
    OK;
}

/* Live processes and their bytes, as each left them in a file below NULLGPU_HOLDERS. */
static unsigned long long holders(int *pids, unsigned long long *bytes, unsigned *count) {
    unsigned long long total = 0, held;
    unsigned found = 0;
    const char *folder = getenv("NULLGPU_HOLDERS");
    DIR *directory = folder ? opendir(folder) : NULL;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char path[4400];
        int pid = atoi(entry->d_name);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = pid > 0 && !kill(pid, 0) ? fopen(path, "r") : NULL;
        if (!file) continue;
        if (fscanf(file, "%llu", &held) == 1) {
            total += held;
            if (found < *count) pids[found] = pid, bytes[found] = held;
            found++;
        }
        fclose(file);
    }
    if (directory) closedir(directory);
    *count = found;
    return total;
}

static unsigned long long used(void) { int pids[64]; unsigned long long bytes[64]; unsigned count = 64; return holders(pids, bytes, &count); }

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    if (lacks("memory")) return NOT_SUPPORTED;
    memory->total = nullgpu_total(), memory->used = used();
    memory->free = memory->total > memory->used ? memory->total - memory->used : 0;
    OK;
}

typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) {
    int pids[64];
    unsigned long long bytes[64];
    unsigned found = 64;
    if (lacks("processes")) { *count = 0; OK; }
    holders(pids, bytes, &found);
    if (*count < found) { *count = found; return TOO_SMALL; }
    for (unsigned i = 0; i < found; i++) processes[i] = (Process){pids[i], bytes[i], ~0u, ~0u};
    *count = found;
    OK;
}

/* The older list, which torch reads for its message about a full card: empty. */
int nvmlDeviceGetComputeRunningProcesses(Device device, unsigned *count, void *processes) { *count = 0; OK; }

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device device, Utilization *load) { *load = (Utilization){97, 50}; OK; }
int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) { *milliwatts = 198000; return lacks("power") ? NOT_SUPPORTED : SUCCESS; }
int nvmlDeviceGetTemperature(Device device, int sensor, unsigned *celsius) { *celsius = 66; OK; }
int nvmlDeviceGetTemperatureV(Device device, void *answer) { return NOT_SUPPORTED; }

/* --- events: Xid errors alone --- */

enum { XID = 8 };
typedef struct { Device device; unsigned long long kind, data; unsigned gpu_instance, compute_instance; } Event;
int nvmlEventSetCreate(void **set) { *set = (void *)1; OK; }
int nvmlEventSetFree(void *set) { OK; }
int nvmlDeviceGetSupportedEventTypes(Device device, unsigned long long *kinds) { *kinds = XID; OK; }
int nvmlDeviceRegisterEvents(Device device, unsigned long long kinds, void *set) { return kinds == XID ? SUCCESS : NOT_SUPPORTED; }
int nvmlEventSetWait_v2(void *set, Event *event, unsigned milliseconds) {
    char path[4400];
    snprintf(path, sizeof path, "%s/xid", getenv("NULLGPU_HOLDERS") ? getenv("NULLGPU_HOLDERS") : "/nonexistent");
    for (unsigned waited = 0; waited <= milliseconds; waited += 10) {
        FILE *file = fopen(path, "r");
        if (file) {
            *event = (Event){(Device)1, XID, 0, ~0u, ~0u};
            int read = fscanf(file, "%llu", &event->data);
            fclose(file);
            if (read == 1) { remove(path); OK; }
        }
        usleep(10000);
    }
    return TIMEOUT;
}
