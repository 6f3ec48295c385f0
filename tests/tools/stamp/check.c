// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The judge; see check.h for the rules.
 *
 * Records of one slot are never in flight together, so if a slot holds record v, then exactly those of its records up to v
 * are in. Of each slot only two matter: the last one in (it has the latest issue) and the first one missing (it has the
 * earliest acknowledgement). Rule 3 for all pairs of records is then one comparison: no record in was issued after a
 * missing one had been acknowledged.
 */
#include "check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sector.h"

enum { PROBLEMS_TOLD = 12, READ_BYTES = 1 << 20 };

/* One end of the instant: a record and its time. */
struct witness {
    uint64_t time_ns, sequence;
    uint32_t disk, writer;
};

struct check {
    const struct log_content *content;
    const struct check_options *options;
    struct check_result *result;
    struct witness last_in;       /* latest issue of what is in */
    struct witness first_missing; /* earliest acknowledgement of what is missing */
};

#define TELL(check, ...)                                           \
    do {                                                           \
        if ((check)->result->problems++ < PROBLEMS_TOLD) {         \
            fprintf((check)->options->out, "WRONG: " __VA_ARGS__); \
            fputc('\n', (check)->options->out);                    \
        }                                                          \
    } while (0)

struct place { /* one writer on one disk */
    uint32_t disk, writer;
    const struct log_history *history;
    uint64_t prefix; /* the highest record that is in */
};

/* The last of the records 1..count that goes to the slot of turn k (0..slots-1); 0: none does. */
static uint64_t last_of_turn(uint64_t count, uint64_t turn, uint64_t slots)
{
    return count <= turn ? 0 : turn + 1 + (count - turn - 1) / slots * slots;
}

/*
 * Which record a slot holds: 0 means none of this run. false: told already.
 * A torn one after a crash is resolved to the older of the two.
 */
static bool slot_read(struct check *check, const struct place *place, const char *bytes, uint64_t offset, uint64_t turn,
                      uint64_t *held)
{
    const struct log_plan *plan = &check->content->plan;
    struct sector expected = {.run = plan->run, .disk = place->disk, .writer = place->writer};
    uint64_t oldest = UINT64_MAX, newest = 0;
    for (uint32_t i = 0; i < plan->record_bytes / SECTOR_BYTES; i++) {
        struct sector sector;
        memcpy(&sector, bytes + i * SECTOR_BYTES, sizeof(sector));
        expected.offset_bytes = offset + i * SECTOR_BYTES;
        uint64_t sequence = 0;
        switch (sector_judge(&sector, &expected)) {
        case SECTOR_FOREIGN:
            break;
        case SECTOR_GOOD:
            sequence = sector.sequence;
            break;
        case SECTOR_DAMAGED:
            TELL(check, "disk %u, byte %" PRIu64 ": the CRC of the sector is wrong", place->disk,
                 expected.offset_bytes);
            return false;
        case SECTOR_MISPLACED:
            TELL(check, "disk %u, byte %" PRIu64 ": holds a sector of disk %u, byte %" PRIu64 ", writer %u",
                 place->disk, expected.offset_bytes, sector.disk, sector.offset_bytes, sector.writer);
            return false;
        }
        if (sequence != 0 && (sequence > place->history->count || (sequence - 1) % plan->slots != turn)) {
            TELL(check, "disk %u, byte %" PRIu64 ": record %" PRIu64 " of writer %u was never issued there",
                 place->disk, expected.offset_bytes, sequence, place->writer);
            return false;
        }
        oldest = sequence < oldest ? sequence : oldest;
        newest = sequence > newest ? sequence : newest;
    }
    *held = oldest;
    if (oldest == newest)
        return true;
    bool forgiven = check->options->crashed && place->history->acknowledged_ns[newest - 1] == UINT64_MAX &&
                    last_of_turn(newest - 1, turn, plan->slots) == oldest;
    if (!forgiven)
        TELL(check, "disk %u, byte %" PRIu64 ": torn between the records %" PRIu64 " and %" PRIu64 " of writer %u",
             place->disk, offset, oldest, newest, place->writer);
    return forgiven;
}

/* Rule 2 for the two records of a slot that matter, and their times for rule 3. */
static void slot_judge(struct check *check, struct place *place, uint64_t turn, uint64_t held)
{
    const struct log_history *history = place->history;
    uint64_t missing = held == 0 ? turn + 1 : held + check->content->plan.slots;
    if (held != 0) {
        uint64_t issued_ns = history->issued_ns[held - 1];
        if (issued_ns >= check->options->after_ns)
            TELL(check, "disk %u: record %" PRIu64 " of writer %u is in, but was issued after the end", place->disk,
                 held, place->writer);
        if (issued_ns > check->last_in.time_ns)
            check->last_in = (struct witness){issued_ns, held, place->disk, place->writer};
        if (held > place->prefix)
            place->prefix = held;
    }
    if (missing <= history->count) {
        uint64_t acknowledged_ns = history->acknowledged_ns[missing - 1];
        if (acknowledged_ns <= check->options->before_ns)
            TELL(check, "disk %u: record %" PRIu64 " of writer %u is missing, but was acknowledged%s", place->disk,
                 missing, place->writer, check->options->crashed ? "" : " before the beginning");
        if (acknowledged_ns < check->first_missing.time_ns)
            check->first_missing = (struct witness){acknowledged_ns, missing, place->disk, place->writer};
    }
}

