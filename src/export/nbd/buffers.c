/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A slab is one mapping of LIMIT_NBD_PIECE_BYTES, cut into buffers of one class. A slab without a used buffer belongs to
 * no class. It is kept while the load needs it now and then (fresh pages cost more than the copy into them), and goes
 * back to the kernel when it was not needed between two trims.
 */
#include "export/nbd/buffers.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { BUFFER_SHIFT_MIN = 12 };

struct nbd_slab {
    struct list_node link;
    char *memory;
    unsigned class;
    uint64_t free_mask, whole_mask; /* one bit for each buffer */
};

bool nbd_budget_take(struct nbd_budget *budget, uint64_t bytes)
{
    uint64_t before = atomic_fetch_add_explicit(&budget->lent_bytes, bytes, memory_order_relaxed);
    if (before + bytes <= LIMIT_NBD_SHARED_BYTES / 2)
        return true;
    nbd_budget_give(budget, bytes);
    return false;
}

void nbd_budget_give(struct nbd_budget *budget, uint64_t bytes)
{
    atomic_fetch_sub_explicit(&budget->lent_bytes, bytes, memory_order_relaxed);
}

static uint64_t window_beyond(uint64_t held)
{
    return held > LIMIT_NBD_WINDOW_BYTES ? held - LIMIT_NBD_WINDOW_BYTES : 0;
}

/* What a session may borrow, by what is lent to others. */
static uint64_t window_right(const struct nbd_window *window, uint64_t lent_to_others)
{
    uint64_t earned = 0, open = 0;
    if (window->proven_bytes > LIMIT_NBD_UNPROVEN_BYTES)
        earned = (window->proven_bytes - LIMIT_NBD_UNPROVEN_BYTES) / LIMIT_NBD_WINDOW_GROWTH;
    if (earned > LIMIT_NBD_BORROW_BYTES)
        earned = LIMIT_NBD_BORROW_BYTES;
    if (lent_to_others < LIMIT_NBD_SHARED_BYTES / 2)
        open = LIMIT_NBD_SHARED_BYTES / 2 - lent_to_others;
    if (open > LIMIT_NBD_OPEN_BYTES)
        open = LIMIT_NBD_OPEN_BYTES;
    uint64_t right = earned > open ? earned : open;
    uint64_t left = lent_to_others < LIMIT_NBD_SHARED_BYTES ? LIMIT_NBD_SHARED_BYTES - lent_to_others : 0;
    return right < left / 4 ? right : left / 4; /* nobody takes it all */
}

uint64_t nbd_window_whole(const struct nbd_window *window)
{
    uint64_t lent = atomic_load_explicit(&window->budget->lent_bytes, memory_order_relaxed);
    uint64_t ours = window_beyond(window->held_bytes);
    return LIMIT_NBD_WINDOW_BYTES + window_right(window, lent > ours ? lent - ours : 0);
}

uint64_t nbd_window_room(const struct nbd_window *window)
{
    uint64_t whole = nbd_window_whole(window);
    return whole > window->held_bytes ? whole - window->held_bytes : 0;
}

bool nbd_window_take(struct nbd_window *window, uint64_t bytes)
{
    if (window->held_bytes + bytes <= LIMIT_NBD_WINDOW_BYTES) { /* its own */
        window->held_bytes += bytes;
        return true;
    }
    if (bytes > nbd_window_room(window))
        return false;
    uint64_t more = window_beyond(window->held_bytes + bytes) - window_beyond(window->held_bytes);
    if (more) {
        uint64_t before = atomic_fetch_add_explicit(&window->budget->lent_bytes, more, memory_order_relaxed);
        if (before + more > LIMIT_NBD_SHARED_BYTES) { /* another reactor was faster */
            atomic_fetch_sub_explicit(&window->budget->lent_bytes, more, memory_order_relaxed);
            return false;
        }
    }
    window->held_bytes += bytes;
    return true;
}

void nbd_window_give(struct nbd_window *window, uint64_t bytes)
{
    assert(window->held_bytes >= bytes);
    if (window->held_bytes <= LIMIT_NBD_WINDOW_BYTES) {
        window->held_bytes -= bytes;
        return;
    }
    uint64_t less = window_beyond(window->held_bytes) - window_beyond(window->held_bytes - bytes);
    if (less)
        atomic_fetch_sub_explicit(&window->budget->lent_bytes, less, memory_order_relaxed);
    window->held_bytes -= bytes;
}

static unsigned buffer_class(uint64_t bytes)
{
    unsigned class = 0;
    while (class < NBD_BUFFER_CLASSES && (UINT64_C(1) << (BUFFER_SHIFT_MIN + class)) < bytes)
        class ++;
    assert(class < NBD_BUFFER_CLASSES);
    return class;
}

