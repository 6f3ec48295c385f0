/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the front-ends of a VM say where it is: two disks that stop one after the other with a migration's log on, a guest
 * that comes back too soon, a VMM that dies in between, and a second daemon that awaits the VM while requests of the first
 * are in flight (C10, C14). And what any writer is bound by, C2, C4, C8 and C10 to C14, through rings. The exports and their
 * sessions are the real ones.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/limits.h"
#include "daemon/vhost_exports.h"
#include "driver/file.h"
#include "export/vhost_user/wire.h"
#include "stage.h"
#include "vm/vm_private.h"

/* What is noted for the next daemon. */
static struct {
    struct io_message message;
    unsigned away, back;
    bool noted;
    void (*done)(void *argument);
    void *argument;
} note;

static void disks_away(void *context, bool away, void (*done)(void *argument), void *argument)
{
    (void)context;
    assert_null(note.done); /* one at a time */
    if (away)
        note.away++;
    else
        note.back++;
    note.noted = away;
    note.done = done;
    note.argument = argument;
}

static void note_is_durable(void *argument)
{
    void (*done)(void *) = note.done;
    (void)argument;
    assert_non_null(done);
    note.done = NULL;
    done(note.argument);
}

static void note_begin(struct stage *stage)
{
    memset(&note, 0, sizeof note);
    stage->vm->options.hooks.disks_away = disks_away;
}

/* ---- front-ends ---- */

enum { MEMORY_BYTES = 0x10000, LOG_BYTES = 4096, RING = 8, VMM = 100, DISK_SECTORS = STAGE_DISK_BYTES / 512 };

struct front { /* of one disk: a split ring of one queue, at 0x0, 0x1000 and 0x2000; data from 0x3000 on */
    struct io *io;
    int fd, memory_fd, log_fd;
    char *memory;
    uint64_t features;
    uint16_t next; /* of what was made available */
    struct io_op send, receive;
    bool sent, receiving, answered, closed;
    struct {
        struct vhost_header header;
        uint8_t payload[64];
    } message, answer;
    struct io_packet out;
};

struct site { /* a daemon and the VMM of its VM */
    struct stage *stage;
    struct options options;
    struct vhost_exports exports;
    struct front fronts[STAGE_DISKS];
    char sockets[STAGE_DISKS][32];
    bool started, ended;
};

static void started(void *argument, const struct error *err)
{
    struct site *site = argument;
    assert_null(err);
    site->started = true;
}

static void ended(void *argument)
{
    ((struct site *)argument)->ended = true;
}

static void site_options(struct site *site, struct stage *stage, const char *where)
{
    *site = (struct site){.stage = stage, .options = {.disk_count = STAGE_DISKS, .vhost_user_count = STAGE_DISKS}};
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        snprintf(site->options.disks[i].name, sizeof site->options.disks[i].name, "vd%c", 'a' + i);
        snprintf(site->options.vhost_users[i].disk, sizeof site->options.vhost_users[i].disk, "vd%c", 'a' + i);
        snprintf(site->sockets[i], sizeof site->sockets[i], "/%s/vd%c", where, 'a' + i);
        site->options.vhost_users[i].socket = site->sockets[i];
    }
}

static void sent(struct io_op *op, int64_t result)
{
    struct front *front = container_of(op, struct front, send);
    front->sent = true;
    front->closed = front->closed || result <= 0;
}

static void received(struct io_op *op, int64_t result)
{
    struct front *front = container_of(op, struct front, receive);
    front->answered = true;
    front->receiving = false;
    front->closed = front->closed || result <= 0;
}

static void front_send(struct site *site, struct front *front, enum vhost_request_id id, const void *payload,
                       uint32_t size, int fd, bool has_answer)
{
    front->sent = front->answered = false;
    front->message.header = (struct vhost_header){id, VHOST_VERSION, size};
    if (size > 0)
        memcpy(front->message.payload, payload, size);
    front->out = (struct io_packet){
        .bytes = &front->message, .length = sizeof front->message.header + size, .fds = {fd}, .fd_count = fd >= 0};
    world_act_as(site->stage->world, front->io);
    io_send_packet(front->io, &front->send, front->fd, &front->out);
    front->receiving = has_answer;
    if (has_answer)
        io_recv(front->io, &front->receive, front->fd, &front->answer, sizeof front->answer);
    world_act_as(site->stage->world, NULL);
    STAGE_STEP_UNTIL(site->stage, front->sent);
}