/* Rule 4: every slot is as after the first `prefix` records. */
static void place_check_prefix(struct check *check, const struct place *place, const uint64_t *held)
{
    uint64_t slots = check->content->plan.slots;
    for (uint64_t turn = 0; turn < slots; turn++) {
        uint64_t expected = last_of_turn(place->prefix, turn, slots);
        if (held[turn] != expected && held[turn] != UINT64_MAX) {
            TELL(check, "disk %u: record %" PRIu64 " of writer %u is in, but record %" PRIu64 " before it is not",
                 place->disk, place->prefix, place->writer, expected);
            return;
        }
    }
}

/* The records of one writer on one disk. false: the image can't be read. */
static bool place_check(struct check *check, struct place *place)
{
    const struct log_plan *plan = &check->content->plan;
    uint64_t length = plan->slots * plan->record_bytes;
    uint64_t start = plan->region_start + place->writer * length;
    char *bytes = malloc(length);
    uint64_t *held = calloc(plan->slots, sizeof(*held));
    if (bytes == NULL || held == NULL)
        abort();
    bool readable = true;
    for (uint64_t at = 0; readable && at < length; at += READ_BYTES) {
        uint64_t piece = length - at < READ_BYTES ? length - at : READ_BYTES;
        readable = check->options->read(check->options->context, place->disk, bytes + at, start + at, piece) == 0;
    }
    for (uint64_t turn = 0; readable && turn < plan->slots; turn++) {
        uint64_t offset = log_plan_offset(plan, place->writer, turn + 1);
        if (slot_read(check, place, bytes + (offset - start), offset, turn, &held[turn]))
            slot_judge(check, place, turn, held[turn]);
        else
            held[turn] = UINT64_MAX;
    }
    if (readable && plan->queue == 1)
        place_check_prefix(check, place, held);
    for (uint64_t turn = 0; readable && turn < plan->slots; turn++) {
        if (held[turn] != UINT64_MAX && held[turn] != 0)
            check->result->records_in += (held[turn] - 1) / plan->slots + 1;
    }
    check->result->slots += plan->slots;
    free(bytes);
    free(held);
    return readable;
}

static void check_dependence(struct check *check, const struct place *places)
{
    const struct log_plan *plan = &check->content->plan;
    for (uint32_t writer = 0; writer < plan->writers; writer++) {
        uint64_t first = places[writer].prefix;
        for (uint32_t disk = 1; disk < plan->disks; disk++) {
            uint64_t before = places[(disk - 1) * plan->writers + writer].prefix;
            uint64_t here = places[disk * plan->writers + writer].prefix;
            if (here > before || here + 1 < first)
                TELL(check,
                     "writer %u: disk %u has %" PRIu64 " records, disk %u %" PRIu64 ", the first disk %" PRIu64
                     ": dependent writes were reordered",
                     writer, disk - 1, before, disk, here, first);
        }
    }
}

static void check_instant(struct check *check)
{
    const struct witness *in = &check->last_in, *missing = &check->first_missing;
    if (missing->time_ns < in->time_ns)
        TELL(check,
             "not one instant: record %" PRIu64
             " of writer %u on disk %u is missing, though it was acknowledged %" PRIu64 " us before record %" PRIu64
             " of writer %u on disk %u was issued, which is in",
             missing->sequence, missing->writer, missing->disk, (in->time_ns - missing->time_ns) / 1000, in->sequence,
             in->writer, in->disk);
}

bool check_run(const struct log_content *content, const struct check_options *options, struct check_result *result)
{
    *result = (struct check_result){0};
    struct check check = {content, options, result, {.time_ns = 0}, {.time_ns = UINT64_MAX}};
    const struct log_plan *plan = &content->plan;
    uint32_t count = plan->disks * plan->writers;
    struct place *places = calloc(count, sizeof(*places));
    if (places == NULL)
        abort();
    bool readable = true;
    uint64_t issued = 0;
    for (uint32_t i = 0; i < count && readable; i++) {
        places[i] = (struct place){i / plan->writers, i % plan->writers, &content->histories[i], 0};
        issued += content->histories[i].count;
        readable = place_check(&check, &places[i]);
    }
    if (readable) {
        check_instant(&check);
        if (plan->dependent)
            check_dependence(&check, places);
    }
    result->records_missing = issued - (result->records_in < issued ? result->records_in : issued);
    if (result->problems > PROBLEMS_TOLD)
        fprintf(options->out, "... and %" PRIu64 " more\n", result->problems - PROBLEMS_TOLD);
    free(places);
    return readable && result->problems == 0;
}
