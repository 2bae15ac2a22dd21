/* The card, its memory and the host's pinned memory: sizes are real, contents are not. */
#define _GNU_SOURCE
#include "nullgpu.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MiB ((size_t)1 << 20)
#define PAGE (2 * MiB)
#define CONTEXT (300 * MiB) /* what a CUDA context takes of the card */
#define BASE ((char *)0x700000000000)
#define SPAN ((size_t)0x0e0000000000)

static const Card CARDS[] = {
    {"rtx4070", "NVIDIA GeForce RTX 4070", 12282 * MiB, 8, 9, 46, 192, 36 << 20, 101376, 102400, 1536, 24},
    {"rtx3090", "NVIDIA GeForce RTX 3090", 24576 * MiB, 8, 6, 82, 384, 6 << 20, 101376, 102400, 1536, 16},
    {"h200", "NVIDIA H200", 143771 * MiB, 9, 0, 132, 6144, 60 << 20, 232448, 233472, 2048, 32},
    {"t4", "Tesla T4", 15360 * MiB, 7, 5, 40, 256, 4 << 20, 65536, 65536, 1024, 16},
};
const unsigned char nullgpu_uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

const Card *nullgpu_card(void) {
    const char *wanted = getenv("NULLGPU");
    for (size_t i = 0; wanted && i < sizeof CARDS / sizeof *CARDS; i++)
        if (!strcmp(CARDS[i].key, wanted)) return &CARDS[i];
    return &CARDS[0];
}

static size_t megabytes(const char *variable, size_t otherwise) {
    const char *set = getenv(variable);
    return set ? (size_t)atoll(set) * MiB : otherwise;
}

/* --- ranges of addresses and their sizes --- */

typedef struct { char *start; size_t bytes; int mapped; } Range;
typedef struct { Range *of; size_t count, room; } Ranges;

static void keep(Ranges *ranges, void *start, size_t bytes, int mapped) {
    if (ranges->count == ranges->room) {
        ranges->room = ranges->room ? 2 * ranges->room : 1024;
        ranges->of = realloc(ranges->of, ranges->room * sizeof(Range));
    }
    ranges->of[ranges->count++] = (Range){start, bytes, mapped};
}

static Range drop(Ranges *ranges, void *start) {
    for (size_t i = ranges->count; i-- > 0;)
        if (ranges->of[i].start == start) {
            Range found = ranges->of[i];
            ranges->of[i] = ranges->of[--ranges->count];
            return found;
        }
    return (Range){0};
}

/* --- device memory: addresses are never used twice --- */

static char *next = BASE;
static size_t used, limit; /* bytes; limit 0: the card's own */
static Ranges device;

size_t nullgpu_total(void) { return megabytes("NULLGPU_MEMORY_MB", nullgpu_card()->memory); }

static size_t room(void) {
    size_t total = limit ? limit : nullgpu_total();
    return total > used + CONTEXT ? total - used - CONTEXT : 0;
}

size_t nullgpu_free_bytes(void) { return room(); }

/* For a test: the card is full beyond this many bytes in use by this process; 0 lifts it. */
void nullgpu_limit(size_t bytes) { limit = bytes ? bytes + CONTEXT : 0; }

/* What NVML reports as held by this process: a file of its own below NULLGPU_HOLDERS. */
static void publish(void) {
    static int fd = -2;
    const char *folder = getenv("NULLGPU_HOLDERS");
    char text[4200];
    if (fd == -2) {
        if (!folder) { fd = -1; return; }
        snprintf(text, sizeof text, "%s/%d", folder, getpid());
        fd = open(text, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    }
    if (fd < 0) return;
    int length = snprintf(text, sizeof text, "%-24zu", used + CONTEXT);
    if (pwrite(fd, text, length, 0) < 0) perror("nullgpu: holders");
}

int nullgpu_charge(long long bytes) {
    pthread_mutex_lock(&lock);
    int full = bytes > 0 && (size_t)bytes > room();
    if (!full) { used += bytes; publish(); }
    pthread_mutex_unlock(&lock);
    return full;
}

static size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

void *nullgpu_reserve(size_t bytes) {
    return __atomic_fetch_add(&next, whole_pages(bytes), __ATOMIC_RELAXED);
}

void *nullgpu_alloc(size_t bytes) {
    size_t size = whole_pages(bytes);
    if (nullgpu_charge(size)) return NULL;
    void *at = nullgpu_reserve(size);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0) != at) {
        perror("nullgpu: device memory");
        nullgpu_charge(-(long long)size);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    keep(&device, at, size, 1);
    pthread_mutex_unlock(&lock);
    return at;
}