static void tell(struct site *site, struct front *front, enum vhost_request_id id, const void *payload, uint32_t size,
                 int fd)
{
    front_send(site, front, id, payload, size, fd, false);
    assert_false(front->closed);
}

static void front_connect(struct site *site, unsigned disk)
{
    struct front *front = &site->fronts[disk];
    char address[40];
    snprintf(address, sizeof address, "unix:%s", site->sockets[disk]);
    world_act_as(site->stage->world, front->io);
    front->fd = world_connect(site->stage->world, address);
    world_act_as(site->stage->world, NULL);
    assert_true(front->fd >= 0);
    front->closed = false;
}

static void front_hang_up(struct site *site, struct front *front)
{
    world_act_as(site->stage->world, front->io);
    io_shutdown(front->io, front->fd);
    world_act_as(site->stage->world, NULL);
    STAGE_STEP_UNTIL(site->stage, !front->receiving);
    world_act_as(site->stage->world, front->io);
    io_close(front->io, front->fd);
    world_act_as(site->stage->world, NULL);
    front->fd = -1;
}

/* All up to a ring that only has to be started. */
static void front_set_up(struct site *site, unsigned disk, bool logging)
{
    struct front *front = &site->fronts[disk];
    uint64_t protocol = VHOST_BIT(VHOST_PROTOCOL_LOG_SHMFD);
    struct {
        struct vhost_memory head;
        struct vhost_region region;
    } memory = {{1, 0}, {0, MEMORY_BYTES, 0x7000000, 0}};
    struct vhost_log log = {LOG_BYTES, 0};
    struct vhost_vring_state size = {0, RING}, base = {0, front->next};
    struct vhost_vring_addr addr = {
        .descriptors = 0x7000000, .available = 0x7001000, .used = 0x7002000, .flags = logging ? VHOST_VRING_F_LOG : 0};
    addr.log = logging ? 0x2000 : 0;
    front->features = VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES) |
                      (logging ? VHOST_BIT(VHOST_F_LOG_ALL) : 0);
    tell(site, front, VHOST_SET_PROTOCOL_FEATURES, &protocol, sizeof protocol, -1);
    tell(site, front, VHOST_SET_FEATURES, &front->features, sizeof front->features, -1);
    tell(site, front, VHOST_SET_MEM_TABLE, &memory, sizeof memory, front->memory_fd);
    if (logging) {
        front_send(site, front, VHOST_SET_LOG_BASE, &log, sizeof log, front->log_fd, true);
        STAGE_STEP_UNTIL(site->stage, front->answered);
    }
    tell(site, front, VHOST_SET_VRING_NUM, &size, sizeof size, -1);
    tell(site, front, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    tell(site, front, VHOST_SET_VRING_ADDR, &addr, sizeof addr, -1);
}

static void front_start(struct site *site, unsigned disk)
{
    uint64_t kick = VHOST_VRING_NO_FD;
    struct vhost_vring_state on = {0, 1};
    tell(site, &site->fronts[disk], VHOST_SET_VRING_KICK, &kick, sizeof kick, -1);
    tell(site, &site->fronts[disk], VHOST_SET_VRING_ENABLE, &on, sizeof on, -1);
}

/* Asks; front->answered says when it has stopped. */
static void front_stop(struct site *site, unsigned disk)
{
    struct vhost_vring_state state = {0, 0};
    front_send(site, &site->fronts[disk], VHOST_GET_VRING_BASE, &state, sizeof state, -1, true);
}

/* The same ring once more. */
static void front_go_on(struct site *site, unsigned disk)
{
    struct front *front = &site->fronts[disk];
    struct vhost_vring_state base = {0, front->next};
    tell(site, front, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    front_start(site, disk);
}

/* Writes blocks by the ring: header, data, status. */
static void front_write_blocks(struct site *site, unsigned disk, uint64_t block, unsigned count, uint8_t value)
{
    struct front *front = &site->fronts[disk];
    const uint64_t header[2] = {1, block * (STAGE_BLOCK / 512)};
    const struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } chain[] = {{0x3000, 16, 1, 1}, {0x4000, count * STAGE_BLOCK, 1, 2}, {0x3100, 1, 2, 0}};
    memcpy(front->memory + 0x3000, header, sizeof header);
    memset(front->memory + 0x4000, value, count * STAGE_BLOCK);
    front->memory[0x3100] = 0x55;
    memcpy(front->memory, chain, sizeof chain);
    uint16_t *const available = (uint16_t *)(void *)(front->memory + 0x1000);
    available[2 + front->next % RING] = 0;
    available[1] = ++front->next;
}

