/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The record of a push: what was asked for comes out of it again, and nothing else is taken for one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "vm/push_record.h"
#include "world.h"

#define FOLDER "/dev/shm/fleece-1/vm"
#define SNAPSHOT "01234567-89ab-4cde-8f01-23456789abcd"

struct scene {
    struct world *world;
    struct io *io;
    struct push_record record;
};

static const struct push_record_target targets[] = {
    {"vda", "/backup/vda.raw", 5 * MIB, {.device = 1, .inode = 2}},
    {"vdb", "nbd+unix:///x?socket=/s", 7 * MIB, {.device = 3, .inode = 4}},
};

static struct push_options options_for_it(void)
{
    return (struct push_options){
        .mode = PUSH_BOTH, .bitmap = "b", .speed = 77, .no_release = true, .wait_to_finalize = true};
}

static int set_up(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    const struct push_options options = options_for_it();
    struct error err;
    assert_non_null(scene);
    scene->world = world_create(&(struct world_options){.seed = 1});
    scene->io = world_reactor(scene->world, "control", 1);
    world_act_as(scene->world, scene->io);
    assert_int_equal(push_record_create(&scene->record, scene->io, FOLDER, 3, &options, "job", targets, 2, &err), 0);
    *state = scene;
    return 0;
}

static int tear_down(void **state)
{
    struct scene *scene = *state;
    push_record_destroy(&scene->record);
    assert_int_equal(world_named_memory(scene->world), 0);
    world_act_as(scene->world, NULL);
    assert_int_equal(world_destroy(scene->world, stderr), 0);
    free(scene);
    return 0;
}

static void leave(struct scene *scene)
{
    io_shm_destroy(scene->io, &scene->record.shm);
}

static void what_was_asked_for_comes_out_again(void **state)
{
    struct scene *scene = *state;
    struct snapshot_table_disk disks[LIMIT_DISKS];
    const struct push_cut cut = {.hold_ns = 5, .consistency = CONSISTENT_HOOKS, .consistency_reason = "so"};
    struct error err;
    push_record_begin(&scene->record, SNAPSHOT, &cut);
    push_record_fail(&scene->record, -EIO, "it failed");
    leave(scene);
    assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 2, &err), -ENOENT);
    assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 3, &err), 0);
    const struct push_record_layout *layout = scene->record.layout;
    assert_string_equal(layout->sealed.job, "job");
    assert_string_equal(layout->sealed.bitmap, "b");
    assert_int_equal(layout->sealed.flags, PUSH_RECORD_NO_RELEASE | PUSH_RECORD_WAIT_TO_FINALIZE);
    assert_int_equal(push_record_speed(&scene->record), 77);
    assert_int_equal(layout->sealed.disk_count, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_string_equal(layout->sealed.disks[i].name, targets[i].disk);
        assert_string_equal(push_record_where(&scene->record, i), targets[i].where);
        assert_int_equal(layout->sealed.disks[i].size_bytes, targets[i].size_bytes);
    }
    assert_int_equal(push_record_state(&scene->record), PUSH_RECORD_FAILED);
    assert_int_equal(push_record_end(&scene->record)->status, -EIO);
    assert_string_equal(push_record_end(&scene->record)->reason, "it failed");
    assert_string_equal(layout->cut.snapshot, SNAPSHOT);
    assert_string_equal(layout->cut.reason, "so");
    assert_int_equal(layout->cut.consistency, CONSISTENT_HOOKS);
    assert_int_equal(push_record_owners(layout, MEMORY_HEAD_BYTES, disks), 2);
    assert_int_equal(disks[1].identity.inode, 4);
    assert_int_equal(push_record_owners(layout, 100, disks), -EINVAL);
}

static int check(const struct scene *scene, const void *bytes)
{
    uint8_t boot[BOOT_ID_BYTES];
    struct error err = {0};
    io_boot_id(scene->io, boot);
    int status = push_record_check(bytes, scene->record.shm.reserved_bytes, boot, &err);
    assert_true(status == 0 || err.text[0]);
    return status;
}

/* Whoever fakes a record makes its words right. */
static void store_state(struct push_record_layout *layout, uint32_t value)
{
    sealed_store(&layout->state, push_record_state_salt(layout, value), value);
}

