/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ring_driver.h"

#include <string.h>

uint64_t driver_descriptors_bytes(uint16_t size)
{
    return 16 * (uint64_t)size;
}

uint64_t driver_available_bytes(uint16_t size)
{
    return 6 + 2 * (uint64_t)size;
}

uint64_t driver_used_bytes(uint16_t size)
{
    return 6 + 8 * (uint64_t)size;
}

struct desc *driver_descriptor(const struct driver *driver, unsigned index)
{
    return (struct desc *)(void *)(driver->memory + driver->place.descriptors) + index;
}

static uint16_t *available(const struct driver *driver, unsigned index)
{
    return (uint16_t *)(void *)(driver->memory + driver->place.available) + index;
}

static uint16_t *used(const struct driver *driver, unsigned index)
{
    return (uint16_t *)(void *)(driver->memory + driver->place.used) + index;
}

void driver_init(struct driver *driver, char *memory, const struct driver_place *place, uint16_t size, bool packed,
                 bool event_idx)
{
    memset(driver, 0, offsetof(struct driver, link));
    driver->memory = memory;
    driver->place = *place;
    driver->size = driver->free_count = size;
    driver->packed = packed;
    driver->event_idx = event_idx;
    driver->wrap = driver->used_wrap = true;
    for (unsigned i = 0; i < size; i++)
        driver->link[i] = (uint16_t)(i + 1);
    memset(memory + place->descriptors, 0, driver_descriptors_bytes(size));
    memset(memory + place->available, 0, packed ? 4 : driver_available_bytes(size));
    memset(memory + place->used, 0, packed ? 4 : driver_used_bytes(size));
}

static void fill_table(const struct driver *driver, const struct part *parts, uint16_t count, uint64_t table)
{
    for (uint16_t i = 0; i < count; i++) {
        const uint16_t write = parts[i].write ? DESC_WRITE : 0;
        struct desc desc = {.address = parts[i].address, .length = parts[i].length};
        if (driver->packed)
            desc.b = write;
        else if (i + 1 < count)
            desc.a = write | DESC_NEXT, desc.b = (uint16_t)(i + 1);
        else
            desc.a = write;
        memcpy(driver->memory + table + i * sizeof desc, &desc, sizeof desc);
    }
}

static void add_split(struct driver *driver, const struct part *parts, uint16_t count, uint32_t cookie, bool indirect)
{
    const uint16_t head = driver->free_head;
    uint16_t index = head;
    for (uint16_t i = 0; i < count; i++) {
        const unsigned flags = (parts[i].write ? DESC_WRITE : 0u) | (i + 1 < count ? DESC_NEXT : 0u);
        *driver_descriptor(driver, index) = (struct desc){parts[i].address, parts[i].length,
                                                          indirect ? DESC_INDIRECT : (uint16_t)flags,
                                                          i + 1 < count ? driver->link[index] : (uint16_t)0};
        index = driver->link[index];
    }
    driver->free_head = index;
    driver->length[head] = count;
    driver->cookie[head] = cookie;
    *available(driver, 2u + driver->next++ % driver->size) = head;
}

static void add_packed(struct driver *driver, const struct part *parts, uint16_t count, uint32_t cookie, bool indirect)
{
    const uint16_t id = driver->free_head, first = driver->next;
    uint16_t first_flags = 0;
    driver->free_head = driver->link[id];
    driver->length[id] = count;
    driver->cookie[id] = cookie;
    for (uint16_t i = 0; i < count; i++) {
        const unsigned flags = (parts[i].write ? DESC_WRITE : 0u) | (i + 1 < count ? DESC_NEXT : 0u) |
                               (indirect ? DESC_INDIRECT : 0u) | (driver->wrap ? DESC_AVAIL : DESC_USED);
        struct desc *desc = driver_descriptor(driver, driver->next);
        desc->address = parts[i].address;
        desc->length = parts[i].length;
        desc->a = id;
        if (i == 0)
            first_flags = (uint16_t)flags;
        else
            __atomic_store_n(&desc->b, (uint16_t)flags, __ATOMIC_RELAXED);
        if (++driver->next == driver->size) {
            driver->next = 0;
            driver->wrap = !driver->wrap;
        }
    }
    driver->packed_added = (uint16_t)(driver->packed_added + count);
    __atomic_store_n(&driver_descriptor(driver, first)->b, first_flags, __ATOMIC_SEQ_CST);
}