static void front_write(struct site *site, unsigned disk, uint64_t block, uint8_t value)
{
    front_write_blocks(site, disk, block, 1, value);
}

static bool front_has_written(const struct front *front)
{
    return ((const uint16_t *)(const void *)(front->memory + 0x2000))[1] == front->next && front->memory[0x3100] == 0;
}

/* The guest begins anew, and waits for nothing that it had asked for. */
static void front_forget(struct front *front)
{
    ((uint16_t *)(void *)(front->memory + 0x2000))[1] = front->next;
}

static void site_fronts(struct site *site, unsigned process)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site->fronts[i];
        *front = (struct front){.send.done = sent, .receive.done = received, .fd = -1};
        front->io = world_reactor(site->stage->world, "vmm", process);
        front->memory_fd = memfd_create("guest", MFD_CLOEXEC);
        front->log_fd = memfd_create("log", MFD_CLOEXEC);
        assert_int_equal(ftruncate(front->memory_fd, MEMORY_BYTES) | ftruncate(front->log_fd, LOG_BYTES), 0);
        front->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, front->memory_fd, 0);
        assert_true(front->memory != MAP_FAILED);
        front_connect(site, i);
    }
}

/* A VM with two disks that run, with a log. */
static void site_begin(struct site *site, struct stage *stage)
{
    site_options(site, stage, "here");
    world_act_as(stage->world, stage->control);
    vhost_exports_start(&site->exports, stage->control, stage->vm, NULL, &site->options, NULL, started, site);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, site->started);
    site_fronts(site, VMM);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_set_up(site, i, true);
        front_start(site, i);
    }
    stage_settle(stage);
}

/* The daemon is killed; another one serves its disks to the same VMM. */
static void site_restart(struct site *site)
{
    struct stage *stage = site->stage;
    stage_kill(stage);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_hang_up(site, &site->fronts[i]);
    stage_restart(stage);
    site->exports = (struct vhost_exports){0};
    site->started = false;
    world_act_as(stage->world, stage->control);
    vhost_exports_start(&site->exports, stage->control, stage->vm, NULL, &site->options, NULL, started, site);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, site->started);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_forget(&site->fronts[i]);
        front_connect(site, i);
        front_set_up(site, i, true);
        front_start(site, i);
    }
    stage_settle(stage);
}

static void site_end(struct site *site)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site->fronts[i];
        if (front->fd >= 0)
            front_hang_up(site, front);
        close(front->memory_fd);
        close(front->log_fd);
        munmap(front->memory, MEMORY_BYTES);
    }
    world_act_as(site->stage->world, site->stage->control);
    vhost_exports_stop(&site->exports, ended, site);
    world_act_as(site->stage->world, NULL);
    STAGE_STEP_UNTIL(site->stage, site->ended);
    world_kill(site->stage->world, VMM);
}

/* One disk after the other: it is the last one with which the VM has left, and that one waits for it. */
static void the_last_disk_waits(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage_settle(stage);
    assert_false(snapshot->broken || site.exports.away);
    assert_true(stage_snapshot(stage, "t")->created); /* a VM of which one disk has stopped is here */
    stage->slow_from = stage->control;                /* vdb hears of it late */
    stage->slow_to = stage->io[1];
    front_stop(&site, 0);
    stage_settle(stage);
    assert_true(snapshot->broken && site.exports.away);
    assert_false(site.fronts[0].answered);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    stage->slow_from = stage->slow_to = NULL;
    assert_int_equal(stage_value(stage, snapshot, 1, 1), -EIO);
    struct stage_snapshot *refused = stage_create(stage, "u", 0);
    assert_true(refused->answered && !refused->created);
    front_go_on(&site, 1); /* it goes on here after all: one disk says so for all */
    stage_settle(stage);
    assert_false(site.exports.away);
    struct stage_snapshot *again = stage_snapshot(stage, "v");
    front_go_on(&site, 0);
    front_write(&site, 0, 7, 77);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage_value(stage, again, 0, 7), stage_first_value(0, 7));
    site_end(&site);
}