static void damage_is_noticed(void **state)
{
    struct scene *scene = *state;
    uint8_t *bytes = (uint8_t *)scene->record.shm.base, other[BOOT_ID_BYTES] = {0};
    const size_t end = offsetof(struct push_record_layout, sealed) + sizeof(struct push_record_sealed);
    struct error err;
    assert_int_equal(check(scene, bytes), 0);
    for (size_t at = 0; at < end; at++) {
        bytes[at] ^= 0x10;
        assert_int_equal(check(scene, bytes), -EINVAL);
        bytes[at] ^= 0x10;
    }
    char *text = scene->record.layout->texts + 4;
    *text ^= 0x10;
    assert_int_equal(check(scene, bytes), -EINVAL);
    *text ^= 0x10;
    assert_int_equal(check(scene, bytes), 0);
    assert_int_equal(push_record_check(bytes, end, other, &err), -EINVAL);
    assert_int_equal(push_record_check(bytes, scene->record.shm.reserved_bytes, other, &err), -EINVAL);
    assert_non_null(strstr(err.text, "earlier boot"));
}

/* Each makes something wrong, and 0 to 11 what was asked for. */
static void make_request_wrong(struct push_record_layout *layout, unsigned wrong)
{
    struct push_record_sealed *sealed = &layout->sealed;
    switch (wrong) {
    case 0:
        sealed->disk_count = 0;
        break;
    case 1:
        sealed->disk_count = LIMIT_DISKS + 1;
        break;
    case 2:
        sealed->mode = PUSH_PLAIN + 1;
        break;
    case 3:
        sealed->flags = PUSH_RECORD_FLAGS + 1;
        break;
    case 4:
        strcpy(sealed->job, "../x");
        break;
    case 5:
        memset(sealed->bitmap, 'b', sizeof sealed->bitmap);
        break;
    case 6:
        sealed->disks[1].name[0] = '/';
        break;
    case 7:
        sealed->disks[1].where_at = sealed->text_bytes;
        break;
    case 8:
        layout->texts[sealed->text_bytes - 1] = 'x';
        break;
    case 9:
        strcpy(layout->texts, "relative");
        break;
    case 10:
        sealed->disks[0].size_bytes = LIMIT_DISK_BYTES + 1;
        break;
    case 11:
        sealed->speed = THROTTLE_RATE_MAX + 1;
        break;
    }
}

static void make_word_wrong(struct push_record_layout *layout, unsigned wrong)
{
    switch (wrong) {
    case 18:
        store_state(layout, PUSH_RECORD_CONCLUDED + 1);
        break;
    case 12:
        layout->ends[1].status = 1;
        store_state(layout, PUSH_RECORD_FAILED | 1 << 8);
        break;
    case 13:
        memset(layout->ends[0].reason, 'x', sizeof layout->ends[0].reason);
        store_state(layout, PUSH_RECORD_FAILED);
        break;
    case 14:
        memset(layout->cut.snapshot, 'x', sizeof layout->cut.snapshot);
        store_state(layout, PUSH_RECORD_COPYING);
        break;
    case 15:
        target_note_store(&layout->progress[1].note, TARGET_KNOWN + 1);
        break;
    case 16:
        layout->progress[0].note.created = 1;
        strcpy(layout->progress[0].note.nonce, "../../../../../../../../etc/passwd00");
        target_note_store(&layout->progress[0].note, TARGET_NAMING);
        break;
    case 17:
        layout->cut.consistency = CONSISTENT_AGENT + 1;
        store_state(layout, PUSH_RECORD_COPYING);
        break;
    }
}

/* With sums that are right: each in a copy of its own. */
static void wrong_values_are_refused(void **state)
{
    struct scene *scene = *state;
    const size_t length = scene->record.shm.reserved_bytes;
    struct push_record_layout *layout = malloc(length);
    assert_non_null(layout);
    for (unsigned wrong = 0; wrong < 19; wrong++) {
        memcpy(layout, scene->record.shm.base, length);
        make_request_wrong(layout, wrong);
        make_word_wrong(layout, wrong);
        layout->sum = crc32c(crc32c(0, &layout->sealed, sizeof layout->sealed), layout->texts,
                             layout->sealed.text_bytes);
        if (check(scene, layout) != (wrong < 12 ? -EINVAL : -EBADMSG))
            fail_msg("wrong value %u is taken", wrong);
    }
    free(layout);
}

/* ---- the words that change ---- */

struct claims { /* all that the next daemon would go by */
    uint32_t state, stages[2], released[2], paused, cancelled;
    int32_t status;
    char reason[LIMIT_ERROR_BYTES];
    struct push_record_cut cut;
    struct target_identity is[2];
    char nonces[2][UUID_TEXT_BYTES];
    uint32_t created[2];
};

