/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checkpoints over the disks of a whole VM, in processes that are killed: what is made, committed, deleted and given up, by
 * whom, and what the next process makes of what it finds. Real disks, trackers and snapshots over simulated files.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "sidecar_kit.h"
#include "vm/checkpoints.h"

enum { DISKS = 2, PROCESSES = 4, BLOCK = 4096, BLOCKS = 4096, EVENTS = 16 };
static const uint64_t disk_bytes = (uint64_t)BLOCKS * BLOCK; /* four extents */

struct scene {
    struct sidecar_kit sidecars; /* first */
    struct world *world;
    unsigned process;
    struct io *control, *io[DISKS];
    struct node *views[DISKS];
    struct vm *vm;
    char lease; /* its address is a client */
    /* Of the last command: */
    bool answered;
    struct error err;
    struct checkpoint_id id;
    struct snapshot *snapshot;
    struct vm_checkpoint list[8];
    struct vm_tracking_disk tracking[DISKS];
    char reasons[8][DISKS][LIMIT_ERROR_BYTES];
    unsigned listed;
    unsigned events[VM_CHECKPOINT_INVALID + 1];
    bool gone;
};

/* What killed processes have left in memory: it can't be freed by them. */
static struct vm *graveyard[64];
static unsigned graves;

/* ---- what the daemon does ---- */

struct later { /* an answer of a hook */
    struct io_message message;
    void (*done)(void *argument, int status);
    void *argument;
};

static void later_run(struct io_message *message)
{
    struct later *later = container_of(message, struct later, message);
    later->done(later->argument, 0);
    free(later);
}

static void answer_later(struct scene *scene, void (*answer)(void *argument, int status), void *argument)
{
    struct later *later = calloc(1, sizeof *later);
    assert_non_null(later);
    *later = (struct later){{later_run, NULL}, answer, argument};
    io_post(scene->sidecars.control, &later->message);
}

static void checkpoint_event(void *context, enum vm_checkpoint_event event, const struct checkpoint_id *id,
                             const char *disk, const char *reason)
{
    struct scene *scene = context;
    scene->events[event]++;
    assert_true(event == VM_CHECKPOINT_INVALID ? disk && reason : id && id->uuid[0]);
}

static void publish(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument)
{
    struct scene *scene = context;
    scene->views[export_name[2] - 'a'] = node;
    answer_later(scene, done, argument);
}

static void unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    (void)export_name;
    answer_later(context, done, argument);
}

static void snapshot_said(void *context, const struct snapshot *snapshot)
{
    (void)context;
    (void)snapshot;
}

static void snapshot_deleted(void *context, const char *name, const char *uuid)
{
    (void)context;
    (void)name;
    (void)uuid;
}

/* ---- commands, each as one call on the control thread ---- */

static bool answered(void *argument)
{
    const struct scene *scene = argument;
    return scene->answered;
}

static void await(struct scene *scene)
{
    assert_true(world_run_until(scene->world, answered, scene, 30 * NS_PER_S));
}

static void done(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    scene->err = err ? *err : (struct error){0};
    scene->answered = true;
}

static void recover(void *argument)
{
    struct scene *scene = argument;
    vm_recover(scene->vm, done, scene);
}

/* A new process with the disks and whatever an earlier one has left. */
static void boot(struct scene *scene)
{
    struct error err;
    const unsigned process = ++scene->process;
    assert_true(process < PROCESSES);
    scene->control = world_reactor(scene->world, "control", process);
    struct vm_options options = {.name = "web1",
                                 .ram_bytes = 64 * MIB,
                                 .memory_folder = "/dev/shm/fleece-0/web1",
                                 .hooks = {.context = scene,
                                           .publish = publish,
                                           .unpublish = unpublish,
                                           .checkpoint_event = checkpoint_event,
                                           .snapshot_created = snapshot_said,
                                           .snapshot_broken = snapshot_said,
                                           .snapshot_deleted = snapshot_deleted}};
    sidecar_kit_hooks(&options.hooks);
    scene->sidecars.control = scene->control;
    scene->vm = vm_create(scene->control, &options);
    assert_non_null(scene->vm);
    for (unsigned i = 0; i < DISKS; i++) {
        char name[4] = {'v', 'd', (char)('a' + i), 0};
        scene->io[i] = world_reactor(scene->world, name, process);
        struct file_options file = {.path = name, .lock_wait_ns = LOCK_WAIT_DEFAULT_NS};
        assert_int_equal(file_open(scene->io[i], &file, &scene->sidecars.leaves[i], &err), 0);
        assert_int_equal(vm_add_disk(scene->vm, name, scene->sidecars.leaves[i], 0, &err), 0);
    }
    assert_int_equal(vm_start(scene->vm, &err), 0);
    scene->answered = false;
    world_call(scene->control, recover, scene);
    await(scene);
    assert_int_equal(scene->err.code, 0);
}