/* The guest is back before it is noted that it has left, and stops once more: what was taken in between ends before that is
 * answered. */
static void back_too_soon_and_gone_again(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    note_begin(stage);
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    (void)stage_snapshot(stage, "s");
    front_stop(&site, 0);
    stage_settle(stage);
    assert_true(site.exports.away && note.noted && !site.fronts[0].answered);
    front_go_on(&site, 1);
    stage_settle(stage);
    assert_false(site.exports.away);
    struct stage_snapshot *between = stage_snapshot(stage, "between");
    front_stop(&site, 1);
    stage_settle(stage);
    assert_false(site.fronts[1].answered || between->broken);
    world_call(stage->control, note_is_durable, NULL);
    stage_settle(stage);
    assert_int_equal(note.back, 1); /* what was true then */
    world_call(stage->control, note_is_durable, NULL);
    stage_settle(stage);
    assert_true(site.exports.away && between->broken && note.noted);
    assert_false(site.fronts[0].answered || site.fronts[1].answered);
    world_call(stage->control, note_is_durable, NULL);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered && site.fronts[1].answered);
    assert_int_equal(stage_value(stage, between, 0, 1), -EIO);
    site_end(&site);
}

/* The VMM dies while its last disk waits for the answer: the next connection is served, and what it starts is back. */
static void a_vmm_that_dies_while_it_asks(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage->slow_from = stage->control;
    stage->slow_to = stage->io[1];
    front_stop(&site, 0);
    stage_settle(stage);
    front_hang_up(&site, &site.fronts[0]);
    stage->slow_from = stage->slow_to = NULL;
    stage_settle(stage);
    front_connect(&site, 0);
    front_set_up(&site, 0, false);
    front_start(&site, 0);
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(snapshot->broken && !site.exports.away);
    front_write(&site, 0, 9, 99);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(world_file_bytes(stage->files[0])[9 * STAGE_BLOCK], 99);
    site_end(&site);
}

/* A guest whose rings stop without a log is not leaving, nor is one whose migration was given up. */
static void only_a_log_tells(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site.fronts[i];
        front->features &= ~VHOST_BIT(VHOST_F_LOG_ALL);
        tell(&site, front, VHOST_SET_FEATURES, &front->features, sizeof front->features, -1);
    }
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_stop(&site, i);
        STAGE_STEP_UNTIL(stage, site.fronts[i].answered);
    }
    stage_settle(stage);
    assert_false(snapshot->broken || site.exports.away);
    site_end(&site);
}

/* The daemon ends while disks have yet to hear of it. */
static void an_end_in_the_leaving(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    (void)stage_snapshot(stage, "s");
    front_stop(&site, 0);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    stage->slow_from = stage->control;
    stage->slow_to = stage->io[0];
    front_stop(&site, 1);
    stage_settle(stage);
    stage->slow_from = stage->slow_to = NULL;
    world_act_as(stage->world, stage->control);
    vhost_exports_stop(&site.exports, ended, &site);
    world_act_as(stage->world, NULL);
    stage_settle(stage);
    assert_false(site.ended); /* what is told to the disks needs them */
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(site.ended && site.exports.away);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_hang_up(&site, &site.fronts[i]);
        close(site.fronts[i].memory_fd);
        close(site.fronts[i].log_fd);
        munmap(site.fronts[i].memory, MEMORY_BYTES);
    }
    world_kill(stage->world, VMM);
}

/* ---- a daemon that awaits the VM ---- */

struct heir { /* the second daemon: its files are opened when its VMM wants a disk */
    struct site site;
    struct io *control, *io[STAGE_DISKS];
    struct node stand_ins[STAGE_DISKS];
    struct vm *vm;
    bool wanted;
};

static void heir_wanted(void *argument)
{
    container_of((struct site *)argument, struct heir, site)->wanted = true;
}

