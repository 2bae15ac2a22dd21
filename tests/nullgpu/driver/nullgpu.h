/* What the stubs of a null GPU share: the card, its memory, and the counts of what was asked of it. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *key, *name;
    size_t memory; /* bytes */
    int major, minor, sms, bus_bits, l2_bytes;
    int shared_optin, shared_sm, threads_sm, blocks_sm; /* bytes, bytes, threads, blocks */
} Card;

extern const unsigned char nullgpu_uuid[16];
const Card *nullgpu_card(void);

size_t nullgpu_total(void);
size_t nullgpu_free_bytes(void);
void *nullgpu_reserve(size_t bytes);  /* addresses alone */
int nullgpu_charge(long long bytes);  /* 0, or 1 when the card is full */
void *nullgpu_alloc(size_t bytes);    /* NULL when the card is full */
void nullgpu_release(void *p);
int nullgpu_is_device(const void *p);

void *nullgpu_pin(size_t bytes); /* NULL when the host gives no more */
int nullgpu_register(void *p, size_t bytes);
void nullgpu_unpin(void *p);
int nullgpu_is_pinned(const void *p);

void nullgpu_count(const char *kind, const char *name, size_t bytes);
void nullgpu_copy(void *to, const void *from, size_t bytes, const char *how);
