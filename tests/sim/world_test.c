/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the simulation adds to the contract of io.h: seeds, power loss, killed processes, poison. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/limits.h"
#include "world.h"

struct call {
    struct io_op op;
    int64_t result;
    unsigned count;
    struct iovec iov;
    uint8_t *buffer;
};

static void call_done(struct io_op *op, int64_t result)
{
    struct call *call = container_of(op, struct call, op);
    call->result = result;
    call->count++;
}

static void call_write(struct io *io, struct call *call, int fd, uint64_t offset, uint8_t *from, size_t length,
                       unsigned flags)
{
    call->op.done = call_done;
    call->iov = (struct iovec){from, length};
    io_writev(io, &call->op, fd, &call->iov, 1, offset, flags);
}

static void run_dry(struct world *world)
{
    world_act_as(world, NULL);
    while (world_step(world))
        ;
}

/* Writes at random, with messages and timers between; returns the hash of it all. */
static uint64_t one_run(uint64_t seed)
{
    struct world *world = world_create(&(struct world_options){.seed = seed, .short_per_1024 = 100});
    struct io *io = world_reactor(world, "main", 0);
    world_file_create(world, "disk", 256 * KIB, 512, false);
    world_act_as(world, io);
    int fd = io_open(io, "disk", O_RDWR, 0);
    struct call *calls = calloc(200, sizeof(*calls));
    uint8_t bytes[4096] = {1};
    for (int i = 0; i < 200; i++)
        call_write(io, &calls[i], fd, world_below(world, 200 * KIB), bytes, sizeof(bytes), 0);
    run_dry(world);
    for (int i = 0; i < 200; i++)
        assert_int_equal(calls[i].count, 1);
    world_act_as(world, io);
    io_close(io, fd);
    world_act_as(world, NULL);
    uint64_t hash = world_hash(world);
    assert_int_equal(world_destroy(world, stderr), 0);
    free(calls);
    return hash;
}

static void test_same_seed_same_run(void **state)
{
    (void)state;
    assert_true(one_run(7) == one_run(7));
    assert_true(one_run(7) != one_run(8));
}

/* Synced data survives power loss, DSYNC data too; of the rest some survives, some does not, sector by sector. */
static void test_power_loss(void **state)
{
    (void)state;
    unsigned landed = 0, vanished = 0, torn = 0;
    for (uint64_t seed = 0; seed < 64; seed++) {
        struct world *world = world_create(&(struct world_options){.seed = seed, .power = true});
        struct io *io = world_reactor(world, "main", 0);
        struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
        world_act_as(world, io);
        int fd = io_open(io, "disk", O_RDWR, 0);
        struct call synced = {0}, direct = {0}, loose = {0}, sync = {0};
        uint8_t a[4096], b[4096], c[4096];
        memset(a, 'a', sizeof(a));
        memset(b, 'b', sizeof(b));
        memset(c, 'c', sizeof(c));
        call_write(io, &synced, fd, 0, a, sizeof(a), 0);
        run_dry(world);
        world_act_as(world, io);
        sync.op.done = call_done;
        io_datasync(io, &sync.op, fd);
        call_write(io, &direct, fd, 8192, b, sizeof(b), IO_WRITE_DSYNC);
        run_dry(world);
        world_act_as(world, io);
        call_write(io, &loose, fd, 16384, c, sizeof(c), 0);
        if ((seed & 1) == 0)
            run_dry(world); /* acknowledged, but in the cache; else still under way */
        world_act_as(world, NULL);
        world_power_loss(world);
        const uint8_t *bytes = world_file_bytes(file);
        assert_memory_equal(bytes, a, sizeof(a));
        assert_memory_equal(bytes + 8192, b, sizeof(b));
        unsigned count = 0;
        for (unsigned i = 0; i < 4096; i++)
            count += bytes[16384 + i] == 'c';
        assert_int_equal(count % 512, 0);
        landed += count == 4096;
        vanished += count == 0;
        torn += count > 0 && count < 4096;
        assert_int_equal(world_destroy(world, stderr), 0);
    }
    assert_true(landed > 5 && vanished > 5 && torn > 5);
}