static void kill_it(struct scene *scene)
{
    graveyard[graves++ % 64] = scene->vm;
    world_kill(scene->world, scene->process);
}

static void lose_power(struct scene *scene)
{
    graveyard[graves++ % 64] = scene->vm;
    world_power_loss(scene->world);
}

static void vm_is_gone(void *argument)
{
    struct scene *scene = argument;
    scene->gone = true;
}

static void end_vm(void *argument)
{
    struct scene *scene = argument;
    vm_destroy(scene->vm, vm_is_gone, scene);
}

static bool gone(void *argument)
{
    const struct scene *scene = argument;
    return scene->gone;
}

static void shut_down(struct scene *scene)
{
    scene->gone = false;
    world_call(scene->control, end_vm, scene);
    assert_true(world_run_until(scene->world, gone, scene, 30 * NS_PER_S));
    world_run_for(scene->world, NS_PER_MS);
}

struct command {
    struct scene *scene;
    const char *name;
    struct snapshot_options options;
};

static void run(struct scene *scene, void (*command)(void *argument), struct command *arguments)
{
    arguments->scene = scene;
    scene->answered = false;
    world_call(scene->control, command, arguments);
    await(scene);
}

static void checkpoint_done(void *argument, const struct checkpoint_id *id, const struct error *err)
{
    struct scene *scene = argument;
    if (id)
        scene->id = *id;
    done(scene, err);
}

static void checkpoint_create(void *argument)
{
    struct command *command = argument;
    vm_checkpoint_create(command->scene->vm, command->name, checkpoint_done, command->scene);
}

static void checkpoint_commit(void *argument)
{
    struct command *command = argument;
    vm_checkpoint_commit(command->scene->vm, command->name, done, command->scene);
}

static void checkpoint_delete(void *argument)
{
    struct command *command = argument;
    vm_checkpoint_delete(command->scene->vm, command->name, done, command->scene);
}

static void checkpoint_reset(void *argument)
{
    struct command *command = argument;
    vm_checkpoint_reset(command->scene->vm, command->name, done, command->scene);
}

static void snapshot_done(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct scene *scene = argument;
    scene->snapshot = snapshot;
    done(scene, err);
}

static void snapshot_create(void *argument)
{
    struct command *command = argument;
    vm_snapshot_create(command->scene->vm, &command->options, snapshot_done, command->scene);
}

static void snapshot_delete(void *argument)
{
    struct command *command = argument;
    vm_snapshot_delete(command->scene->vm, command->name, done, command->scene);
}

static void queried(void *argument, const struct vm_checkpoints *checkpoints)
{
    struct scene *scene = argument;
    assert_non_null(checkpoints);
    assert_true(checkpoints->count <= 8);
    scene->listed = checkpoints->count;
    memcpy(scene->tracking, checkpoints->disks, sizeof scene->tracking);
    for (unsigned i = 0; i < checkpoints->count; i++) {
        scene->list[i] = checkpoints->checkpoints[i];
        for (unsigned d = 0; d < DISKS; d++) {
            const char *reason = scene->list[i].disks[d].reason;
            snprintf(scene->reasons[i][d], LIMIT_ERROR_BYTES, "%s", reason ? reason : "");
        }
    }
    done(scene, NULL);
}

static void query(void *argument)
{
    struct command *command = argument;
    vm_checkpoints_query(command->scene->vm, queried, command->scene);
}

static int must(struct scene *scene, void (*command)(void *argument), const char *name)
{
    run(scene, command, &(struct command){.name = name});
    return scene->err.code;
}

static unsigned look(struct scene *scene)
{
    must(scene, query, NULL);
    return scene->listed;
}

/* A snapshot with a checkpoint, of a client that waits for it. */
static void take(struct scene *scene, const char *name, const char *checkpoint, const char *since, uint64_t grace_ns)
{
    struct command command = {
        .options = {
            .name = name, .checkpoint = checkpoint, .since = since, .lease = &scene->lease, .grace_ns = grace_ns}};
    run(scene, snapshot_create, &command);
    assert_int_equal(scene->err.code, 0);
}

/* ---- the guest ---- */

struct guest_write {
    struct request req;
    struct iovec iov;
    char bytes[BLOCK];
    struct disk *disk;
    bool done;
};

