/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The in-flight region against death (C10, C14). A device runs in a process of its own, one machine instruction at a time;
 * after each that has changed the shared memory the device is dead in a copy of it, and the copy is recovered. Whatever
 * the moment: what the driver had made available and does not see used is submitted again, each chain once, in the order in
 * which it was made available; what it sees used is not. Some recoveries die in the same way.
 *
 * And what a region may not say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "export/vhost_user/virtqueue.h"
#include "ring_driver.h"

enum {
    SIZE_MAX_HERE = 8, /* of a ring */
    SHARED = 4096,     /* of the guest's memory: rings and the in-flight region; behind them is data */
    REGION = 2048,     /* where the latter is */
    COOKIES = 512,
    TABLES = SHARED, /* one for each cookie */
    DATA = TABLES + COOKIES * 64,
    MEMORY = DATA + 4096,
    NESTED = 41, /* every so many states recovery itself dies everywhere */
};
#if defined(__SANITIZE_ADDRESS__) || defined(__clang__) /* many times the instructions */
enum { ROUNDS = 3, RINGS = 2 };
#else
enum { ROUNDS = 8, RINGS = 6 };
#endif
#define USER UINT64_C(0x7f1200000000)
static const struct driver_place place = {0, 256, 512};

struct machine { /* memory of a guest */
    int fd;
    char *flat;
    struct guest_memory *memory;
};

struct model {
    uint32_t added;
    bool out[COOKIES]; /* made available, not got back */
};

static struct {
    struct virtqueue_features features;
    uint16_t size;
    struct machine alive, recovered, again; /* the device's; a copy; a copy of a copy */
    struct driver driver;
    struct model model;
    uint32_t random;
    unsigned states, recoveries;
} scene;

static uint32_t any(uint32_t below)
{
    scene.random = scene.random * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)scene.random * below >> 32);
}

static void machine_init(struct machine *machine)
{
    struct error err = {0};
    machine->fd = memfd_create("guest", MFD_CLOEXEC);
    assert_int_equal(ftruncate(machine->fd, MEMORY), 0);
    machine->flat = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, machine->fd, 0);
    machine->memory = guest_memory_with(NULL, &(struct guest_region){0, USER, MEMORY, 0}, machine->fd, &err);
    assert_non_null(machine->memory);
}

static void machine_fini(struct machine *machine)
{
    guest_memory_unref(machine->memory);
    munmap(machine->flat, MEMORY);
    close(machine->fd);
}

/* As a front-end does after a crash: of a split queue it knows the used index, of a packed one nothing. */
static struct virtqueue *start(const struct machine *machine, struct guest_memory *memory, struct error *err)
{
    const struct virtqueue_place user = {USER + place.descriptors, USER + place.available, USER + place.used};
    uint16_t used;
    memcpy(&used, machine->flat + place.used + 2, sizeof used);
    return virtqueue_create(&scene.features, memory, &user, scene.size, scene.features.packed ? 0x80008000 : used, err);
}

/* Chains of one to three descriptors, or a table of them. The length of the first is the cookie and one. */
static void refill(struct driver *driver, struct model *model)
{
    for (unsigned i = any(4); i < 4 && model->added < COOKIES; i++) {
        const struct part parts[] = {{DATA, model->added + 1, false}, {DATA + 1024, 512, true}, {DATA + 2048, 1, true}};
        const uint64_t table = scene.features.indirect && any(3) == 0 ? TABLES + model->added * 64 : 0;
        uint16_t count = (uint16_t)(1 + any(3));
        if (count > scene.size && !table)
            count = scene.size;
        if (!driver_add(driver, parts, count, table, model->added))
            break;
        model->out[model->added++] = true;
    }
    driver_show(driver);
}

/* The driver takes back what it sees used. */
static void collect(struct driver *driver, struct model *model)
{
    uint32_t cookie, written;
    while (driver_get(driver, &cookie, &written)) {
        assert_true(cookie < COOKIES);
        assert_true(model->out[cookie]);
        assert_int_equal(written, 3 * cookie + 1);
        model->out[cookie] = false;
    }
}

static uint32_t cookie_of(const struct virtqueue_chain *chain)
{
    return (uint32_t)chain->iov[0].iov_len - 1;
}

