/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The read gate before a disk of the test's own: it reads one byte after the other at a speed that the test sets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/limits.h"
#include "fleece/read_gate.h"

enum { READERS = 16, PIECE = 64 * 1024 };

struct reader {
    struct read_gate_waiter waiter;
    struct scene *scene;
    bool reading;
};

struct scene {
    struct io io; /* first */
    struct disk disk;
    struct read_gate gate;
    struct list tasks;
    struct reader readers[READERS];
    uint64_t now_ns;
    uint32_t copies;
    bool guest;
};

static uint64_t scene_now_ns(struct io *io)
{
    return ((struct scene *)(void *)io)->now_ns;
}

static void scene_task_queue(struct io *io, struct io_task *task)
{
    list_append(&((struct scene *)(void *)io)->tasks, &task->link);
}

static const struct io_ops scene_ops = {.now_ns = scene_now_ns, .task_queue = scene_task_queue};

static void let_in(struct read_gate_waiter *waiter)
{
    struct reader *reader = container_of(waiter, struct reader, waiter);
    read_gate_enter_now(&reader->scene->gate, PIECE);
    reader->reading = true;
}

static void scene_init(struct scene *scene)
{
    memset(scene, 0, sizeof *scene);
    scene->io.ops = &scene_ops;
    scene->disk.node.io = &scene->io;
    scene->now_ns = NS_PER_S;
    list_init(&scene->tasks);
    read_gate_init(&scene->gate, &scene->disk, &scene->copies, SEGMENT_BYTES_DEFAULT);
    for (unsigned i = 0; i < READERS; i++) {
        scene->readers[i].scene = scene;
        scene->readers[i].waiter.go = let_in;
    }
}

static void run_tasks(struct scene *scene)
{
    for (struct list_node *link; (link = list_take_first(&scene->tasks));) {
        struct io_task *task = container_of(link, struct io_task, link);
        task->run(task);
    }
}

/* `readers` of them read without a pause for a while; returns the most that was in flight in its second half. */
static uint64_t pull(struct scene *scene, unsigned readers, uint64_t bytes_per_second, unsigned pieces)
{
    uint64_t most = 0;
    for (unsigned i = 0; i < readers; i++)
        scene->readers[i].reading = read_gate_enter(&scene->gate, PIECE, &scene->readers[i].waiter);
    for (unsigned done = 0; done < pieces; done++) {
        struct reader *reader = &scene->readers[done % readers];
        if (scene->guest)
            scene->disk.counters.writes++;
        if (reader->reading) {
            scene->now_ns += PIECE * NS_PER_S / bytes_per_second;
            read_gate_leave(&scene->gate, PIECE);
            reader->reading = read_gate_enter(&scene->gate, PIECE, &reader->waiter);
        }
        run_tasks(scene);
        if (done > pieces / 2 && scene->gate.bytes_in_flight > most)
            most = scene->gate.bytes_in_flight;
    }
    while (scene->gate.bytes_in_flight > 0) {
        for (unsigned i = 0; i < readers; i++) {
            if (scene->readers[i].reading)
                read_gate_leave(&scene->gate, PIECE);
            scene->readers[i].reading = false;
        }
        run_tasks(scene);
    }
    return most;
}

static void an_idle_guest_leaves_the_disk_to_readers(void **state)
{
    (void)state;
    struct scene scene;
    scene_init(&scene);
    scene.now_ns += READ_GATE_BUSY_NS;
    assert_int_equal(pull(&scene, READERS, GIB, 1000), SEGMENT_BYTES_DEFAULT);
    read_gate_fini(&scene.gate);
}

static void a_slow_disk_has_little_in_flight_for_readers(void **state)
{
    (void)state;
    struct scene scene;
    scene_init(&scene);
    scene.guest = true;
    assert_int_equal(pull(&scene, READERS, GIB, 1000), SEGMENT_BYTES_DEFAULT / 4); /* 244 us of it */
    read_gate_fini(&scene.gate);
}

static void a_fast_disk_has_as_much_as_it_reads_in_the_time_that_a_guest_may_lose(void **state)
{
    (void)state;
    struct scene scene;
    scene_init(&scene);
    scene.guest = true;
    uint64_t most = pull(&scene, READERS, 3 * GIB, 4000), right = 3 * GIB * READ_GATE_DELAY_NS / NS_PER_S;
    assert_in_range(most, right * 3 / 4, right * 3 / 2);
    assert_int_equal(pull(&scene, READERS, 100 * GIB, 4000), SEGMENT_BYTES_DEFAULT); /* never more than that */
    pull(&scene, READERS, GIB / 4, 1000);
    assert_int_equal(pull(&scene, READERS, GIB / 4, 100), SEGMENT_BYTES_DEFAULT / 4); /* and it falls again */
    read_gate_fini(&scene.gate);
}

static void slow_readers_tell_nothing_about_the_disk(void **state)
{
    (void)state;
    struct scene scene;
    scene_init(&scene);
    scene.guest = true;
    pull(&scene, 2, 100 * GIB, 4000); /* two readers never wait */
    assert_int_equal(scene.gate.busy_bytes, SEGMENT_BYTES_DEFAULT / 4);
    read_gate_fini(&scene.gate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_guest_leaves_the_disk_to_readers),
        cmocka_unit_test(a_slow_disk_has_little_in_flight_for_readers),
        cmocka_unit_test(a_fast_disk_has_as_much_as_it_reads_in_the_time_that_a_guest_may_lose),
        cmocka_unit_test(slow_readers_tell_nothing_about_the_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
