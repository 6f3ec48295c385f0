/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bits are set with a full barrier on both sides, even where one is set already. Between our store into a page and the look
 * at its bit a front-end could clear the bit and copy the page as it was before: a mere look would then have found a bit
 * that no longer promises anything.
 *
 * A log that its file has lost pages of (shared_map.h) is torn: marks are lost, so its session ends before the guest is told
 * that anything is done. Nothing of a log outlives a session or the daemon: who connects again hands over a new one.
 */
#include "export/vhost_user/dirty_log.h"

#include <errno.h>
#include <stddef.h>

#include "base/limits.h"

#define PAGES_OF_BYTE 8

int dirty_log_set(struct dirty_log *log, const struct vhost_log *what, int fd, struct error *err)
{
    if (what->size > LIMIT_DIRTY_LOG_BYTES)
        return error_set(err, EINVAL, "a log of %llu bytes; at most %llu are taken", (unsigned long long)what->size,
                         (unsigned long long)LIMIT_DIRTY_LOG_BYTES);
    struct shared_map *map = shared_map_create(fd, what->offset, what->size, err);
    if (!map)
        return error_prefix(err, "the log");
    dirty_log_drop(log);
    log->map = map;
    return 0;
}

void dirty_log_drop(struct dirty_log *log)
{
    shared_map_unref(log->map);
    log->map = NULL;
}

bool dirty_log_covers(const struct dirty_log *log, uint64_t end)
{
    return end == 0 || (end - 1) / (PAGES_OF_BYTE * VHOST_LOG_PAGE) < log->map->size_bytes;
}

bool dirty_log_is_torn(const struct dirty_log *log)
{
    return log->map && shared_map_is_torn(log->map);
}

void dirty_log_mark(const struct dirty_log *log, uint64_t guest_address, uint64_t length)
{
    if (length == 0)
        return;
    uint8_t *const bits = (uint8_t *)log->map->base;
    const uint64_t end = log->map->size_bytes * PAGES_OF_BYTE;
    const uint64_t last = (guest_address + length - 1) / VHOST_LOG_PAGE;
    for (uint64_t page = guest_address / VHOST_LOG_PAGE; page <= last && page < end; page++)
        __atomic_fetch_or(&bits[page / PAGES_OF_BYTE], (uint8_t)(1u << page % PAGES_OF_BYTE), __ATOMIC_SEQ_CST);
}

void dirty_log_mark_memory(const struct dirty_log *log, const struct guest_memory *memory, const void *host,
                           uint64_t length)
{
    if (length > 0)
        dirty_log_mark(log, guest_memory_address(memory, host), length);
}