static void heir_await(struct heir *heir, struct stage *stage)
{
    const unsigned process = 50;
    site_options(&heir->site, stage, "there");
    heir->control = world_reactor(stage->world, "there", process);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        heir->io[i] = world_reactor(stage->world, heir->site.options.disks[i].name, process);
        heir->stand_ins[i] = (struct node){.io = heir->io[i], .size_bytes = STAGE_DISK_BYTES, .alignment_bytes = 512};
    }
    world_act_as(stage->world, heir->control);
    vhost_exports_start(&heir->site.exports, heir->control, NULL, heir->stand_ins, &heir->site.options, heir_wanted,
                        started, &heir->site);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, heir->site.started);
}

/* 0, or why the disk can't be had yet. */
static int heir_open(struct heir *heir, struct stage *stage, unsigned disk)
{
    struct error err;
    struct node *leaf;
    const struct file_options options = {.path = heir->site.options.disks[disk].name};
    world_act_as(stage->world, heir->io[disk]);
    int status = file_open(heir->io[disk], &options, &leaf, &err);
    world_act_as(stage->world, heir->control);
    if (status == 0)
        assert_int_equal(vm_add_disk(heir->vm, options.path, leaf, 0, &err), 0);
    world_act_as(stage->world, NULL);
    return status;
}

/* The guest's last write at the first daemon has not landed when that is killed, and the guest writes the same block at the
 * second one: that waits until nothing of the first is in flight, so the later write stays (C10, C14). */
static void two_daemons_are_never_two_writers(void **state)
{
    struct stage *stage = *state;
    static struct site site;
    static struct heir heir;
    struct error err;
    site_begin(&site, stage);
    heir_await(&heir, stage);
    site_fronts(&heir.site, VMM + 1);
    struct stage_request *lost = calloc(1, sizeof *lost); /* the killed daemon's for ever */
    stage_write(stage, lost, 1, 5, 1, 55);                /* somebody else's, NBD's: it holds nobody up that stops */
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_stop(&site, i);
        STAGE_STEP_UNTIL(stage, site.fronts[i].answered);
        front_hang_up(&site, &site.fronts[i]);
    }
    stage_settle(stage);
    stage_hold(stage, WORLD_WRITE, 1); /* what is in flight when it dies */
    struct stage_request *last = calloc(1, sizeof *last);
    stage_write(stage, last, 1, 6, 1, 66);
    world_run_for(stage->world, NS_PER_MS);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_set_up(&heir.site, i, false);
    front_start(&heir.site, 1);
    front_write(&heir.site, 1, 6, 67);
    STAGE_STEP_UNTIL(stage, heir.wanted);
    const struct vm_options options = {.name = "stage",
                                       .ram_bytes = stage->options.ram_bytes,
                                       .block_bytes = STAGE_BLOCK,
                                       .segment_bytes = stage->options.segment_bytes};
    world_act_as(stage->world, heir.control);
    heir.vm = vm_create(heir.control, &options);
    world_act_as(stage->world, NULL);
    assert_int_equal(heir_open(&heir, stage, 0), -EAGAIN); /* the first daemon lives */
    stage_kill(stage);
    uint64_t waited_ns = world_now(stage->world);
    int status[STAGE_DISKS] = {-EAGAIN, -EAGAIN};
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        while (status[i] != 0) {
            assert_int_not_equal(world_file_bytes(stage->files[1])[6 * STAGE_BLOCK], 67);
            world_run_for(stage->world, 10 * NS_PER_MS);
            status[i] = heir_open(&heir, stage, i);
        }
    }
    waited_ns = world_now(stage->world) - waited_ns;
    assert_true(waited_ns < 10 * NS_PER_S);
    world_act_as(stage->world, heir.control);
    assert_int_equal(vm_start(heir.vm, &err), 0);
    vhost_exports_open(&heir.site.exports, heir.vm);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, front_has_written(&heir.site.fronts[1]));
    world_run_for(stage->world, 10 * NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[1])[6 * STAGE_BLOCK], 67);
    assert_int_equal(world_file_bytes(stage->files[1])[5 * STAGE_BLOCK], 55);
    stage->control = heir.control; /* of whom there is one now */
    stage->vm = heir.vm;
    stage->caches_open = 0;
    site_end(&heir.site);
    world_kill(stage->world, VMM + 1);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        close(site.fronts[i].memory_fd);
        close(site.fronts[i].log_fd);
        munmap(site.fronts[i].memory, MEMORY_BYTES);
    }
}