/* All bytes of it, so that two can be compared. */
static void claims_of(const struct push_record_layout *layout, struct claims *claims)
{
    const struct push_record record = {.layout = (struct push_record_layout *)(uintptr_t)layout};
    memset(claims, 0, sizeof *claims);
    claims->state = push_record_state(&record);
    claims->paused = push_record_is_paused(&record);
    claims->cancelled = push_record_is_cancelled(&record);
    if (claims->state >= PUSH_RECORD_FAILED) {
        claims->status = push_record_end(&record)->status;
        strcpy(claims->reason, push_record_end(&record)->reason);
    }
    if (claims->state >= PUSH_RECORD_COPYING)
        memcpy(&claims->cut, &layout->cut, sizeof claims->cut);
    for (unsigned i = 0; i < 2; i++) {
        const struct push_record_progress *progress = &layout->progress[i];
        const int stage = target_note_stage(&progress->note);
        claims->stages[i] = (uint32_t)stage;
        claims->released[i] = push_record_has_released(progress);
        if (stage >= TARGET_NAMING) {
            claims->created[i] = progress->note.created;
            memcpy(claims->nonces[i], progress->note.nonce, UUID_TEXT_BYTES);
        }
        if (stage >= TARGET_KNOWN)
            claims->is[i] = progress->note.is;
    }
}

static void fill(struct scene *scene, enum push_record_state state)
{
    const struct push_cut cut = {.hold_ns = 5, .consistency = CONSISTENT_HOOKS, .consistency_reason = "so"};
    struct push_record_progress *progress = scene->record.layout->progress;
    for (unsigned i = 0; i < 2; i++) {
        progress[i].note.created = 1;
        uuid_make(scene->io, progress[i].note.nonce);
        progress[i].note.is = (struct target_identity){7, 8 + i, 9, 10};
        target_note_store(&progress[i].note, i ? TARGET_NAMING : TARGET_KNOWN);
    }
    world_run_for(scene->world, NS_PER_S);
    target_writing(&progress[0].written, scene->io);
    world_run_for(scene->world, NS_PER_S);
    target_writing(&progress[0].written, scene->io);
    push_record_note_released(&progress[0]);
    push_record_note_done(&progress[0], 3 * MIB, 2 * MIB);
    push_record_note_paused(&scene->record, true);
    push_record_note_speed(&scene->record, 88);
    push_record_begin(&scene->record, SNAPSHOT, &cut);
    if (state == PUSH_RECORD_COPIED)
        push_record_copied(&scene->record);
    if (state >= PUSH_RECORD_FAILED)
        push_record_fail(&scene->record, -EIO, "it failed");
    if (state >= PUSH_RECORD_CONCLUDED)
        push_record_conclude(&scene->record, -ECANCELED, "it was cancelled");
}

/* What it says now is what was stored, or less of it. */
static void nothing_more_is_said(const struct push_record_layout *layout, const struct claims *were, size_t at)
{
    const struct push_record record = {.layout = (struct push_record_layout *)(uintptr_t)layout};
    const struct push_record_progress *progress = &layout->progress[0];
    struct claims are;
    uint64_t clock_ns, wall_ns, was_ns, last_ns;
    claims_of(layout, &are);
    if (memcmp(&are, were, sizeof are) != 0)
        fail_msg("byte %zu is damaged, and what it says is believed", at);
    assert_true(push_record_speed(&record) == 88 || push_record_speed(&record) == 77);
    assert_true(push_record_done(progress) == 3 * MIB || push_record_done(progress) == 0);
    assert_true(push_record_data(progress) == 2 * MIB || push_record_data(progress) == 0);
    assert_int_equal(target_written_when(&progress->written, &clock_ns, &wall_ns), 0);
    was_ns = atomic_load(&progress->written.looks[0].wall_ns);
    last_ns = atomic_load(&progress->written.looks[1].wall_ns);
    assert_true(wall_ns == was_ns || wall_ns == last_ns);
}