/* C10: the writes of a killed process land later, and its lock is free only after that. */
static void test_killed_process(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 32; seed++) {
        struct world *world = world_create(&(struct world_options){.seed = seed});
        struct io *victim = world_reactor(world, "victim", 1), *heir = world_reactor(world, "heir", 2);
        struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
        world_act_as(world, victim);
        int fd = io_open(victim, "disk", O_RDWR, 0);
        assert_int_equal(io_lock(victim, fd, 100, 1, true), 0);
        struct call *call = calloc(1, sizeof(*call));
        uint8_t *bytes = malloc(4096);
        memset(bytes, 'v', 4096);
        call_write(victim, call, fd, 4096, bytes, 4096, 0);
        world_act_as(world, NULL);
        world_kill(world, 1);
        memset(bytes, 0, 4096); /* gone with its process */
        free(bytes);
        free(call);
        world_act_as(world, heir);
        int mine = io_open(heir, "disk", O_RDWR, 0);
        unsigned polls = 0;
        for (; io_lock(heir, mine, 100, 1, true) == -EAGAIN; polls++) {
            assert_int_equal(world_file_bytes(file)[4096], 0);
            io_sleep(heir, 20 * NS_PER_MS);
        }
        assert_true(polls <= 250);
        assert_int_equal(world_file_bytes(file)[4096], 'v');
        io_close(heir, mine);
        world_act_as(world, NULL);
        assert_int_equal(world_destroy(world, stderr), 0);
    }
}

static bool hold_all(void *context, const struct world_io *io)
{
    (void)context;
    (void)io;
    return true;
}

/* What a killed process reads into shared memory with a name lands there, late, and what it writes from there is what lies
 * there then; into a page that was punched, or has gone, it lands nowhere. */
static void test_killed_transfers_in_shared_memory(void **state)
{
    (void)state;
    struct world *world = world_create(&(struct world_options){.seed = 5});
    struct io *victim = world_reactor(world, "victim", 1), *heir = world_reactor(world, "heir", 2);
    struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
    uint8_t bytes[4096];
    memset(bytes, 3, sizeof bytes);
    world_file_fill(file, 0, bytes, sizeof bytes);
    const struct io_shm_name name = {"/dev/shm/sim", "piece"};
    struct io_shm shm;
    struct error err;
    world_act_as(world, victim);
    assert_int_equal(io_shm_create(victim, &shm, &name, 64 * KIB, &err), 0);
    assert_int_equal(io_shm_grow(victim, &shm, (struct range){0, 16 * KIB}), 0);
    int fd = io_open(victim, "disk", O_RDWR, 0);
    struct call calls[3] = {0};
    for (unsigned i = 0; i < 2; i++) {
        calls[i].op.done = call_done;
        calls[i].iov = (struct iovec){shm.base + i * 4096, 4096};
        io_readv(victim, &calls[i].op, fd, &calls[i].iov, 1, 0);
    }
    call_write(victim, &calls[2], fd, 8192, (uint8_t *)shm.base + 8192, 4096, 0);
    world_act_as(world, NULL);
    world_kill(world, 1);
    memset(calls, 0xee, sizeof calls);
    world_act_as(world, heir);
    assert_int_equal(io_shm_adopt(heir, &shm, &name, &err), 0);
    memset(shm.base, 9, 16 * KIB);
    io_shm_punch(heir, &shm, (struct range){4096, 4096});
    run_dry(world);
    assert_int_equal(shm.base[0], 3);
    assert_int_equal(shm.base[8192], 9);
    assert_int_equal(world_file_bytes(file)[8192], 9);
    world_act_as(world, heir);
    io_shm_destroy(heir, &shm);
    io_shm_remove(heir, &name);
    world_act_as(world, NULL);
    assert_int_equal(world_destroy(world, stderr), 0);
}

struct victim {
    struct io *io;
    int fd;
    unsigned moments;
    struct call calls[2];
    uint8_t bytes[4096];
};

static struct victim victim;

static void die_at_the_last_write(void *context)
{
    (void)context;
    if (victim.io && victim.moments++ == 1)
        world_die(world_of(victim.io));
}

static void write_twice(void *argument)
{
    struct victim *self = argument;
    for (unsigned i = 0; i < 2; i++)
        call_write(self->io, &self->calls[i], self->fd, i * 4096, self->bytes, 4096, 0);
}

/* kill -9 in the middle of a tick: what it has started goes nowhere, and the locks are free at once. */
static void test_death_in_a_tick(void **state)
{
    (void)state;
    struct world *world = world_create(&(struct world_options){.seed = 5, .moment = die_at_the_last_write});
    struct io *io = world_reactor(world, "victim", 1);
    struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
    memset(victim.bytes, 7, sizeof victim.bytes);
    world_act_as(world, io);
    victim.fd = io_open(io, "disk", O_RDWR, 0);
    assert_int_equal(io_lock(io, victim.fd, 0, 1, true), 0);
    world_act_as(world, NULL);
    victim.io = io;
    world_call(io, write_twice, &victim);
    assert_int_equal(victim.moments, 2);
    run_dry(world);
    assert_int_equal(world_file_bytes(file)[0], 0);
    assert_int_equal(victim.calls[0].count + victim.calls[1].count, 0);
    assert_int_equal(world_destroy(world, stderr), 0); /* nothing is left over: no descriptor, no event */
}