/* ---- what the rings are bound by, as everything that writes is ---- */

/* Half a VM is never cut: a write in the ring of one disk waits until the other one's, which is in flight, has ended. */
static void c2_a_ring_waits_for_the_cut_of_all_disks(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    stage_hold(stage, WORLD_WRITE, 0);
    front_write(&site, 0, 1, 200);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    front_write(&site, 1, 2, 201);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_true(stage->disks[1]->holding);
    assert_int_equal(world_file_bytes(stage->files[1])[2 * STAGE_BLOCK], stage_first_value(1, 2));
    front_stop(&site, 1); /* what the cut holds is of the time before, too (C14) */
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_true(stage->disks[1]->holding && !site.fronts[1].answered);
    stage_let_go(stage);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage_settle(stage);
    assert_true(snapshot->created && front_has_written(&site.fronts[0]) && front_has_written(&site.fronts[1]));
    assert_int_equal(stage_value(stage, snapshot, 0, 1), 200);
    assert_int_equal(stage_value(stage, snapshot, 1, 2), stage_first_value(1, 2));
    assert_int_equal(world_file_bytes(stage->files[1])[2 * STAGE_BLOCK], 201);
    site_end(&site);
}

struct watcher {
    struct write_observer observer; /* first; of the bits of a disk */
    unsigned told;
};

static void written(struct write_observer *observer, struct range range)
{
    assert_true(range.start == 7 * STAGE_BLOCK && range.length == STAGE_BLOCK);
    ((struct watcher *)observer)->told++;
}

/* A write in a ring waits for a copy, and a cut passes it: neither a bit nor the count of what is in flight has it before
 * the very step that hands it to the leaf, and it is of the time after the cut. In flight it is until the kernel's answer,
 * though it has landed. */
static void c4_a_rings_write_counts_when_it_is_submitted(void **state)
{
    struct stage *stage = *state;
    struct disk *disk = stage->disks[0];
    struct watcher watcher = {.observer.written = written};
    struct site site;
    site_begin(&site, stage);
    list_append(&disk->observers, &watcher.observer.link);
    struct stage_snapshot *before = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    front_write(&site, 0, 7, 70);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    struct stage_snapshot *passed = stage_snapshot(stage, "t");
    assert_true(watcher.told == 0 && disk->writes_in_flight == 0);
    stage_hold(stage, WORLD_WRITE, 0);
    assert_true(world_let_go(stage->world, stage->held[0]));
    while (stage->held_count < 2) {
        assert_true(watcher.told == 0 && disk->writes_in_flight == 0);
        assert_true(world_step(stage->world));
    }
    assert_true(watcher.told == 1 && disk->writes_in_flight == 1);
    assert_true(world_land(stage->world, stage->held[1]));
    struct stage_snapshot *after = stage_create(stage, "u", 0);
    stage_settle(stage);
    assert_true(disk->holding && !after->answered && !front_has_written(&site.fronts[0]));
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(after->created && watcher.told == 1 && disk->writes_in_flight == 0);
    assert_true(front_has_written(&site.fronts[0]));
    assert_int_equal(stage_value(stage, before, 0, 7), stage_first_value(0, 7));
    assert_int_equal(stage_value(stage, passed, 0, 7), stage_first_value(0, 7));
    assert_int_equal(stage_value(stage, after, 0, 7), 70);
    list_remove(&watcher.observer.link);
    site_end(&site);
}

/* A write in a ring waits for room, and parks again after each release: its time is counted from its first park. */
static void c8_a_rings_write_waits_from_its_first_park(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 128, 200); /* all the room that there is */
    assert_int_equal(stage_release(stage, snapshot, 0, 0, 1), 0);
    const uint64_t began_ns = world_now(stage->world);
    front_write_blocks(&site, 0, 200, 4, 201);
    for (uint64_t block = 1; block < 3; block++) {
        world_run_for(stage->world, 8 * NS_PER_MS);
        assert_false(front_has_written(&site.fronts[0]) || snapshot->broken);
        assert_int_equal(stage_release(stage, snapshot, 0, block, 1), 0);
    }
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    const uint64_t waited_ns = world_now(stage->world) - began_ns;
    assert_true(waited_ns >= 20 * NS_PER_MS && waited_ns < 30 * NS_PER_MS);
    stage_settle(stage);
    assert_true(snapshot->broken && strstr(snapshot->reason, "waited"));
    assert_int_equal(world_file_bytes(stage->files[0])[203 * STAGE_BLOCK], 201);
    site_end(&site);
}