/* Every byte of it, in several ways; zeroed, as a page that was lost; and one word over another. */
static void c12_a_damaged_word_is_never_believed(void **state)
{
    struct scene *scene = *state;
    static const uint8_t flips[] = {0x01, 0x80, 0xff};
    const enum push_record_state states[] = {PUSH_RECORD_COPYING, PUSH_RECORD_COPIED, PUSH_RECORD_FAILED,
                                             PUSH_RECORD_CONCLUDED};
    const size_t from = offsetof(struct push_record_layout, state),
                 end = offsetof(struct push_record_layout, progress[2]);
    uint8_t *bytes = (uint8_t *)scene->record.shm.base;
    struct push_record_layout *layout = scene->record.layout;
    uint64_t believed = 0, noticed = 0;
    for (unsigned i = 0; i < sizeof states / sizeof *states; i++) {
        fill(scene, states[i]);
        struct claims were;
        claims_of(layout, &were);
        assert_int_equal(were.state, states[i]);
        assert_int_equal(check(scene, bytes), 0);
        for (size_t at = from; at < end; at++)
            for (unsigned k = 0; k < sizeof flips; k++) {
                bytes[at] ^= flips[k];
                const int status = check(scene, bytes);
                assert_true(status == 0 || status == -EBADMSG);
                if (status == 0)
                    nothing_more_is_said(layout, &were, at);
                noticed += status < 0;
                believed += status == 0;
                bytes[at] ^= flips[k];
            }
        assert_int_equal(check(scene, bytes), 0);
    }
    assert_true(noticed > 500 && believed > 500);              /* texts that do not count, the other end, counts */
    for (size_t at = from; at < end; at += sizeof(uint64_t)) { /* a page that was lost, from there on */
        struct push_record_layout *copy = malloc(scene->record.shm.reserved_bytes);
        assert_non_null(copy);
        memcpy(copy, bytes, scene->record.shm.reserved_bytes);
        memset((char *)copy + at, 0, end - at);
        assert_int_equal(check(scene, copy), -EBADMSG);
        free(copy);
    }
    const struct sealed_word was = layout->paused;
    layout->paused = layout->cancelled;
    assert_int_equal(check(scene, bytes), -EBADMSG);
    layout->paused = was;
    assert_int_equal(check(scene, bytes), 0);
}

/* The job is told of, with the reason; nothing of it is removed or gone on with. */
static void a_damaged_record_is_a_job_that_failed(void **state)
{
    struct scene *scene = *state;
    struct error err;
    fill(scene, PUSH_RECORD_COPYING);
    scene->record.layout->progress[1].note.nonce[3] ^= 1;
    leave(scene);
    assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 3, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "record of job 'job'"));
    for (unsigned again = 0; again < 2; again++) {
        assert_int_equal(push_record_state(&scene->record), PUSH_RECORD_FAILED);
        assert_int_equal(push_record_end(&scene->record)->status, -EIO);
        assert_string_equal(push_record_end(&scene->record)->reason, err.text);
        assert_false(push_record_is_paused(&scene->record));
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(target_note_stage(&scene->record.layout->progress[i].note), TARGET_UNTOUCHED);
        leave(scene);
        struct error none;
        assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 3, &none), 0);
    }
}

static void what_is_not_right_is_removed(void **state)
{
    struct scene *scene = *state;
    struct error err;
    scene->record.layout->sum++;
    leave(scene);
    assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 3, &err), -EINVAL);
    assert_int_equal(push_record_adopt(&scene->record, scene->io, FOLDER, 3, &err), -ENOENT);
}

static void names_have_a_bound(void **state)
{
    struct scene *scene = *state;
    const struct push_options options = options_for_it();
    char *where = malloc(LIMIT_PUSH_TEXT_BYTES + 1);
    struct push_record record;
    struct error err;
    assert_non_null(where);
    memset(where, '/', LIMIT_PUSH_TEXT_BYTES);
    where[LIMIT_PUSH_TEXT_BYTES] = '\0';
    const struct push_record_target target = {.disk = "vda", .where = where, .size_bytes = MIB};
    assert_int_equal(push_record_create(&record, scene->io, FOLDER, 4, &options, "k", &target, 1, &err), -ENAMETOOLONG);
    where[LIMIT_PUSH_TEXT_BYTES - 1] = '\0';
    assert_int_equal(push_record_create(&record, scene->io, FOLDER, 4, &options, "k", &target, 1, &err), 0);
    assert_int_equal(check(scene, record.shm.base), 0);
    push_record_destroy(&record);
    free(where);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_was_asked_for_comes_out_again),
        TEST(damage_is_noticed),
        TEST(wrong_values_are_refused),
        TEST(what_is_not_right_is_removed),
        TEST(names_have_a_bound),
        TEST(c12_a_damaged_word_is_never_believed),
        TEST(a_damaged_record_is_a_job_that_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
