/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two pools of buffers, mapped once and touched as they come into use.
 *
 *     free -> lent -> free, or straight to the request that waits longest for one of this size
 *
 * The bounds are those of limits.h, so a crowd of unaligned requests waits and costs no memory. A crash leaves nothing.
 */
#include "driver/bounce.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

_Static_assert(LIMIT_BOUNCE_SMALL <= 255 && LIMIT_BOUNCE_LARGE <= LIMIT_BOUNCE_SMALL, "places fit");

static int size_init(struct bounce_size *size, size_t buffer_bytes, unsigned count)
{
    *size = (struct bounce_size){.buffer_bytes = buffer_bytes, .count = count, .free_count = count};
    list_init(&size->waiting);
    for (unsigned i = 0; i < count; i++)
        size->free[i] = (unsigned char)(count - 1 - i);
    void *memory = mmap(NULL, count * buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    size->memory = memory;
    return 0;
}

static void size_fini(struct bounce_size *size)
{
    assert(size->free_count == size->count && list_empty(&size->waiting));
    if (size->memory)
        munmap(size->memory, size->count * size->buffer_bytes);
}

int bounce_pool_init(struct bounce_pool *pool)
{
    /* Each has room for the two blocks that an unaligned range touches beyond its length. */
    int small = size_init(&pool->small, BOUNCE_SMALL_BYTES + 2 * LIMIT_ALIGNMENT_BYTES, LIMIT_BOUNCE_SMALL);
    int large = size_init(&pool->large, LIMIT_REQUEST_BYTES + 2 * LIMIT_ALIGNMENT_BYTES, LIMIT_BOUNCE_LARGE);
    if (small == 0 && large == 0)
        return 0;
    bounce_pool_fini(pool);
    return -ENOMEM;
}

void bounce_pool_fini(struct bounce_pool *pool)
{
    size_fini(&pool->small);
    size_fini(&pool->large);
}

char *bounce_take(struct bounce_pool *pool, size_t length, struct list_node *waiter)
{
    struct bounce_size *size = length <= pool->small.buffer_bytes ? &pool->small : &pool->large;
    assert(length <= size->buffer_bytes);
    if (size->free_count == 0) {
        list_append(&size->waiting, waiter);
        return NULL;
    }
    return size->memory + size->free[--size->free_count] * size->buffer_bytes;
}

struct list_node *bounce_put(struct bounce_pool *pool, char *buffer)
{
    struct bounce_size *size = &pool->small;
    if (buffer < size->memory || buffer >= size->memory + size->count * size->buffer_bytes)
        size = &pool->large;
    size_t place = (size_t)(buffer - size->memory) / size->buffer_bytes;
    assert(buffer == size->memory + place * size->buffer_bytes && place < size->count);
    struct list_node *waiter = list_take_first(&size->waiting);
    if (!waiter)
        size->free[size->free_count++] = (unsigned char)place;
    return waiter;
}
