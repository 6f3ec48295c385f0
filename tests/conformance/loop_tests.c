/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The loop: tasks, timers, messages, work on helpers, clock and random numbers. */
#include <errno.h>
#include <string.h>

#include "base/limits.h"
#include "suite.h"

struct note { /* remembers the order of events */
    unsigned count;
    int values[64];
};

static void note_add(struct note *note, int value)
{
    assert_true(note->count < 64);
    note->values[note->count++] = value;
}

struct counting {
    const unsigned *count;
    unsigned wanted;
};

static bool counted(void *context)
{
    struct counting *counting = context;
    return *counting->count >= counting->wanted;
}

static void wait_for(struct suite *suite, const unsigned *count, unsigned wanted)
{
    struct counting counting = {count, wanted};
    suite_run_until(suite, counted, &counting);
}

struct noting_task {
    struct io_task task;
    struct io *io;
    struct note *note;
    int value;
    struct noting_task *queues; /* when it runs */
};

static void noting_task_run(struct io_task *task)
{
    struct noting_task *mine = container_of(task, struct noting_task, task);
    note_add(mine->note, mine->value);
    if (mine->queues)
        io_task_queue(mine->io, &mine->queues->task);
}

static void tasks_run_in_order(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_task tasks[4];
    for (int i = 0; i < 4; i++)
        tasks[i] = (struct noting_task){.task = {.run = noting_task_run}, .io = suite->io, .note = &note, .value = i};
    tasks[0].queues = &tasks[3]; /* goes behind those that are queued already */
    for (int i = 0; i < 3; i++) {
        io_task_queue(suite->io, &tasks[i].task);
        io_task_queue(suite->io, &tasks[i].task); /* queued already: no effect */
        assert_true(list_linked(&tasks[i].task.link));
    }
    assert_int_equal(note.count, 0);
    wait_for(suite, &note.count, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(note.values[i], i);
    suite_sleep(suite, NS_PER_MS);
    assert_int_equal(note.count, 4);
    assert_false(list_linked(&tasks[0].task.link));
}

struct noting_timer {
    struct io_timer timer;
    struct io *io;
    struct note *note;
    int value;
    uint64_t fired_ns;
    unsigned again; /* sets itself anew this often, with a deadline long past */
};

static void noting_timer_fire(struct io_timer *timer)
{
    struct noting_timer *mine = container_of(timer, struct noting_timer, timer);
    assert_false(io_timer_armed(timer));
    mine->fired_ns = io_now_ns(mine->io);
    note_add(mine->note, mine->value);
    if (mine->again) {
        mine->again--;
        io_timer_set(mine->io, timer, 0);
    }
}

static void timers_init(struct suite *suite, struct noting_timer *timers, int count, struct note *note)
{
    for (int i = 0; i < count; i++)
        timers[i] = (struct noting_timer){
            .timer = {.fire = noting_timer_fire}, .io = suite->io, .note = note, .value = i};
}

static void timers_are_never_early(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_timer timers[20];
    timers_init(suite, timers, 20, &note);
    uint64_t start_ns = io_now_ns(suite->io), deadlines[20];
    for (int i = 0; i < 20; i++) {
        int place = i * 7 % 20; /* set out of order */
        deadlines[place] = start_ns + (uint64_t)(place + 1) * 700 * NS_PER_US;
        io_timer_set(suite->io, &timers[place].timer, deadlines[place]);
        assert_true(io_timer_armed(&timers[place].timer));
    }
    wait_for(suite, &note.count, 20);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(note.values[i], i);
        assert_true(timers[i].fired_ns >= deadlines[i]);
    }
}

static void timers_can_be_cancelled_and_moved(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_timer timers[5];
    timers_init(suite, timers, 5, &note);
    uint64_t now_ns = io_now_ns(suite->io);
    io_timer_cancel(suite->io, &timers[4].timer); /* never armed */
    for (unsigned i = 0; i < 4; i++)
        io_timer_set(suite->io, &timers[i].timer, now_ns + (i + 1) * NS_PER_MS);
    io_timer_cancel(suite->io, &timers[1].timer);
    assert_false(io_timer_armed(&timers[1].timer));
    io_timer_set(suite->io, &timers[0].timer, now_ns + 8 * NS_PER_MS); /* later */
    io_timer_set(suite->io, &timers[3].timer, now_ns + 2 * NS_PER_MS); /* sooner */
    suite_sleep(suite, 12 * NS_PER_MS);
    assert_int_equal(note.count, 3);
    assert_int_equal(note.values[0], 3);
    assert_int_equal(note.values[1], 2);
    assert_int_equal(note.values[2], 0);
    assert_true(timers[0].fired_ns >= now_ns + 8 * NS_PER_MS);
}