uint32_t nbd_buffer_size(uint64_t bytes)
{
    return UINT32_C(1) << (BUFFER_SHIFT_MIN + buffer_class(bytes));
}

void nbd_pool_init(struct nbd_pool *pool, struct nbd_budget *budget)
{
    pool->budget = budget;
    for (unsigned i = 0; i < NBD_BUFFER_CLASSES; i++)
        list_init(&pool->usable[i]);
    list_init(&pool->empty);
    pool->empty_count = pool->empty_least = 0;
}

static struct nbd_slab *slab_create(struct nbd_pool *pool)
{
    struct nbd_slab *slab = calloc(1, sizeof *slab);
    void *memory = mmap(NULL, LIMIT_NBD_PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!slab || memory == MAP_FAILED) {
        free(slab);
        if (memory != MAP_FAILED)
            munmap(memory, LIMIT_NBD_PIECE_BYTES);
        return NULL;
    }
    slab->memory = memory;
    uint64_t now = atomic_fetch_add(&pool->budget->memory_bytes, LIMIT_NBD_PIECE_BYTES) + LIMIT_NBD_PIECE_BYTES;
    unsigned long long peak = atomic_load(&pool->budget->memory_peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&pool->budget->memory_peak_bytes, &peak, now))
        ;
    return slab;
}

static void slab_destroy(struct nbd_pool *pool, struct nbd_slab *slab)
{
    atomic_fetch_sub(&pool->budget->memory_bytes, LIMIT_NBD_PIECE_BYTES);
    munmap(slab->memory, LIMIT_NBD_PIECE_BYTES);
    free(slab);
}

void nbd_pool_trim(struct nbd_pool *pool)
{
    for (; pool->empty_least > 0; pool->empty_least--) {
        struct nbd_slab *slab = list_last(&pool->empty, struct nbd_slab, link);
        list_remove(&slab->link);
        pool->empty_count--;
        slab_destroy(pool, slab);
    }
    pool->empty_least = pool->empty_count;
}

void nbd_pool_fini(struct nbd_pool *pool)
{
    for (unsigned i = 0; i < NBD_BUFFER_CLASSES; i++)
        assert(list_empty(&pool->usable[i]));
    while (!list_empty(&pool->empty))
        slab_destroy(pool, container_of(list_take_first(&pool->empty), struct nbd_slab, link));
    pool->empty_count = pool->empty_least = 0;
}

/* A slab of that class with a free buffer, outside of every list. */
static struct nbd_slab *slab_take(struct nbd_pool *pool, unsigned class)
{
    if (!list_empty(&pool->usable[class]))
        return container_of(list_take_first(&pool->usable[class]), struct nbd_slab, link);
    struct nbd_slab *slab;
    if (!list_empty(&pool->empty)) {
        slab = container_of(list_take_first(&pool->empty), struct nbd_slab, link);
        pool->empty_count--;
        if (pool->empty_least > pool->empty_count)
            pool->empty_least = pool->empty_count;
    } else {
        slab = slab_create(pool);
        if (!slab)
            return NULL;
    }
    unsigned count = 1U << (NBD_BUFFER_CLASSES - 1 - class);
    slab->class = class;
    slab->whole_mask = slab->free_mask = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
    return slab;
}

bool nbd_pool_get(struct nbd_pool *pool, uint64_t bytes, struct nbd_buffer *buffer)
{
    assert(!buffer->bytes);
    unsigned class = buffer_class(bytes);
    struct nbd_slab *slab = slab_take(pool, class);
    if (!slab)
        return false;
    unsigned place = (unsigned)__builtin_ctzll(slab->free_mask);
    slab->free_mask &= slab->free_mask - 1;
    if (slab->free_mask)
        list_prepend(&pool->usable[class], &slab->link);
    buffer->slab = slab;
    buffer->size = UINT32_C(1) << (BUFFER_SHIFT_MIN + class);
    buffer->bytes = slab->memory + (size_t)place * buffer->size;
    return true;
}

void nbd_pool_put(struct nbd_pool *pool, struct nbd_buffer *buffer)
{
    struct nbd_slab *slab = buffer->slab;
    uint64_t bit = UINT64_C(1) << ((size_t)(buffer->bytes - slab->memory) / buffer->size);
    assert(!(slab->free_mask & bit));
    if (slab->free_mask)
        list_remove(&slab->link);
    slab->free_mask |= bit;
    if (slab->free_mask != slab->whole_mask) {
        list_prepend(&pool->usable[slab->class], &slab->link);
    } else {
        list_prepend(&pool->empty, &slab->link);
        pool->empty_count++;
    }
    *buffer = (struct nbd_buffer){0};
}
