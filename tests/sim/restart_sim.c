/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Snapshots over many deaths of the daemon, by chance: two disks, several writes, releases and reads at once,
 * snapshots that come and go, a cache with two tiers, tmpfs large or tight; the daemon is killed in a random moment, and
 * sometimes again while the next one starts.
 *
 * The oracle: each write of a block has a number of its own, and one write of a block is under way at a time. So of a
 * snapshot that was asked for when write A was the last one acknowledged, and was there when B was the last one issued, a
 * block holds one of A to B; and from the first time that it is read on, whatever dies in between, exactly that.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"

enum { BLOCKS = STAGE_DISK_BYTES / STAGE_BLOCK, WRITERS = 6, ALIVE = 5, LIVES = 4 };

struct block {
    uint32_t acknowledged, issued; /* numbers of writes; the first content is 0 */
    bool busy;
};

struct taken { /* a snapshot */
    struct stage_snapshot *snapshot;
    bool there, ending;
    uint32_t from[STAGE_DISKS][BLOCKS], to[STAGE_DISKS][BLOCKS]; /* what its blocks may hold */
    bool released[STAGE_DISKS][BLOCKS];
};

struct writer {
    struct stage_request request;
    unsigned disk;
    uint64_t block, count;
    uint32_t number;
};

struct sim {
    struct stage *stage;
    struct block blocks[STAGE_DISKS][BLOCKS];
    struct writer writers[WRITERS];
    struct taken *taken[STAGE_SNAPSHOTS];
    unsigned taken_count;
    uint32_t numbers;
    uint64_t checks;
};

static uint64_t below(struct sim *sim, uint64_t bound)
{
    return world_below(sim->stage->world, bound);
}

/* A block that was written with the number says so in its first word, and is the same value otherwise. */
static void stamp(uint8_t *block, uint32_t number)
{
    memset(block, (int)(number % 251), STAGE_BLOCK);
    memcpy(block, &number, sizeof(number));
}

static uint32_t number_of(const uint8_t *block, unsigned disk, uint64_t index)
{
    uint32_t number;
    memcpy(&number, block, sizeof(number));
    if (block[STAGE_BLOCK - 1] == stage_first_value(disk, index) && block[0] == block[STAGE_BLOCK - 1] &&
        block[1] == block[0])
        return 0;
    for (unsigned i = sizeof(number); i < STAGE_BLOCK; i++)
        assert_int_equal(block[i], number % 251);
    return number;
}

/* ---- the guest ---- */

static void settle_writer(struct sim *sim, struct writer *writer)
{
    if (writer->count == 0 || !writer->request.done)
        return;
    assert_int_equal(writer->request.status, 0);
    for (uint64_t i = 0; i < writer->count; i++) {
        struct block *block = &sim->blocks[writer->disk][writer->block + i];
        block->busy = false;
        block->acknowledged = writer->number;
    }
    writer->count = 0;
}

static void guest_write(struct sim *sim)
{
    struct writer *writer = &sim->writers[below(sim, WRITERS)];
    settle_writer(sim, writer);
    const unsigned disk = (unsigned)below(sim, STAGE_DISKS);
    const uint64_t first = below(sim, BLOCKS - 4), count = 1 + below(sim, 4);
    if (writer->count > 0)
        return;
    for (uint64_t i = 0; i < count; i++)
        if (sim->blocks[disk][first + i].busy)
            return;
    *writer = (struct writer){.disk = disk, .block = first, .count = count, .number = ++sim->numbers};
    for (uint64_t i = 0; i < count; i++) {
        sim->blocks[disk][first + i].busy = true;
        sim->blocks[disk][first + i].issued = writer->number;
        stamp(writer->request.buffer + i * STAGE_BLOCK, writer->number);
    }
    stage_write_buffer(sim->stage, &writer->request, disk, first, count);
}

/* ---- snapshots ---- */

static void note_range(struct sim *sim, struct taken *taken, bool end)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        for (unsigned i = 0; i < BLOCKS; i++)
            if (end)
                taken->to[disk][i] = sim->blocks[disk][i].issued;
            else
                taken->from[disk][i] = sim->blocks[disk][i].acknowledged;
}

