/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When the rings of a vhost-user disk are watched: over a clock of the test's, and rings that never have anything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "export/vhost_user/session.h"

enum { LOOK_NS = 500 };

struct scene {
    struct io io;
    struct vhost_counters counters;
    struct vhost_session session;
    uint64_t now_ns, away_ns; /* away_ns: what others take of the processor when it is offered */
    unsigned looks, offers;
    bool armed;
};

static struct scene *scene_of(struct io *io)
{
    return container_of(io, struct scene, io);
}

static uint64_t now_ns(struct io *io)
{
    return scene_of(io)->now_ns;
}

static void timer_set(struct io *io, struct io_timer *timer, uint64_t deadline_ns)
{
    assert_ptr_equal(timer, &scene_of(io)->session.poll);
    assert_true(deadline_ns <= scene_of(io)->now_ns);
    scene_of(io)->armed = true;
}

static void yield(struct io *io)
{
    scene_of(io)->offers++;
    scene_of(io)->now_ns += scene_of(io)->away_ns;
}

static const struct io_ops scene_ops = {.now_ns = now_ns, .timer_set = timer_set, .yield = yield};

bool __wrap_vhost_queue_serve(struct vhost_queue *queue);
bool __wrap_vhost_queue_sleep(struct vhost_queue *queue);
void __wrap_vhost_queue_wake(struct vhost_queue *queue);

bool __wrap_vhost_queue_serve(struct vhost_queue *queue)
{
    scene_of(queue->session->io)->looks++;
    scene_of(queue->session->io)->now_ns += LOOK_NS;
    return false;
}

bool __wrap_vhost_queue_sleep(struct vhost_queue *queue)
{
    (void)queue;
    return false;
}

void __wrap_vhost_queue_wake(struct vhost_queue *queue)
{
    (void)queue;
}

/* Work comes, after a sleep of that length; returns how often rings were looked at until we slept again. */
static unsigned wake(struct scene *scene, uint64_t after_ns, bool by_kick)
{
    assert_true(scene->session.asleep);
    scene->now_ns += after_ns;
    scene->looks = scene->offers = 0;
    vhost_poll_extend(&scene->session, by_kick);
    while (scene->armed) {
        scene->armed = false;
        scene->session.poll.fire(&scene->session.poll);
    }
    assert_true(scene->session.asleep);
    return scene->looks;
}

static void open_window(struct scene *scene)
{
    for (unsigned i = 0; i < 8; i++)
        wake(scene, NS_PER_US, true);
}

static int begin(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    assert_non_null(scene);
    scene->io.ops = &scene_ops;
    scene->now_ns = NS_PER_S;
    scene->session.io = &scene->io;
    scene->session.counters = &scene->counters;
    scene->session.queue_end = 1;
    scene->session.queues[0].session = &scene->session;
    vhost_poll_init(&scene->session);
    *state = scene;
    return 0;
}

static int end(void **state)
{
    free(*state);
    return 0;
}

static void kicks_teach(void **state)
{
    struct scene *scene = *state;
    assert_int_equal(wake(scene, NS_PER_MS, true), 1);
    assert_int_equal(wake(scene, VHOST_POLL_MAX_NS, true), VHOST_POLL_MIN_NS / LOOK_NS);
    open_window(scene);
    assert_int_equal(wake(scene, NS_PER_US, true), VHOST_POLL_MAX_NS / LOOK_NS);
    assert_int_equal(wake(scene, VHOST_POLL_MAX_NS + 1, true), VHOST_POLL_MAX_NS / LOOK_NS / 2);
    for (unsigned i = 0; i < 8; i++)
        wake(scene, NS_PER_MS, true);
    assert_int_equal(wake(scene, NS_PER_MS, true), 1);
}

/* Each look in vain offers the processor. Short absences are nothing; after a long one it is not watched from. */
static void others_come_first(void **state)
{
    struct scene *scene = *state;
    open_window(scene);
    scene->away_ns = LOOK_NS;
    assert_int_equal(wake(scene, NS_PER_US, true), VHOST_POLL_MAX_NS / (2 * LOOK_NS) + 1);
    assert_int_equal(scene->offers, scene->looks - 1);
    scene->away_ns = 3 * NS_PER_MS;
    const uint64_t until_ns = scene->now_ns + VHOST_CONTENDED_TIMES * scene->away_ns;
    wake(scene, NS_PER_US, true);
    assert_int_equal(scene->offers, 1);
    while (scene->now_ns + NS_PER_MS < until_ns) {
        assert_int_equal(wake(scene, NS_PER_US, false), 1);
        scene->now_ns += NS_PER_MS;
    }
    scene->now_ns = until_ns + NS_PER_MS;
    wake(scene, NS_PER_US, false);
    assert_int_equal(scene->offers, 1);
}

/* Many requests whose ends had only waited for us to sleep. */
static void ends_that_waited_for_our_sleep_are_noticed(void **state)
{
    struct scene *scene = *state;
    open_window(scene);
    scene->session.in_flight = 31;
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 1; i < VHOST_SHORT_SLEEPS; i++)
            assert_true(wake(scene, 2 * NS_PER_US, false) > 1);
        if (round == 0) /* by chance: then one that is longer */
            assert_true(wake(scene, VHOST_SHORT_SLEEP_NS + NS_PER_US, false) > 1);
    }
    const uint64_t from_ns = scene->now_ns;
    while (scene->now_ns < from_ns + VHOST_REST_NS - 10 * NS_PER_US)
        assert_int_equal(wake(scene, 2 * NS_PER_US, false), 1);
    scene->now_ns += NS_PER_MS;
    assert_true(wake(scene, 2 * NS_PER_US, false) > 1);
    scene->session.in_flight = 0; /* a lone request: nobody else waits */
    for (unsigned i = 0; i < 4 * VHOST_SHORT_SLEEPS; i++)
        assert_true(wake(scene, 2 * NS_PER_US, false) > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(kicks_teach, begin, end),
        cmocka_unit_test_setup_teardown(others_come_first, begin, end),
        cmocka_unit_test_setup_teardown(ends_that_waited_for_our_sleep_are_noticed, begin, end),
    };
    return cmocka_run_group_tests_name("vhost poll", tests, NULL, NULL);
}