void nullgpu_release(void *p) {
    pthread_mutex_lock(&lock);
    Range found = drop(&device, p);
    pthread_mutex_unlock(&lock);
    if (!found.bytes) return;
    munmap(p, found.bytes);
    nullgpu_charge(-(long long)found.bytes);
}

int nullgpu_is_device(const void *p) { return (char *)p >= BASE && (char *)p < BASE + SPAN; }

/* --- pinned host memory --- */

static size_t pinned, pinned_peak;
static Ranges host;

static int pin(void *p, size_t bytes, int mapped) {
    pthread_mutex_lock(&lock);
    int full = pinned + bytes > megabytes("NULLGPU_PINNED_MB", SIZE_MAX / MiB);
    if (!full) {
        keep(&host, p, bytes, mapped);
        pinned += bytes;
        if (pinned > pinned_peak) pinned_peak = pinned;
    }
    pthread_mutex_unlock(&lock);
    return full;
}

size_t nullgpu_pinned_peak(void) { return pinned_peak; }

int nullgpu_register(void *p, size_t bytes) { return pin(p, bytes, 0); }

void *nullgpu_pin(size_t bytes) {
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (!pin(p, bytes, 1)) return p;
    munmap(p, bytes ? bytes : 1);
    return NULL;
}

void nullgpu_unpin(void *p) {
    pthread_mutex_lock(&lock);
    Range found = drop(&host, p);
    pinned -= found.bytes;
    pthread_mutex_unlock(&lock);
    if (found.mapped) munmap(p, found.bytes ? found.bytes : 1);
}

int nullgpu_is_pinned(const void *p) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < host.count && !found; i++)
        found = (char *)p >= host.of[i].start && (char *)p < host.of[i].start + host.of[i].bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

/* --- counts: of kernels, products, copies, waits --- */

#define COUNTERS 4096
typedef struct { char *key; unsigned long long count, bytes; } Counter;
static Counter counters[COUNTERS];

static Counter *counter(const char *key) {
    unsigned hash = 5381;
    for (const char *c = key; *c; c++) hash = hash * 33 + (unsigned char)*c;
    size_t i = hash % COUNTERS;
    while (counters[i].key && strcmp(counters[i].key, key)) i = (i + 1) % COUNTERS;
    if (!counters[i].key) counters[i].key = strdup(key);
    return &counters[i];
}

void nullgpu_count(const char *kind, const char *name, size_t bytes) {
    char key[512];
    snprintf(key, sizeof key, "%s\t%s", kind, name ? name : "?");
    pthread_mutex_lock(&lock);
    Counter *found = counter(key);
    found->count++;
    found->bytes += bytes;
    pthread_mutex_unlock(&lock);
}

void nullgpu_forget_counts(void) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < COUNTERS; i++) counters[i].count = counters[i].bytes = 0;
    pthread_mutex_unlock(&lock);
}

/* Lines of count, bytes (of a product: floating-point operations), kind and name. */
int nullgpu_write_counts(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) return 1;
    for (size_t i = 0; i < COUNTERS; i++)
        if (counters[i].count)
            fprintf(file, "%llu\t%llu\t%s\n", counters[i].count, counters[i].bytes, counters[i].key);
    return fclose(file);
}

/* --- copies --- */

/* What a host reads of a card that computes nothing: ones where it reads single numbers (a loss, a
   flag, a count), zeros where it reads more; large buffers stay as they are. */
static void answer(void *to, size_t bytes) {
    static const float one = 1.0f;
    if (bytes > 65536) return;
    memset(to, 0, bytes);
    if (bytes == 8 || bytes % 4) *(char *)to = 1;
    else if (bytes <= 64)
        for (size_t i = 0; i < bytes; i += 4) memcpy((char *)to + i, &one, 4);
}

void nullgpu_copy(void *to, const void *from, size_t bytes, const char *how) {
    int in = nullgpu_is_device(to), out = nullgpu_is_device(from);
    const char *way = in && out ? "on the device" : in ? "to the device" : out ? "to the host" : "on the host";
    const char *memory = in == out || nullgpu_is_pinned(in ? from : to) ? "" : ", pageable";
    char name[96];
    snprintf(name, sizeof name, "%s %s%s", how, way, memory);
    nullgpu_count("copy", name, bytes);
    if (out && !in) answer(to, bytes);
    if (!out && !in) memcpy(to, from, bytes);
}