static void look_at_snapshots(struct sim *sim)
{
    for (unsigned i = 0; i < sim->taken_count; i++) {
        struct taken *taken = sim->taken[i];
        if (taken->there || !taken->snapshot->answered)
            continue;
        assert_true(taken->snapshot->created);
        taken->there = true;
        note_range(sim, taken, true);
    }
}

static unsigned alive(const struct sim *sim)
{
    unsigned count = 0;
    for (unsigned i = 0; i < sim->taken_count; i++)
        count += !sim->taken[i]->ending;
    return count;
}

static void take(struct sim *sim)
{
    char name[16];
    if (sim->taken_count == STAGE_SNAPSHOTS || alive(sim) == ALIVE)
        return;
    struct taken *taken = calloc(1, sizeof(*taken));
    assert_non_null(taken);
    for (unsigned i = 0; i < WRITERS; i++)
        settle_writer(sim, &sim->writers[i]);
    note_range(sim, taken, false);
    snprintf(name, sizeof(name), "s%u", sim->taken_count);
    sim->taken[sim->taken_count++] = taken;
    taken->snapshot = stage_create(sim->stage, name, 0);
}

static struct taken *any_taken(struct sim *sim)
{
    struct taken *taken = sim->taken_count > 0 ? sim->taken[below(sim, sim->taken_count)] : NULL;
    return taken && taken->there && !taken->ending && taken->snapshot->views[0] != NULL ? taken : NULL;
}

static void end_one(struct sim *sim)
{
    struct taken *taken = any_taken(sim);
    if (!taken)
        return;
    taken->ending = true;
    stage_delete(sim->stage, taken->snapshot);
}

static void wait_for(struct sim *sim, const struct stage_request *request)
{
    while (!request->done && !sim->stage->dead)
        assert_true(world_step(sim->stage->world));
}

static void release(struct sim *sim)
{
    struct taken *taken = any_taken(sim);
    if (!taken)
        return;
    const unsigned disk = (unsigned)below(sim, STAGE_DISKS);
    const uint64_t first = below(sim, BLOCKS - 40), count = below(sim, 8) == 0 ? 40 : 1 + below(sim, 6);
    memset(taken->released[disk] + first, true, count);
    struct stage_request request = {.node = taken->snapshot->views[disk]};
    stage_release_soon(sim->stage, &request, first, count);
    wait_for(sim, &request);
    assert_true(!request.done || request.status == 0 || request.status == -EIO); /* it broke */
}

/* Reads one block of the snapshot, and compares. */
static void check(struct sim *sim, struct taken *taken, unsigned disk, uint64_t block)
{
    struct stage_request read = {.done = false};
    if (taken->snapshot->broken)
        return;
    stage_read(sim->stage, &read, taken->snapshot->views[disk], block, 1);
    wait_for(sim, &read);
    if (!read.done || taken->snapshot->broken)
        return;
    sim->checks++;
    if (read.status == -ENODATA) {
        assert_true(taken->released[disk][block]);
        return;
    }
    assert_int_equal(read.status, 0);
    const uint32_t number = number_of(read.buffer, disk, block);
    if (number < taken->from[disk][block] || number > taken->to[disk][block])
        fail_msg("%s: block %u of disk %u holds %u, not %u to %u", taken->snapshot->name, (unsigned)block, disk, number,
                 taken->from[disk][block], taken->to[disk][block]);
    taken->from[disk][block] = taken->to[disk][block] = number;
}

static void check_one(struct sim *sim)
{
    struct taken *taken = any_taken(sim);
    if (taken)
        check(sim, taken, (unsigned)below(sim, STAGE_DISKS), below(sim, BLOCKS));
}

/* ---- lives ---- */

static void live(struct sim *sim, unsigned steps)
{
    for (unsigned i = 0; i < steps && !sim->stage->dead; i++) {
        const uint64_t what = below(sim, 100);
        look_at_snapshots(sim);
        if (what < 55)
            guest_write(sim);
        else if (what < 62)
            take(sim);
        else if (what < 66)
            end_one(sim);
        else if (what < 76)
            release(sim);
        else
            check_one(sim);
        if (!sim->stage->dead)
            world_run_for(sim->stage->world, below(sim, 300 * NS_PER_US));
    }
    look_at_snapshots(sim);
}