static void write_done(struct request *req, int status)
{
    assert_int_equal(status, 0);
    container_of(req, struct guest_write, req)->done = true;
}

static void write_submit(void *argument)
{
    struct guest_write *write = argument;
    node_submit(&write->disk->node, &write->req);
}

static bool write_is_done(void *argument)
{
    return ((struct guest_write *)argument)->done;
}

static void guest_writes(struct scene *scene, unsigned disk, uint64_t block)
{
    struct guest_write write = {.disk = vm_disk(scene->vm, disk)};
    memset(write.bytes, (int)block, BLOCK);
    write.iov = (struct iovec){write.bytes, BLOCK};
    write.req = (struct request){
        .kind = REQUEST_WRITE, .range = {block * BLOCK, BLOCK}, .iov = &write.iov, .iov_count = 1, .done = write_done};
    world_call(scene->io[disk], write_submit, &write);
    assert_true(world_run_until(scene->world, write_is_done, &write, 30 * NS_PER_S));
}

/* ---- tests ---- */

static int set_up(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    const struct world_options options = {.seed = 4, .power = true, .context = scene};
    scene->sidecars.world = scene->world = world_create(&options);
    for (unsigned i = 0; i < DISKS; i++) {
        char name[4] = {'v', 'd', (char)('a' + i), 0};
        world_file_create(scene->world, name, disk_bytes, 512, false);
    }
    boot(scene);
    *state = scene;
    return 0;
}

static int tear_down(void **state)
{
    struct scene *scene = *state;
    shut_down(scene);
    assert_int_equal(world_destroy(scene->world, NULL), 0);
    free(scene);
    return 0;
}

static void a_checkpoint_alone(void **state)
{
    struct scene *scene = *state;
    assert_int_equal(look(scene), 0);
    assert_int_equal(must(scene, checkpoint_create, "mon"), 0);
    assert_string_equal(scene->id.name, "mon");
    guest_writes(scene, 0, 7);
    guest_writes(scene, 0, 7);
    guest_writes(scene, 1, 4095);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->list[0].state, CHECKPOINT_COMMITTED);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, BLOCK);
    assert_int_equal(scene->list[0].disks[1].changed_bytes, BLOCK);
    assert_int_equal(must(scene, checkpoint_create, "mon"), EEXIST);
    assert_int_equal(must(scene, checkpoint_create, "m/n"), EINVAL);
    assert_int_equal(must(scene, checkpoint_create, "76e657bf-d14a-46e9-ae2a-1deb09d1e6be"), EINVAL);
    assert_int_equal(must(scene, checkpoint_create, "tue"), 0);
    guest_writes(scene, 0, 8);
    assert_int_equal(look(scene), 2);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, 2 * BLOCK);
    assert_int_equal(scene->list[1].disks[0].changed_bytes, BLOCK);
    assert_int_equal(must(scene, checkpoint_delete, "tue"), 0);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, 2 * BLOCK);
    assert_int_equal(must(scene, checkpoint_delete, "tue"), ENOENT);
    assert_int_equal(must(scene, checkpoint_delete, scene->list[0].id.uuid), 0);
    assert_int_equal(look(scene), 0);
}

static void an_incremental_snapshot(void **state)
{
    struct scene *scene = *state;
    struct snapshot_disk_info info;
    take(scene, "s1", "one", NULL, 0);
    snapshot_disk_info(scene->snapshot, 0, &info);
    assert_true(info.checkpoint && !info.incremental && !info.reason);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->list[0].state, CHECKPOINT_PENDING);
    assert_int_equal(must(scene, checkpoint_commit, scene->list[0].id.uuid), 0);
    assert_int_equal(must(scene, checkpoint_commit, scene->list[0].id.uuid), 0); /* again */
    assert_int_equal(must(scene, snapshot_delete, "s1"), 0);
    guest_writes(scene, 0, 1000);
    guest_writes(scene, 0, 3);
    take(scene, "s2", "two", "one", 0);
    snapshot_disk_info(scene->snapshot, 0, &info);
    assert_true(info.checkpoint && info.incremental);
    assert_int_equal(info.dirty_bytes, 2 * BLOCK);
    snapshot_disk_info(scene->snapshot, 1, &info);
    assert_true(info.incremental);
    assert_int_equal(info.dirty_bytes, 0);
    assert_int_equal(must(scene, snapshot_delete, "s2"), 0);
    assert_int_equal(must(scene, snapshot_create, NULL), 0); /* a plain one goes on working */
    struct command missing = {.options = {.since = "never"}};
    run(scene, snapshot_create, &missing);
    assert_int_equal(scene->err.code, ENOENT);
    assert_int_equal(scene->events[VM_CHECKPOINT_CREATED], 2);
    assert_int_equal(scene->events[VM_CHECKPOINT_COMMITTED], 1);
}