static void test_gate(void **state)
{
    (void)state;
    struct world *world = world_create(&(struct world_options){.seed = 1, .gate = hold_all});
    struct io *io = world_reactor(world, "main", 0);
    struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
    world_act_as(world, io);
    int fd = io_open(io, "disk", O_RDWR, 0);
    struct call call = {0};
    uint8_t bytes[512] = {9};
    call_write(io, &call, fd, 0, bytes, sizeof(bytes), 0);
    run_dry(world);
    assert_int_equal(call.count, 0);
    assert_int_equal(world_file_bytes(file)[0], 0);
    assert_true(world_land(world, 1));
    assert_int_equal(world_file_bytes(file)[0], 9);
    assert_true(world_let_go(world, 1));
    run_dry(world);
    assert_int_equal(call.count, 1);
    world_act_as(world, io);
    io_close(io, fd);
    world_act_as(world, NULL);
    assert_int_equal(world_destroy(world, stderr), 0);
}

/* Runs `crime` in a child: true when it was stopped by a signal. */
static bool dies(void (*crime)(struct world *world, struct io *io))
{
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        close(2);
        struct world *world = world_create(&(struct world_options){.seed = 1});
        struct io *io = world_reactor(world, "main", 0);
        world_reactor(world, "other", 0);
        world_act_as(world, io);
        crime(world, io);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
}

static void crime_touch_ungrown(struct world *world, struct io *io)
{
    (void)world;
    struct io_shm shm;
    struct error err;
    io_shm_create(io, &shm, NULL, 64 * KIB, &err);
    io_shm_grow(io, &shm, (struct range){0, 4096});
    ((volatile char *)shm.base)[4096] = 1;
}

static void crime_touch_punched(struct world *world, struct io *io)
{
    (void)world;
    struct io_shm shm;
    struct error err;
    io_shm_create(io, &shm, NULL, 64 * KIB, &err);
    io_shm_grow(io, &shm, (struct range){0, 4096});
    io_shm_punch(io, &shm, (struct range){0, 4096});
    ((volatile char *)shm.base)[0] = 1;
}

static void crime_foreign_thread(struct world *world, struct io *io)
{
    struct io *other = world_reactor(world, "third", 0);
    (void)io;
    struct io_timer timer = {0};
    io_timer_set(other, &timer, 1);
}

static void crime_close_under_way(struct world *world, struct io *io)
{
    world_file_create(world, "disk", 4096, 512, false);
    int fd = io_open(io, "disk", O_RDWR, 0);
    struct call call = {.op.done = call_done};
    io_datasync(io, &call.op, fd);
    io_close(io, fd);
}

static void crime_start_twice(struct world *world, struct io *io)
{
    world_file_create(world, "disk", 4096, 512, false);
    int fd = io_open(io, "disk", O_RDWR, 0);
    struct call call = {.op.done = call_done};
    io_datasync(io, &call.op, fd);
    io_datasync(io, &call.op, fd);
}

static void crime_none(struct world *world, struct io *io)
{
    (void)world;
    (void)io;
}

static void test_crimes(void **state)
{
    (void)state;
    assert_true(dies(crime_touch_ungrown));
    assert_true(dies(crime_touch_punched));
    assert_true(dies(crime_foreign_thread));
    assert_true(dies(crime_close_under_way));
    assert_true(dies(crime_start_twice));
    assert_false(dies(crime_none));
}

static void test_leaks_are_counted(void **state)
{
    (void)state;
    struct world *world = world_create(&(struct world_options){.seed = 1});
    struct io *io = world_reactor(world, "main", 0);
    world_file_create(world, "disk", 4096, 512, false);
    world_act_as(world, io);
    struct io_timer timer = {0};
    io_timer_set(io, &timer, 5 * NS_PER_S);
    io_open(io, "disk", O_RDWR, 0);
    world_act_as(world, NULL);
    FILE *report = fopen("/dev/null", "w");
    assert_int_equal(world_destroy(world, report), 2);
    fclose(report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed_same_run),
        cmocka_unit_test(test_power_loss),
        cmocka_unit_test(test_killed_process),
        cmocka_unit_test(test_killed_transfers_in_shared_memory),
        cmocka_unit_test(test_death_in_a_tick),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_crimes),
        cmocka_unit_test(test_leaks_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