bool driver_add(struct driver *driver, const struct part *parts, uint16_t count, uint64_t table, uint32_t cookie)
{
    const struct part indirect = {table, (uint32_t)(count * sizeof(struct desc)), false};
    if ((table ? 1 : count) > driver->free_count)
        return false;
    if (table) {
        fill_table(driver, parts, count, table);
        parts = &indirect;
        count = 1;
    }
    driver->free_count = (uint16_t)(driver->free_count - count);
    if (driver->packed)
        add_packed(driver, parts, count, cookie, table != 0);
    else
        add_split(driver, parts, count, cookie, table != 0);
    return true;
}

void driver_show(struct driver *driver)
{
    if (!driver->packed)
        __atomic_store_n(available(driver, 1), driver->next, __ATOMIC_SEQ_CST);
    driver->shown = driver->next;
}

bool driver_must_kick(struct driver *driver)
{
    if (driver->packed) {
        const uint16_t added = driver->packed_added;
        const uint32_t event = __atomic_load_n((uint32_t *)(void *)(driver->memory + driver->place.used),
                                               __ATOMIC_SEQ_CST);
        uint16_t slot = event & 0x7fff;
        driver->packed_added = 0;
        if (event >> 16 != 2)
            return added > 0 && event >> 16 == 0;
        if ((event >> 15 & 1) != driver->wrap)
            slot = (uint16_t)(slot - driver->size);
        return (uint16_t)(driver->next - slot - 1) < added;
    }
    const uint16_t from = driver->kicked, to = driver->shown;
    driver->kicked = to;
    if (!driver->event_idx)
        return to != from && !(__atomic_load_n(used(driver, 0), __ATOMIC_SEQ_CST) & 1);
    const uint16_t event = __atomic_load_n(used(driver, 2u + 4u * driver->size), __ATOMIC_SEQ_CST);
    return (uint16_t)(to - event - 1) < (uint16_t)(to - from);
}

static bool is_used(const struct driver *driver, int order)
{
    if (!driver->packed)
        return __atomic_load_n(used(driver, 1), order) != driver->used;
    const uint16_t flags = __atomic_load_n(&driver_descriptor(driver, driver->used)->b, order);
    return !(flags & DESC_AVAIL) != driver->used_wrap && !(flags & DESC_USED) != driver->used_wrap;
}

bool driver_get(struct driver *driver, uint32_t *cookie, uint32_t *written)
{
    uint32_t element[2];
    if (!is_used(driver, __ATOMIC_ACQUIRE))
        return false;
    if (driver->packed) {
        element[0] = driver_descriptor(driver, driver->used)->a;
        element[1] = driver_descriptor(driver, driver->used)->length;
        driver->used = (uint16_t)(driver->used + driver->length[element[0]]);
        if (driver->used >= driver->size) {
            driver->used = (uint16_t)(driver->used - driver->size);
            driver->used_wrap = !driver->used_wrap;
        }
        driver->link[element[0]] = driver->free_head;
    } else {
        memcpy(element, used(driver, 2u + 4u * (driver->used++ % driver->size)), sizeof element);
        uint32_t last = element[0];
        for (uint16_t i = 1; i < driver->length[element[0]]; i++)
            last = driver->link[last];
        driver->link[last] = driver->free_head;
    }
    driver->free_head = (uint16_t)element[0];
    driver->free_count = (uint16_t)(driver->free_count + driver->length[element[0]]);
    *cookie = driver->cookie[element[0]];
    *written = element[1];
    return true;
}

bool driver_want_calls(struct driver *driver, uint16_t ahead)
{
    if (driver->packed) {
        uint32_t slot = (uint32_t)driver->used + ahead % driver->size, wrap = driver->used_wrap;
        if (slot >= driver->size) {
            slot -= driver->size;
            wrap = !wrap;
        }
        __atomic_store_n((uint32_t *)(void *)available(driver, 0), driver->event_idx ? slot | wrap << 15 | 2u << 16 : 0,
                         __ATOMIC_SEQ_CST);
    } else if (driver->event_idx) {
        __atomic_store_n(available(driver, 2u + driver->size), (uint16_t)(driver->used + ahead), __ATOMIC_SEQ_CST);
    } else {
        __atomic_store_n(available(driver, 0), 0, __ATOMIC_SEQ_CST);
    }
    return is_used(driver, __ATOMIC_SEQ_CST);
}

void driver_want_no_calls(struct driver *driver)
{
    if (driver->packed)
        __atomic_store_n((uint32_t *)(void *)available(driver, 0), 1u << 16, __ATOMIC_RELAXED);
    else if (!driver->event_idx)
        __atomic_store_n(available(driver, 0), 1, __ATOMIC_RELAXED);
}