/* A new daemon finds that memory: it gets what is out, in order, and returns it. */
static void recover(const struct machine *machine, struct driver *driver, struct model *model)
{
    static struct virtqueue_chain chains[SIZE_MAX_HERE];
    struct error err = {0};
    unsigned count = 0;
    uint32_t cookie = 0;
    struct virtqueue *queue = start(machine, machine->memory, &err);
    assert_non_null(queue);
    if (virtqueue_set_inflight(queue, machine->flat + REGION, SHARED - REGION, &err) < 0)
        fail_msg("%s", err.text);
    while (virtqueue_resubmit(queue, &chains[count]) == 1)
        count++;
    while (virtqueue_take(queue, &chains[count]) == 1)
        count++;
    assert_null(virtqueue_broken(queue));
    for (unsigned i = 0; i < count; i++, cookie++) {
        while (cookie < model->added && !model->out[cookie])
            cookie++;
        assert_true(cookie < model->added);
        assert_int_equal(cookie_of(&chains[i]), cookie);
    }
    while (cookie < model->added)
        assert_false(model->out[cookie++]);
    for (unsigned i = count; i > 0; i--) {
        virtqueue_return(queue, &chains[i - 1], 3 * cookie_of(&chains[i - 1]) + 1);
        if (i % 3 == 1)
            assert_true(virtqueue_publish(queue) || i < count - 2);
    }
    collect(driver, model);
    for (cookie = 0; cookie < model->added; cookie++)
        assert_false(model->out[cookie]);
    virtqueue_destroy(queue);
    scene.recoveries++;
}

/* The device has died when what is shared was so; the driver has not. Some drivers go on while it is away. */
static void recover_copy(const struct machine *copy, const struct machine *of, const struct driver *driver,
                         const struct model *model, const char *shared, bool refilled)
{
    static struct driver driver_now;
    struct model model_now = *model;
    memcpy(copy->flat, of->flat, MEMORY);
    memcpy(copy->flat, shared, SHARED);
    driver_now = *driver;
    driver_now.memory = copy->flat;
    collect(&driver_now, &model_now);
    if (refilled)
        refill(&driver_now, &model_now);
    recover(copy, &driver_now, &model_now);
}

/* A device that dies: `live` runs in a process of its own, `turn` is called when it raises SIGUSR1, and from the first time
 * on `died` after every instruction that has changed what is shared. */
