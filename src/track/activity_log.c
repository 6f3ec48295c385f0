/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Extents and the slots that they have in the activity log.
 *
 *     IDLE -> LOGGING -> ACTIVE <-> RETIRING -> IDLE
 *
 * A slot is a place in every log block that is written while it is in use: each block names all that are active, so that
 * recovery needs the newest one only. An extent leaves at the moment in which a block without it is composed: what is
 * written to it from then on needs a later block. Until that block is durable, recovery sees an older one, which names it:
 * a superset.
 */
#include "track/activity_log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_MASK ((1u << EXTENT_STATE_SHIFT) - 1)

static void extent_set(struct activity_log *log, uint32_t extent, enum extent_state state, unsigned slot)
{
    log->extents[extent] = (uint16_t)((unsigned)state << EXTENT_STATE_SHIFT | slot);
}

static struct activity_slot *slot_of(struct activity_log *log, uint32_t extent)
{
    assert(extent < log->extent_count && activity_log_state(log, extent) != EXTENT_IDLE);
    struct activity_slot *slot = &log->slots[log->extents[extent] & SLOT_MASK];
    assert(slot->extent == extent);
    return slot;
}

static void slot_move(struct activity_log *log, struct activity_slot *slot, enum extent_state state)
{
    extent_set(log, slot->extent, state, (unsigned)(slot - log->slots));
}

static void slots_clear(struct activity_log *log)
{
    list_init(&log->free);
    list_init(&log->order);
    for (unsigned i = 0; i < SIDECAR_LOG_SLOTS; i++) {
        log->slots[i] = (struct activity_slot){0};
        list_append(&log->free, &log->slots[i].link);
    }
    log->used_count = log->active_count = log->logging_count = log->retiring_count = log->fresh_count = 0;
}

int activity_log_init(struct activity_log *log, uint32_t extent_count, unsigned limit)
{
    assert(limit <= SIDECAR_LOG_SLOTS);
    *log = (struct activity_log){.extent_count = extent_count, .limit = limit};
    log->extents = calloc(extent_count, sizeof *log->extents);
    if (!log->extents)
        return -ENOMEM;
    slots_clear(log);
    return 0;
}

void activity_log_fini(struct activity_log *log)
{
    free(log->extents);
    log->extents = NULL;
}

void activity_log_reset(struct activity_log *log)
{
    list_each (link, &log->order)
        extent_set(log, container_of(link, struct activity_slot, link)->extent, EXTENT_IDLE, 0);
    slots_clear(log);
}

static void slot_free(struct activity_log *log, struct activity_slot *slot)
{
    switch (activity_log_state(log, slot->extent)) {
    case EXTENT_IDLE:
        assert(false);
        break;
    case EXTENT_LOGGING:
        log->logging_count--;
        log->fresh_count -= !slot->composed;
        break;
    case EXTENT_ACTIVE:
        log->active_count--;
        break;
    case EXTENT_RETIRING:
        log->retiring_count--;
        break;
    }
    extent_set(log, slot->extent, EXTENT_IDLE, 0);
    list_remove(&slot->link);
    list_append(&log->free, &slot->link);
    log->used_count--;
}

int activity_log_resize(struct activity_log *log, uint32_t extent_count)
{
    uint16_t *extents = calloc(extent_count, sizeof *extents);
    if (!extents)
        return -ENOMEM;
    list_each_safe (link, &log->order) {
        struct activity_slot *slot = container_of(link, struct activity_slot, link);
        if (slot->extent >= extent_count)
            slot_free(log, slot);
    }
    uint32_t common = extent_count < log->extent_count ? extent_count : log->extent_count;
    memcpy(extents, log->extents, common * sizeof *extents);
    free(log->extents);
    log->extents = extents;
    log->extent_count = extent_count;
    return 0;
}

static struct activity_slot *slot_take(struct activity_log *log, uint32_t extent)
{
    assert(!list_empty(&log->free));
    struct activity_slot *slot = container_of(list_take_first(&log->free), struct activity_slot, link);
    *slot = (struct activity_slot){.extent = extent};
    list_append(&log->order, &slot->link);
    log->used_count++;
    return slot;
}

bool activity_log_add(struct activity_log *log, uint32_t extent)
{
    assert(extent < log->extent_count && activity_log_state(log, extent) == EXTENT_IDLE);
    if (activity_log_free(log) == 0)
        return false;
    struct activity_slot *slot = slot_take(log, extent);
    slot_move(log, slot, EXTENT_LOGGING);
    log->logging_count++;
    log->fresh_count++;
    return true;
}

void activity_log_touch(struct activity_log *log, uint32_t extent)
{
    slot_of(log, extent)->touched = true;
}

bool activity_log_is_composed(const struct activity_log *log, uint32_t extent)
{
    return log->slots[log->extents[extent] & SLOT_MASK].composed;
}

bool activity_log_is_touched(const struct activity_log *log, uint32_t extent)
{
    return log->slots[log->extents[extent] & SLOT_MASK].touched;
}

void activity_log_retire(struct activity_log *log, uint32_t extent)
{
    assert(activity_log_is_active(log, extent));
    slot_move(log, slot_of(log, extent), EXTENT_RETIRING);
    log->active_count--;
    log->retiring_count++;
}

void activity_log_cancel(struct activity_log *log, uint32_t extent)
{
    assert(activity_log_state(log, extent) == EXTENT_RETIRING);
    struct activity_slot *slot = slot_of(log, extent);
    slot_move(log, slot, EXTENT_ACTIVE);
    log->retiring_count--;
    log->active_count++;
    list_remove(&slot->link);
    list_append(&log->order, &slot->link);
}

void activity_log_compose(struct activity_log *log, bool stored, struct sidecar_log *block)
{
    memset(block, 0, sizeof *block);
    unsigned count = 0;
    list_each_safe (link, &log->order) {
        struct activity_slot *slot = container_of(link, struct activity_slot, link);
        enum extent_state state = activity_log_state(log, slot->extent);
        if (state == EXTENT_RETIRING && stored) {
            slot_free(log, slot);
            continue;
        }
        slot->composed = state == EXTENT_LOGGING;
        block->extents[count++] = htole32(slot->extent);
    }
    block->extent_count = htole32(count);
    log->fresh_count = 0;
}

unsigned activity_log_composed(struct activity_log *log)
{
    unsigned count = 0;
    list_each (link, &log->order) {
        struct activity_slot *slot = container_of(link, struct activity_slot, link);
        if (!slot->composed)
            continue;
        slot->composed = false;
        slot_move(log, slot, EXTENT_ACTIVE);
        log->logging_count--;
        log->active_count++;
        count++;
    }
    return count;
}

int activity_log_adopt(struct activity_log *log, uint32_t extent)
{
    if (extent >= log->extent_count || activity_log_state(log, extent) != EXTENT_IDLE)
        return -EBADMSG;
    struct activity_slot *slot = slot_take(log, extent);
    slot_move(log, slot, EXTENT_ACTIVE);
    log->active_count++;
    return 0;
}