/* A daemon is killed with a write in flight: it has landed before the next one serves a ring, and not on top of what the
 * guest writes then. The snapshot is the next daemon's (C11), with what was preserved, and without what was released
 * (C12). */
static void c10_c11_c12_rings_of_the_next_daemon(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_write(&site, 0, 3, 50);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage_release(stage, snapshot, 0, 4, 1), 0);
    front_write(&site, 0, 4, 51); /* nothing preserves it */
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    front_write(&site, 0, 5, 52);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    stage_hold(stage, WORLD_WRITE, 0);
    front_write(&site, 0, 5, 53); /* in flight for ever, as far as this daemon knows */
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    site_restart(&site);
    front_write(&site, 0, 5, 54);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    world_run_for(stage->world, 10 * NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[0])[5 * STAGE_BLOCK], 54);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), stage_first_value(0, 3));
    assert_int_equal(stage_value(stage, snapshot, 0, 4), -ENODATA);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), stage_first_value(0, 5));
    front_write(&site, 1, 6,
                55); /* the other disk's blocks are preserved by the next daemon as they were by the first */
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[1]));
    assert_int_equal(stage_value(stage, snapshot, 1, 6), stage_first_value(1, 6));
    site_end(&site);
}

/* Without room for old data the snapshot goes; the guest has every write done. */
static void c13_a_full_tmpfs_costs_a_ring_nothing(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    for (uint64_t block = 0; block < 130; block++) {
        front_write(&site, 0, block, 200);
        STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    }
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), -EIO);
    site_end(&site);
}

/* A VMM is gone while its write waits for the old data of a snapshot. The next one's first message is answered when that has
 * settled, so its writes come after it. */
static void c14_a_parked_write_is_settled_before_the_next_vmm(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    front_write(&site, 0, 7, 70);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    front_hang_up(&site, &site.fronts[0]);
    front_connect(&site, 0);
    front_send(&site, &site.fronts[0], VHOST_GET_FEATURES, NULL, 0, -1, true);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_false(site.fronts[0].answered);
    stage_let_go(stage);
    stage_hold_no_more(stage);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    const uint8_t settled = world_file_bytes(stage->files[0])[7 * STAGE_BLOCK];
    front_forget(&site.fronts[0]);
    front_set_up(&site, 0, false);
    front_start(&site, 0);
    front_write(&site, 0, 8, 71);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    world_run_for(stage->world, NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[0])[7 * STAGE_BLOCK], settled);
    assert_int_equal(stage_value(stage, snapshot, 0, 7), stage_first_value(0, 7));
    site_end(&site);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(the_last_disk_waits, .disk_count = 2),
        STAGE_TEST(back_too_soon_and_gone_again, .disk_count = 2),
        STAGE_TEST(a_vmm_that_dies_while_it_asks, .disk_count = 2),
        STAGE_TEST(only_a_log_tells, .disk_count = 2),
        STAGE_TEST(an_end_in_the_leaving, .disk_count = 2),
        STAGE_TEST(c2_a_ring_waits_for_the_cut_of_all_disks, .disk_count = 2),
        STAGE_TEST(c4_a_rings_write_counts_when_it_is_submitted, .disk_count = 2),
        STAGE_TEST(c8_a_rings_write_waits_from_its_first_park, .disk_count = 2, .segments = 2,
                   .cbw_timeout_ns = 20 * NS_PER_MS),
        STAGE_TEST(c10_c11_c12_rings_of_the_next_daemon, .disk_count = 2, .restartable = true),
        STAGE_TEST(c13_a_full_tmpfs_costs_a_ring_nothing, .disk_count = 2, .tmpfs_bytes = 64 * STAGE_BLOCK),
        STAGE_TEST(c14_a_parked_write_is_settled_before_the_next_vmm, .disk_count = 2),
        STAGE_TEST(two_daemons_are_never_two_writers, .disk_count = 2, .restartable = true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