static void equal_deadlines_fire_in_order(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_timer timers[30];
    timers_init(suite, timers, 30, &note);
    uint64_t deadline_ns = io_now_ns(suite->io) + NS_PER_MS;
    for (int i = 0; i < 30; i++)
        io_timer_set(suite->io, &timers[i].timer, deadline_ns);
    wait_for(suite, &note.count, 30);
    for (int i = 0; i < 30; i++)
        assert_int_equal(note.values[i], i);
}

static void past_deadlines_fire_once_each_time(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_timer timer;
    timers_init(suite, &timer, 1, &note);
    timer.again = 3;
    io_timer_set(suite->io, &timer.timer, 0);
    assert_int_equal(note.count, 0); /* not inside the call */
    wait_for(suite, &note.count, 4);
    suite_sleep(suite, 5 * NS_PER_MS);
    assert_int_equal(note.count, 4);
}

struct noting_message {
    struct io_message message;
    struct io *io;
    struct note *note;
    int value;
};

static void noting_message_deliver(struct io_message *message)
{
    struct noting_message *mine = container_of(message, struct noting_message, message);
    assert_true(io_on_owner(mine->io));
    note_add(mine->note, mine->value);
}

struct sender {
    struct noting_message *messages;
    unsigned count;
};

static void send_messages(void *argument)
{
    struct sender *sender = argument;
    for (unsigned i = 0; i < sender->count; i++)
        io_post(sender->messages[i].io, &sender->messages[i].message);
}

static void messages_keep_their_order(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    struct noting_message messages[40];
    for (int i = 0; i < 40; i++)
        messages[i] = (struct noting_message){
            .message = {.deliver = noting_message_deliver}, .io = suite->io, .note = &note, .value = i};
    struct sender here = {messages, 20}, there = {messages + 20, 20};
    send_messages(&here);
    suite->fixture->elsewhere(suite->io, send_messages, &there);
    assert_int_equal(note.count, 0); /* neither delivered inside io_post() nor outside of the owner */
    wait_for(suite, &note.count, 40);
    int here_next = 0, there_next = 20;
    for (int i = 0; i < 40; i++) {
        if (note.values[i] < 20)
            assert_int_equal(note.values[i], here_next++);
        else
            assert_int_equal(note.values[i], there_next++);
    }
}

static void messages_wake_a_sleeping_loop(void **state)
{
    struct suite *suite = *state;
    struct note note = {0};
    for (int round = 0; round < 20; round++) {
        struct noting_message message = {
            .message = {.deliver = noting_message_deliver}, .io = suite->io, .note = &note, .value = round};
        struct sender sender = {&message, 1};
        suite_sleep(suite, 100 * NS_PER_US);
        suite->fixture->elsewhere(suite->io, send_messages, &sender);
        wait_for(suite, &note.count, (unsigned)round + 1);
    }
}

static int64_t work_square(void *argument)
{
    int64_t value = *(int64_t *)argument;
    return value < 0 ? -EDOM : value * value;
}

static void work_returns_its_result(void **state)
{
    struct suite *suite = *state;
    struct try tries[32];
    int64_t values[32];
    for (int i = 0; i < 32; i++) {
        values[i] = i == 31 ? -1 : i;
        try_init(&tries[i]);
        io_work(suite->io, &tries[i].op, work_square, &values[i]);
        assert_false(tries[i].done);
    }
    for (int i = 0; i < 32; i++) {
        while (!tries[i].done)
            suite_sleep(suite, 100 * NS_PER_US);
        assert_int_equal(tries[i].calls, 1);
        assert_int_equal(tries[i].result, i == 31 ? -EDOM : i * i);
    }
}

static void on_owner_knows_its_thread_body(void *argument)
{
    struct suite *suite = argument;
    (void)io_now_ns(suite->io); /* any thread may ask */
    char byte;
    io_random(suite->io, &byte, 1);
}

static void clock_and_random_work_anywhere(void **state)
{
    struct suite *suite = *state;
    assert_true(io_on_owner(suite->io));
    uint64_t first = io_now_ns(suite->io);
    suite_sleep(suite, NS_PER_MS);
    assert_true(io_now_ns(suite->io) >= first + NS_PER_MS);
    assert_true(io_wall_ns(suite->io) > 0);
    char a[32] = {0}, b[32] = {0};
    io_random(suite->io, a, sizeof a);
    io_random(suite->io, b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
    suite->fixture->elsewhere(suite->io, on_owner_knows_its_thread_body, suite);
}

const struct CMUnitTest loop_tests[] = {
    cmocka_unit_test(tasks_run_in_order),
    cmocka_unit_test(timers_are_never_early),
    cmocka_unit_test(timers_can_be_cancelled_and_moved),
    cmocka_unit_test(equal_deadlines_fire_in_order),
    cmocka_unit_test(past_deadlines_fire_once_each_time),
    cmocka_unit_test(messages_keep_their_order),
    cmocka_unit_test(messages_wake_a_sleeping_loop),
    cmocka_unit_test(work_returns_its_result),
    cmocka_unit_test(clock_and_random_work_anywhere),
};
SUITE_COUNT(loop_tests);