/* What the dead one had not acknowledged may have happened: the disk says. */
static void reconcile(struct sim *sim)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        for (unsigned i = 0; i < BLOCKS; i++) {
            struct block *block = &sim->blocks[disk][i];
            const uint8_t *bytes = world_file_bytes(sim->stage->files[disk]) + (uint64_t)i * STAGE_BLOCK;
            const uint32_t number = number_of(bytes, disk, i);
            assert_true(number == block->acknowledged || (block->busy && number == block->issued));
            *block = (struct block){.acknowledged = number, .issued = number};
        }
    for (unsigned i = 0; i < WRITERS; i++)
        sim->writers[i].count = 0;
}

static void check_all(struct sim *sim)
{
    for (unsigned i = 0; i < sim->taken_count; i++) {
        struct taken *taken = sim->taken[i];
        const bool here = taken->snapshot->views[0] != NULL && !taken->snapshot->deleted;
        if (taken->ending || !taken->there) { /* it may be there, or not */
            taken->ending = taken->ending || !here;
            continue;
        }
        if (!here)
            fail_msg("%s is not there any more", taken->snapshot->name);
        for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
            for (unsigned block = (unsigned)below(sim, 8); block < BLOCKS; block += 1 + (unsigned)below(sim, 8))
                check(sim, taken, disk, block);
    }
}

/* One that was asked for when the daemon died, and is there though nobody was told. */
static void look_at_unanswered(struct sim *sim)
{
    for (unsigned i = 0; i < sim->taken_count; i++)
        assert_true(sim->taken[i]->there || sim->taken[i]->ending || sim->taken[i]->snapshot->views[0] == NULL);
}

static uint64_t one_seed(uint64_t seed)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    assert_non_null(sim);
    const struct stage_options options = {.disk_count = STAGE_DISKS,
                                          .restartable = true,
                                          .seed = seed,
                                          .segments = 4 + (unsigned)(seed % 5),
                                          .cache_segments = seed % 3 == 0 ? 0 : 24};
    void *state = (void *)(uintptr_t)&options;
    assert_int_equal(stage_set_up(&state), 0);
    sim->stage = state;
    for (unsigned life = 0; life < LIVES; life++) {
        sim->stage->moments = 0;
        sim->stage->die_at = 1 + below(sim, 2500);
        live(sim, 400);
        stage_kill(sim->stage);
        for (bool dead = true; dead;) {
            sim->stage->moments = 0;
            sim->stage->die_at = below(sim, 3) == 0 ? 1 + below(sim, 120) : 0;
            stage_restart(sim->stage);
            dead = sim->stage->dead;
            if (dead)
                stage_kill(sim->stage);
        }
        sim->stage->die_at = 0;
        reconcile(sim);
        look_at_unanswered(sim);
        check_all(sim);
    }
    live(sim, 100);
    for (unsigned i = 0; i < WRITERS; i++)
        if (sim->writers[i].count > 0)
            wait_for(sim, &sim->writers[i].request);
    stage_settle(sim->stage);
    check_all(sim);
    stage_destroy_vm(sim->stage);
    stage_settle(sim->stage);
    assert_int_equal(world_named_memory(sim->stage->world), 0);
    stage_tear_down(&state);
    const uint64_t checks = sim->checks;
    for (unsigned i = 0; i < sim->taken_count; i++)
        free(sim->taken[i]);
    free(sim);
    return checks;
}

static unsigned long first_seed = 1, last_seed = 40;

static void many_deaths(void **state)
{
    (void)state;
    uint64_t checks = 0;
    for (uint64_t seed = first_seed; seed <= last_seed; seed++) {
        const uint64_t more = one_seed(seed);
        checks += more;
    }
    assert_true(checks > 100 * (last_seed - first_seed + 1));
}

int main(int argc, char **argv)
{
    if (argc == 3) {
        first_seed = strtoul(argv[1], NULL, 10);
        last_seed = strtoul(argv[2], NULL, 10);
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(many_deaths)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