static void lease_ends(void *argument)
{
    struct scene *scene = argument;
    vm_lease_end(scene->vm, &scene->lease);
}

/* C21: pending until the client says that its data is safe, or has been away for its grace time; then its bits merge. */
static void a_client_that_stays_away(void **state)
{
    struct scene *scene = *state;
    assert_int_equal(must(scene, checkpoint_create, "base"), 0);
    guest_writes(scene, 0, 1);
    take(scene, "s", "lost", "base", 5 * NS_PER_S);
    char uuid[UUID_TEXT_BYTES];
    struct snapshot_info info;
    snapshot_info(scene->snapshot, &info);
    memcpy(uuid, info.uuid, sizeof uuid);
    guest_writes(scene, 0, 2);
    world_call(scene->control, lease_ends, scene);
    world_run_for(scene->world, 4 * NS_PER_S);
    assert_int_equal(look(scene), 2);
    assert_non_null(vm_snapshot_find(scene->vm, "s"));
    struct error err;
    world_act_as(scene->world, scene->control);
    assert_int_equal(vm_snapshot_lease(scene->vm, uuid, &scene->lease, &err), 0); /* it is back */
    assert_int_equal(vm_snapshot_lease(scene->vm, uuid, scene, &err), -EBUSY);
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, 10 * NS_PER_S);
    assert_non_null(vm_snapshot_find(scene->vm, "s"));
    world_call(scene->control, lease_ends, scene);
    world_run_for(scene->world, 6 * NS_PER_S);
    assert_null(vm_snapshot_find(scene->vm, "s"));
    assert_int_equal(look(scene), 1);
    assert_string_equal(scene->list[0].id.name, "base");
    assert_int_equal(scene->list[0].disks[0].changed_bytes, 2 * BLOCK);
    assert_int_equal(must(scene, checkpoint_commit, uuid), ENOENT);
}

/* kill -9: exact, and what was pending waits its time; after a power loss: a superset of at most the active extents. */
static void the_next_process(void **state)
{
    struct scene *scene = *state;
    assert_int_equal(must(scene, checkpoint_create, "base"), 0);
    guest_writes(scene, 0, 1);
    take(scene, "s", "half", "base", 0);
    guest_writes(scene, 0, 2);
    kill_it(scene);
    boot(scene);
    assert_int_equal(look(scene), 2);
    assert_int_equal(scene->tracking[0].recovery, TRACKER_ADOPTED);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, 2 * BLOCK);
    assert_int_equal(scene->list[1].disks[0].changed_bytes, BLOCK);
    assert_int_equal(scene->list[1].state, CHECKPOINT_PENDING);
    world_run_for(scene->world, LEASE_GRACE_DEFAULT_NS + NS_PER_S);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, 2 * BLOCK);
    lose_power(scene);
    boot(scene);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->tracking[0].recovery, TRACKER_REPLAYED);
    assert_true(scene->list[0].disks[0].changed_bytes >= 2 * BLOCK);
    assert_true(scene->list[0].disks[0].changed_bytes <= 4 * MIB);
    assert_int_equal(scene->list[0].disks[1].changed_bytes, 0);
}

/* Whether the first of two checkpoints is pending, without vdb, after a kill; and can be committed, or goes in time. */
static void half_of_it_waits(struct scene *scene, bool comes_back)
{
    kill_it(scene);
    boot(scene);
    assert_int_equal(look(scene), 2);
    assert_string_equal(scene->list[0].id.name, "half");
    assert_int_equal(scene->list[0].state, CHECKPOINT_PENDING);
    assert_true(scene->list[0].disks[0].present);
    assert_false(scene->list[0].disks[1].present);
    char uuid[UUID_TEXT_BYTES];
    memcpy(uuid, scene->list[0].id.uuid, sizeof uuid);
    if (!comes_back)
        world_run_for(scene->world, LEASE_GRACE_DEFAULT_NS + NS_PER_S);
    assert_int_equal(must(scene, checkpoint_commit, uuid), comes_back ? 0 : ENOENT);
    assert_true(comes_back || strstr(scene->err.text, "given up because its client stayed away too long"));
    assert_int_equal(look(scene), comes_back ? 2 : 1);
}