static void step_through(const struct machine *machine, void (*live)(const struct machine *machine), void (*turn)(void),
                         void (*died)(const char *shared))
{
    char before[SHARED];
    int status, request = PTRACE_CONT;
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(77);
        raise(SIGSTOP);
        live(machine);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSTOPPED(status));
    assert_int_equal(ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_EXITKILL), 0);
    memcpy(before, machine->flat, SHARED);
    for (;;) {
        assert_int_equal(ptrace(request, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status))
            break;
        assert_true(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGUSR1) {
            request = PTRACE_SINGLESTEP;
            turn();
            memcpy(before, machine->flat, SHARED);
        }
        if (memcmp(before, machine->flat, SHARED) != 0) {
            memcpy(before, machine->flat, SHARED);
            died(before);
        }
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* In the copy a driver goes on, too. */
static struct driver copied_driver;
static struct model copied_model;

static void drive_copy(void)
{
    collect(&copied_driver, &copied_model);
    refill(&copied_driver, &copied_model);
}

static void died_again(const char *shared)
{
    recover_copy(&scene.again, &scene.recovered, &copied_driver, &copied_model, shared, any(2));
}

/* Goes on with what was left and what is new, and returns the newest. */
static void live_recovery(const struct machine *machine)
{
    static struct virtqueue_chain held[SIZE_MAX_HERE + 1];
    struct error err;
    unsigned count = 0;
    struct guest_memory *memory = guest_memory_with(NULL, &(struct guest_region){0, USER, MEMORY, 0}, machine->fd,
                                                    &err);
    struct virtqueue *queue = memory ? start(machine, memory, &err) : NULL;
    if (!queue)
        _exit(1);
    raise(SIGUSR1);
    if (virtqueue_set_inflight(queue, machine->flat + REGION, SHARED - REGION, &err) < 0)
        _exit(2);
    while (virtqueue_resubmit(queue, &held[count]) == 1)
        count++;
    while (virtqueue_take(queue, &held[count]) == 1)
        count++;
    for (unsigned i = 0; i < 2 && count > 0; i++) {
        count--;
        virtqueue_return(queue, &held[count], 3 * cookie_of(&held[count]) + 1);
    }
    virtqueue_publish(queue);
    raise(SIGUSR1);
    while (virtqueue_take(queue, &held[count]) == 1)
        count++;
    _exit(virtqueue_broken(queue) ? 3 : 0);
}

static void died(const char *shared)
{
    recover_copy(&scene.recovered, &scene.alive, &scene.driver, &scene.model, shared, false);
    recover_copy(&scene.recovered, &scene.alive, &scene.driver, &scene.model, shared, true);
    if (++scene.states % NESTED == 0) {
        memcpy(scene.recovered.flat, scene.alive.flat, MEMORY);
        memcpy(scene.recovered.flat, shared, SHARED);
        copied_driver = scene.driver;
        copied_driver.memory = scene.recovered.flat;
        copied_model = scene.model;
        step_through(&scene.recovered, live_recovery, drive_copy, died_again);
    }
}

static void drive(void)
{
    collect(&scene.driver, &scene.model);
    refill(&scene.driver, &scene.model);
}

/* Takes and returns at random, in any order. */
static void live_rounds(const struct machine *machine)
{
    static struct virtqueue_chain held[SIZE_MAX_HERE];
    struct error err;
    unsigned count = 0;
    struct guest_memory *memory = guest_memory_with(NULL, &(struct guest_region){0, USER, MEMORY, 0}, machine->fd,
                                                    &err);
    struct virtqueue *queue = memory ? start(machine, memory, &err) : NULL;
    if (!queue)
        _exit(1);
    for (unsigned round = 0; round < ROUNDS; round++) {
        raise(SIGUSR1);
        if (round == 0 && virtqueue_set_inflight(queue, machine->flat + REGION, SHARED - REGION, &err) < 0)
            _exit(2);
        for (unsigned part = 0; part < 2; part++) {
            for (unsigned i = any(4); i < 4 && count < SIZE_MAX_HERE && virtqueue_take(queue, &held[count]) == 1; i++)
                count++;
            for (unsigned i = any(4); i < 4 && count > 0; i++) {
                const unsigned which = any(count);
                virtqueue_return(queue, &held[which], 3 * cookie_of(&held[which]) + 1);
                held[which] = held[--count];
            }
            if (any(2))
                virtqueue_publish(queue);
        }
    }
    _exit(virtqueue_broken(queue) ? 3 : 0);
}

static void dies(struct virtqueue_features features, uint16_t size, uint32_t seed)
{
    scene.features = features;
    scene.size = size;
    scene.random = seed;
    memset(&scene.model, 0, sizeof scene.model);
    memset(scene.alive.flat, 0, MEMORY);
    driver_init(&scene.driver, scene.alive.flat, &place, size, features.packed, features.event_idx);
    step_through(&scene.alive, live_rounds, drive, died);
}

static void death_at_any_moment(void **state)
{
    (void)state;
    static const uint16_t sizes[] = {4, 1, 8, 2, 5, 3};
    machine_init(&scene.alive);
    machine_init(&scene.recovered);
    machine_init(&scene.again);
    for (unsigned i = 0; i < RINGS; i++) {
        if (i < 4)
            dies((struct virtqueue_features){false, false, true}, sizes[i], i + 1);
        dies((struct virtqueue_features){true, false, true}, sizes[i], i + 1);
    }
    printf("%u deaths, %u recoveries\n", scene.states, scene.recoveries);
    machine_fini(&scene.alive);
    machine_fini(&scene.recovered);
    machine_fini(&scene.again);
}

/* A queue that has taken three of four chains and returned the second, over a region of its own. */
static struct virtqueue *some_out(struct machine *machine, bool packed, uint64_t *region,
                                  struct virtqueue_chain *chains)
{
    struct error err = {0};
    scene.features = (struct virtqueue_features){.packed = packed};
    scene.size = 8;
    memset(machine->flat, 0, MEMORY);
    driver_init(&scene.driver, machine->flat, &place, 8, packed, false);
    for (uint32_t i = 0; i < 4; i++) {
        const struct part parts[] = {{DATA, i + 1, false}, {DATA, 1, true}};
        assert_true(driver_add(&scene.driver, parts, 2, 0, i));
    }
    driver_show(&scene.driver);
    struct virtqueue *queue = start(machine, machine->memory, &err);
    assert_int_equal(virtqueue_set_inflight(queue, region, REGION, &err), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(virtqueue_take(queue, &chains[i]), 1);
    virtqueue_return(queue, &chains[1], 4);
    assert_true(virtqueue_publish(queue));
    return queue;
}

/* ... and the device dies, with two of them. */
static void die(struct virtqueue *queue, struct virtqueue_chain *chains)
{
    virtqueue_drop(&chains[0]);
    virtqueue_drop(&chains[2]);
    virtqueue_destroy(queue);
}

struct damage { /* a number of `bytes` bytes somewhere in the region */
    const char *said;
    bool packed;
    unsigned at, bytes;
    uint64_t value;
};

static const struct damage damages[] = {
    {"of version 2, not 1", false, 8, 2, 2},
    {"for 7 descriptors and features 0x0, not for 8 and none", false, 10, 2, 7},
    {"features 0x1,", false, 0, 8, 1},
    {"the last batch would be 65535", false, 14, 2, 2},
    {"the last batch has entry 8", false, 12, 4, 8},
    {"of version 65535", true, 8, 2, 65535},
    {"for 16 descriptors", true, 10, 2, 16},
    {"used index is 8", true, 16, 2, 8},
    {"used index is 9", true, 18, 2, 9},
    {"used index is", true, 20, 1, 2},
    {"free list goes on at entry 9", true, 14, 2, 9},
    {"free list goes on at entry 3", true, 32 + 32 * 3 + 2, 2, 3}, /* a loop */
    {"number of descriptors of a chain is 0", true, 32 + 6, 2, 0},
    {"number of descriptors of a chain is 9", true, 32 + 6, 2, 9},
    {"a chain goes on at entry 8", true, 32 + 2, 2, 8},
    {"a chain goes on at entry 2", true, 32 + 2, 2, 2}, /* that is free */
    {"neither free nor in flight: 2", true, 32, 1, 0},
};

static void damaged_regions_are_refused(void **state)
{
    (void)state;
    static struct virtqueue_chain chains[4];
    static uint64_t region[REGION / 8];
    struct error err = {0};
    machine_init(&scene.alive);
    for (unsigned i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        memset(region, 0, sizeof region);
        struct virtqueue *queue = some_out(&scene.alive, damages[i].packed, region, chains);
        die(queue, chains);
        memcpy((char *)region + damages[i].at, &damages[i].value, damages[i].bytes);
        queue = start(&scene.alive, scene.alive.memory, &err);
        assert_int_equal(virtqueue_set_inflight(queue, region, REGION, &err), -EINVAL);
        if (!strstr(err.text, damages[i].said))
            fail_msg("damage %u: \"%s\" does not say \"%s\"", i, err.text, damages[i].said);
        virtqueue_destroy(queue);
    }
    for (unsigned packed = 0; packed < 2; packed++) {
        scene.features.packed = packed;
        const size_t bytes = virtqueue_inflight_bytes(&scene.features, 8);
        assert_int_equal(bytes, packed ? 320 : 192);
        struct virtqueue *queue = start(&scene.alive, scene.alive.memory, &err);
        assert_int_equal(virtqueue_set_inflight(queue, region, bytes - 1, &err), -EINVAL);
        assert_int_equal(virtqueue_set_inflight(queue, (char *)region + 4, bytes, &err), -EINVAL);
        virtqueue_destroy(queue);
    }
    machine_fini(&scene.alive);
}

/* What is left of a predecessor is as hostile as all else: its descriptors have changed, or it is made available again. */
static void what_is_left_is_checked(void **state)
{
    (void)state;
    static struct virtqueue_chain chains[4];
    static uint64_t region[REGION / 8];
    struct error err = {0};
    machine_init(&scene.alive);
    for (unsigned i = 0; i < 4; i++) {
        const bool packed = i % 2, again = i / 2;
        memset(region, 0, sizeof region);
        struct virtqueue *queue = some_out(&scene.alive, packed, region, chains);
        die(queue, chains);
        if (!again && packed)
            region[(32 + 24) / 8] = MEMORY;
        else if (!again)
            driver_descriptor(&scene.driver, 0)->address = MEMORY;
        else if (packed) /* all eight slots, of which four are out and two are the driver's */
            for (unsigned slot = 0; slot < 6; slot++)
                driver_descriptor(&scene.driver, slot)->b = DESC_USED;
        else
            memset(scene.alive.flat + place.available + 4, 0, 16); /* descriptor 0 everywhere */
        queue = start(&scene.alive, scene.alive.memory, &err);
        assert_int_equal(virtqueue_set_inflight(queue, region, REGION, &err), 0);
        assert_int_equal(virtqueue_resubmit(queue, &chains[0]), again ? 1 : -EPROTO);
        if (again) {
            assert_int_equal(virtqueue_resubmit(queue, &chains[2]), 1);
            assert_int_equal(virtqueue_resubmit(queue, &chains[1]), 0);
            assert_int_equal(cookie_of(&chains[0]), 0);
            assert_int_equal(cookie_of(&chains[2]), 2);
            unsigned more = 0;
            static struct virtqueue_chain next[SIZE_MAX_HERE];
            int status;
            while ((status = virtqueue_take(queue, &next[more])) == 1)
                more++;
            assert_int_equal(status, -EPROTO);
            assert_non_null(strstr(virtqueue_broken(queue), "available again"));
            while (more > 0)
                virtqueue_drop(&next[--more]);
            virtqueue_drop(&chains[0]);
            virtqueue_drop(&chains[2]);
        }
        virtqueue_destroy(queue);
    }
    machine_fini(&scene.alive);
}

/* A death before a packed chain came off the free list leaves a mark, which must not come to life later. */
static void marks_of_free_entries_go(void **state)
{
    (void)state;
    static struct virtqueue_chain chains[4];
    static uint64_t region[REGION / 8];
    struct error err = {0};
    machine_init(&scene.alive);
    memset(region, 0, sizeof region);
    struct virtqueue *queue = some_out(&scene.alive, true, region, chains);
    die(queue, chains);
    uint8_t *mark = (uint8_t *)region + 32 + 32 * 2; /* the chain that was returned had this entry */
    assert_int_equal(*mark, 0);
    *mark = 1;
    queue = start(&scene.alive, scene.alive.memory, &err);
    assert_int_equal(virtqueue_set_inflight(queue, region, REGION, &err), 0);
    assert_int_equal(*mark, 0);
    virtqueue_destroy(queue);
    machine_fini(&scene.alive);
}

/* A queue that was stopped in good order begins elsewhere. */
static void a_forgotten_region_is_as_new(void **state)
{
    (void)state;
    static struct virtqueue_chain chains[4];
    static uint64_t region[REGION / 8];
    struct error err = {0};
    machine_init(&scene.alive);
    for (unsigned packed = 0; packed < 2; packed++) {
        memset(region, 0, sizeof region);
        struct virtqueue *queue = some_out(&scene.alive, packed, region, chains);
        virtqueue_return(queue, &chains[0], 1);
        virtqueue_return(queue, &chains[2], 7);
        (void)virtqueue_publish(queue);
        virtqueue_destroy(queue);
        virtqueue_forget_inflight(region);
        memset(scene.alive.flat, 0, SHARED);
        driver_init(&scene.driver, scene.alive.flat, &place, 8, packed, false);
        queue = start(&scene.alive, scene.alive.memory, &err);
        assert_int_equal(virtqueue_set_inflight(queue, region, REGION, &err), 0);
        assert_int_equal(virtqueue_resubmit(queue, &chains[0]), 0);
        assert_int_equal(virtqueue_take(queue, &chains[0]), 0);
        assert_int_equal(virtqueue_base(queue), packed ? 0x80008000 : 0);
        virtqueue_destroy(queue);
    }
    machine_fini(&scene.alive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_at_any_moment),          cmocka_unit_test(damaged_regions_are_refused),
        cmocka_unit_test(what_is_left_is_checked),      cmocka_unit_test(marks_of_free_entries_go),
        cmocka_unit_test(a_forgotten_region_is_as_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
