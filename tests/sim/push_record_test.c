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
    assert_int_equal(layout->speed, 77);
    assert_int_equal(layout->sealed.disk_count, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_string_equal(layout->sealed.disks[i].name, targets[i].disk);
        assert_string_equal(push_record_where(&scene->record, i), targets[i].where);
        assert_int_equal(layout->sealed.disks[i].size_bytes, targets[i].size_bytes);
    }
    assert_int_equal(layout->state, PUSH_RECORD_FAILED);
    assert_int_equal(layout->status, -EIO);
    assert_string_equal(layout->reason, "it failed");
    assert_string_equal(layout->snapshot, SNAPSHOT);
    assert_int_equal(layout->consistency, CONSISTENT_HOOKS);
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

/* With a sum that is right: each in a copy of its own. */
static void wrong_values_are_refused(void **state)
{
    struct scene *scene = *state;
    const size_t length = scene->record.shm.reserved_bytes;
    struct push_record_layout *layout = malloc(length);
    assert_non_null(layout);
    for (unsigned wrong = 0; wrong < 18; wrong++) {
        memcpy(layout, scene->record.shm.base, length);
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
            layout->state = PUSH_RECORD_CONCLUDED + 1;
            break;
        case 12:
            layout->status = 1;
            break;
        case 13:
            memset(layout->reason, 'x', sizeof layout->reason);
            break;
        case 14:
            memset(layout->snapshot, 'x', sizeof layout->snapshot);
            break;
        case 15:
            layout->progress[1].note.stage = TARGET_KNOWN + 1;
            break;
        case 16:
            layout->progress[0].note = (struct target_note){.stage = TARGET_NAMING, .created = 1};
            strcpy(layout->progress[0].note.nonce, "../../../../../../../../etc/passwd00");
            break;
        case 17:
            layout->consistency = CONSISTENT_AGENT + 1;
            break;
        }
        layout->sum = crc32c(crc32c(0, sealed, sizeof *sealed), layout->texts, sealed->text_bytes);
        if (check(scene, layout) != -EINVAL)
            fail_msg("wrong value %u is taken", wrong);
    }
    free(layout);
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
        TEST(what_was_asked_for_comes_out_again), TEST(damage_is_noticed),  TEST(wrong_values_are_refused),
        TEST(what_is_not_right_is_removed),       TEST(names_have_a_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