/* A pending checkpoint that a tracked disk lacks may be somebody's, whatever the reason: the disk could not be tracked then,
 * or was reset since, and has a later one. */
static void a_part_is_missing(void **state)
{
    struct scene *scene = *state;
    scene->sidecars.untracked = 2;
    take(scene, "s", "half", NULL, 0);
    scene->sidecars.untracked = 0;
    assert_int_equal(must(scene, checkpoint_reset, "vdb"), 0);
    assert_int_equal(must(scene, checkpoint_create, "later"), 0);
    half_of_it_waits(scene, true);
    assert_int_equal(must(scene, checkpoint_delete, "half"), 0);
    assert_int_equal(must(scene, checkpoint_delete, "later"), 0);
    take(scene, "t", "half", NULL, 0);
    assert_int_equal(must(scene, checkpoint_reset, "vdb"), 0);
    assert_int_equal(must(scene, checkpoint_create, "later"), 0);
    half_of_it_waits(scene, false);
}

/* Whoever listens hears of it each time: also after the checkpoints were made anew. */
static void it_becomes_invalid_again(void **state)
{
    struct scene *scene = *state;
    for (unsigned times = 1; times <= 3; times++) {
        if (times == 3)
            assert_int_equal(must(scene, checkpoint_reset, "vda"), 0);
        const unsigned told = scene->events[VM_CHECKPOINT_INVALID];
        char name[] = {'c', (char)('0' + times), 0};
        assert_int_equal(must(scene, checkpoint_create, name), 0);
        world_limit_shm(scene->world, 4096);
        guest_writes(scene, 0, 1);
        world_limit_shm(scene->world, 0);
        world_run_for(scene->world, NS_PER_S);
        assert_int_equal(scene->events[VM_CHECKPOINT_INVALID], told + 1);
        look(scene);
        for (unsigned i = 0; i < scene->listed; i++)
            assert_true(scene->list[i].disks[0].state == CHECKPOINT_INVALID);
    }
}

/* A disk that can't be tracked is backed up in full, alone, and says why; reset makes a disk trackable again. */
static void a_disk_alone(void **state)
{
    struct scene *scene = *state;
    struct snapshot_disk_info info;
    scene->sidecars.untracked = 2;
    take(scene, "s1", "one", NULL, 0);
    snapshot_disk_info(scene->snapshot, 1, &info);
    assert_false(info.checkpoint);
    assert_string_equal(info.checkpoint_reason, "disk vdb can't be tracked here");
    assert_int_equal(must(scene, snapshot_delete, "s1"), 0);
    take(scene, "s2", NULL, "one", 0);
    snapshot_disk_info(scene->snapshot, 0, &info);
    assert_true(info.incremental);
    snapshot_disk_info(scene->snapshot, 1, &info);
    assert_false(info.incremental);
    assert_string_equal(info.reason, "disk vdb can't be tracked here");
    assert_int_equal(must(scene, snapshot_delete, "s2"), 0);
    scene->sidecars.untracked = 0;
    assert_int_equal(must(scene, checkpoint_reset, "vdb"), 0);
    assert_int_equal(must(scene, checkpoint_reset, "vdc"), ENODEV);
    assert_int_equal(must(scene, checkpoint_create, "two"), 0);
    assert_int_equal(look(scene), 2);
    assert_true(scene->list[1].disks[1].present);
    assert_false(scene->list[0].disks[1].present);
    assert_int_equal(must(scene, checkpoint_reset, "vda"), 0);
    assert_int_equal(look(scene), 1); /* vda alone had the first */
    assert_string_equal(scene->list[0].id.name, "two");
    assert_false(scene->list[0].disks[0].present);
}

/* An orderly end keeps everything, exactly. */
static void an_orderly_end(void **state)
{
    struct scene *scene = *state;
    assert_int_equal(must(scene, checkpoint_create, "base"), 0);
    guest_writes(scene, 0, 1);
    guest_writes(scene, 1, 2);
    shut_down(scene);
    boot(scene);
    assert_int_equal(look(scene), 1);
    assert_int_equal(scene->tracking[0].recovery, TRACKER_CLEAN);
    assert_int_equal(scene->list[0].state, CHECKPOINT_COMMITTED);
    assert_int_equal(scene->list[0].disks[0].changed_bytes, BLOCK);
    assert_int_equal(scene->list[0].disks[1].changed_bytes, BLOCK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_checkpoint_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_incremental_snapshot, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_client_that_stays_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_next_process, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_part_is_missing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(it_becomes_invalid_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_disk_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_orderly_end, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("checkpoints of a VM", tests, NULL, NULL);
}
