/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each sector of the disk may hold: vhost_sim.h. */
#include <stdlib.h>
#include <string.h>

#include "base/zero.h"
#include "vhost_sim.h"

enum { ZEROES = 0, FIRST = 1 }; /* numbers: FIRST: what the stage has put there */

void model_begin(struct sim *sim)
{
    sim->numbers = FIRST;
    for (uint32_t i = 0; i < SIM_SECTORS; i++)
        sim->sectors[i] = (struct sim_sector){.values = {FIRST}, .count = 1};
}

/* Each sector says the number of its write and where it is, so that nothing passes for it. */
void model_fill(uint8_t *bytes, uint32_t sector, uint32_t number)
{
    const uint32_t head[2] = {number, sector};
    memset(bytes, (int)(number % 251), 512);
    memcpy(bytes, head, sizeof head);
}

static uint32_t number_of(const struct sim *sim, uint32_t sector, const uint8_t *bytes)
{
    uint8_t expected[512];
    uint32_t number;
    if (memory_is_zero((const char *)bytes, 512))
        return ZEROES;
    memset(expected, stage_first_value(0, sector / 8), sizeof expected);
    if (memcmp(bytes, expected, sizeof expected) == 0)
        return FIRST;
    memcpy(&number, bytes, sizeof number);
    model_fill(expected, sector, number);
    if (memcmp(bytes, expected, sizeof expected) != 0)
        sim_fail(sim, "sector %u holds what no write has put there", sector);
    return number;
}

static bool may_hold(const struct sim_sector *sector, uint32_t number)
{
    for (unsigned i = 0; i < sector->count; i++)
        if (sector->values[i] == number)
            return true;
    return false;
}

static void add_value(const struct sim *sim, struct sim_sector *sector, uint32_t number)
{
    if (may_hold(sector, number))
        return;
    if (sector->count == SIM_VALUES)
        sim_fail(sim, "a sector has too many values that it may hold");
    sector->values[sector->count++] = number;
}

static void remove_value(struct sim_sector *sector, uint32_t number)
{
    for (unsigned i = 0; i < sector->count; i++)
        if (sector->values[i] == number)
            sector->values[i--] = sector->values[--sector->count];
}

/* Nothing is under way there: the disk says what it holds. */
static void collapse(struct sim *sim, uint32_t index)
{
    struct sim_sector *sector = &sim->sectors[index];
    uint32_t number = number_of(sim, index, world_file_bytes(sim->stage->files[0]) + index * UINT64_C(512));
    if (!may_hold(sector, number))
        sim_fail(sim, "sector %u holds %u; %u of %u values would be right", index, number, sector->values[0],
                 sector->count);
    sector->values[0] = number;
    sector->count = 1;
    if (sector->loose)
        add_value(sim, sector, ZEROES);
}

bool model_is_free(const struct sim *sim, const struct sim_span *span, bool writes)
{
    for (uint32_t i = span->sector; i < span->sector + span->count; i++)
        if (sim->sectors[i].writing || (writes && sim->sectors[i].readers > 0))
            return false;
    return true;
}

void model_read_begin(struct sim *sim, const struct sim_span *span)
{
    for (uint32_t i = span->sector; i < span->sector + span->count; i++)
        sim->sectors[i].readers++;
}

void model_read_end(struct sim *sim, const struct sim_span *span, const uint8_t *bytes)
{
    for (uint32_t i = 0; i < span->count; i++) {
        struct sim_sector *sector = &sim->sectors[span->sector + i];
        sector->readers--;
        if (!bytes)
            continue;
        uint32_t number = number_of(sim, span->sector + i, bytes + i * UINT64_C(512));
        if (!may_hold(sector, number))
            sim_fail(sim, "sector %u was read as %u; %u of %u values would be right", span->sector + i, number,
                     sector->values[0], sector->count);
    }
}

void model_write_begin(struct sim *sim, const struct sim_span *span, uint32_t number)
{
    for (uint32_t i = span->sector; i < span->sector + span->count; i++) {
        collapse(sim, i);
        sim->sectors[i].writing = true;
        add_value(sim, &sim->sectors[i], number);
    }
}

void model_write_end(struct sim *sim, const struct sim_span *span, uint32_t number, enum model_end end)
{
    for (uint32_t i = span->sector; i < span->sector + span->count; i++) {
        struct sim_sector *sector = &sim->sectors[i];
        sector->writing = false;
        if (end == MODEL_DONE) {
            sector->values[0] = number;
            sector->count = 1;
            sector->loose = false;
        } else if (end == MODEL_DISCARDED) {
            sector->loose = true;
        } else if (end == MODEL_NEVER) {
            if (number != ZEROES) /* zeroes may have been there before */
                remove_value(sector, number);
        }
        if (end != MODEL_UNKNOWN)
            collapse(sim, i);
    }
}

void model_check_all(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_SECTORS; i++)
        if (!sim->sectors[i].writing)
            collapse(sim, i);
}
