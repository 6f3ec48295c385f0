/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A push whose daemon is killed in every moment, and the next one in some moment of its start, while the guest writes.
 *
 * The oracle: as long as the guest was not answered that it began, nothing is known of the job; from then on it is there
 * after each death, and when it ends well the targets hold what lay on the disks when it began, block by block. A job that
 * was cancelled, or of which nobody was told, leaves no file; and in the end there is nothing in memory that has a name.
 *
 *   rules_push                 all moments, and each deliberate fault named push_... must be noticed in one of them
 *   rules_push --no-mutants    only the former
 *
 * Targets are files of the world, opened by the file driver under its locks: so writes of the dead land late (C10). What
 * job/target.c does with real files has a test of its own (tests/unit/target.c).
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "driver/file.h"
#include "faults.h"
#include "job/target.h"
#include "stage.h"
#include "vm/push_record.h"

enum { EXTENTS = 3, BLOCKS = EXTENTS * 256, WRITES = 12 };

extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

struct file { /* a target */
    const char *path;
    bool there, ours;
};

struct scene {
    struct stage *stage;
    struct job_table jobs;
    struct file files[STAGE_DISKS];
    uint8_t *right[STAGE_DISKS]; /* what lay on the disks */
    bool begun, cancelled, cancel;
    bool finished, well; /* as the job's end was told */
    bool damaged;        /* its record was */
    unsigned numbers;
    uint64_t moment;
};

static struct scene *scene;

/* ---- targets ---- */

int __wrap_target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err);
int __wrap_target_open_again(struct io *io, const struct target_options *options, struct target *target,
                             struct error *err);
int __wrap_target_keep(const struct target *target, struct error *err);
void __wrap_target_remove(struct target *target);

static struct file *file_of(const struct target *target)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        if (strcmp(scene->files[i].path, target->where) == 0)
            return &scene->files[i];
    fail_msg("there is no target %s", target->where);
    return NULL;
}

/* A death in the opening comes after it: the driver looks at what it has opened. */
static int open_it(struct io *io, const struct target *target, struct node **node, struct error *err)
{
    const struct file_options options = {.path = target->where, .lock_wait_ns = 10 * NS_PER_S};
    struct stage *stage = scene->stage;
    const uint64_t die_at = stage->die_at;
    stage->die_at = 0;
    const int status = stage->dead ? -EIO : file_open(io, &options, node, err);
    stage->die_at = die_at && die_at <= stage->moments ? stage->moments + 1 : die_at;
    return status;
}

int __wrap_target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    assert_int_equal(target_take_over(options->where, options->note, target), 0);
    struct file *file = file_of(target);
    if (!file->there && !scene->stage->dead) { /* else: the rest of the tick in which it died */
        file->there = file->ours = true;
        options->note->created = 1;
        uuid_make(io, options->note->nonce);
        target->is_zero = true;
        world_file_create(scene->stage->world, file->path, scene->stage->disk_bytes, 512, false);
    }
    target_note_store(options->note, TARGET_KNOWN);
    return open_it(io, target, &target->node, err);
}

int __wrap_target_open_again(struct io *io, const struct target_options *options, struct target *target,
                             struct error *err)
{
    (void)options;
    assert_int_equal(target_note_stage(target->note), TARGET_KNOWN);
    assert_true(file_of(target)->there);
    return open_it(io, target, &target->node, err);
}

int __wrap_target_keep(const struct target *target, struct error *err)
{
    (void)err;
    assert_true(file_of(target)->there);
    return 0;
}

void __wrap_target_remove(struct target *target)
{
    if (!scene->stage->dead && target_note_stage(target->note) == TARGET_KNOWN && target->note->created)
        file_of(target)->there = false;
}

/* ---- the job ---- */

static void job_began(void *argument, const struct job *job, const struct error *err)
{
    (void)argument;
    if (scene->stage->dead)
        return;
    if (err)
        fail_msg("the job is refused: %s", err->text);
    scene->begun = job != NULL;
}

static void job_finished(void *context, const struct job *job)
{
    (void)context;
    if (scene->stage->dead)
        return;
    scene->finished = true;
    scene->well = job->status == 0;
    if (scene->damaged && strstr(job->err.text, "is damaged"))
        return;
    if (job->status < 0 && !job->cancelled)
        fail_msg("the job failed: %s", job->err.text);
}

static void jobs_init(void)
{
    job_table_init(&scene->jobs);
    scene->jobs.hooks = (struct job_hooks){.finished = job_finished};
}

static void start_job(void *argument)
{
    (void)argument;
    const struct push_target targets[] = {{"vda", scene->files[0].path}, {"vdb", scene->files[1].path}};
    const struct push_options options = {.job_id = "job",
                                         .targets = targets,
                                         .target_count = STAGE_DISKS,
                                         .force = true,
                                         .speed = 4 * MIB,
                                         .keep_concluded = true};
    push_start(scene->stage->vm, &scene->jobs, &options, job_began, NULL);
}

static void cancel_job(void *argument)
{
    (void)argument;
    struct job *job = job_find(&scene->jobs, "job");
    if (job)
        scene->cancelled |= job_cancel(job, true, NULL) == 0;
}

static void dismiss_job(void *argument)
{
    (void)argument;
    struct job *job = job_find(&scene->jobs, "job");
    if (job)
        assert_int_equal(job_verb(job, JOB_VERB_DISMISS, NULL), 0);
}

static void take_over(void *argument)
{
    (void)argument;
    pushes_take_over(scene->stage->vm, &scene->jobs);
}

/* ---- the story ---- */

static void run_for(uint64_t duration_ns)
{
    if (!scene->stage->dead)
        world_run_for(scene->stage->world, duration_ns);
}

/* The guest writes somewhere; one at a time, and it does not matter whether the last one of a life was done. */
static void guest_writes(unsigned count)
{
    struct stage *stage = scene->stage;
    for (unsigned i = 0; i < count && !stage->dead; i++) {
        struct stage_request *write = calloc(1, sizeof *write); /* the dead keep theirs */
        assert_non_null(write);
        const unsigned number = ++scene->numbers;
        stage_write(stage, write, number % 2, number * 61 % (BLOCKS - 4), 1 + number % 4, (uint8_t)(1 + number % 250));
        for (unsigned steps = 0; !write->done && !stage->dead && steps < 100000; steps++)
            world_step(stage->world);
        assert_true(write->done || stage->dead);
        if (write->done)
            free(write);
    }
}

static void begin_story(uint64_t moment, bool cancel)
{
    struct stage_options options = {
        .disk_count = STAGE_DISKS, .restartable = true, .disk_bytes = EXTENTS * STAGE_DISK_BYTES, .cache_segments = 20};
    void *state = &options;
    static const char *const paths[] = {"/target0", "/target1"};
    assert_int_equal(stage_set_up(&state), 0);
    scene = calloc(1, sizeof *scene);
    assert_non_null(scene);
    *scene = (struct scene){.stage = state, .cancel = cancel, .moment = moment};
    jobs_init();
    strcpy(scene->stage->snapshots[scene->stage->snapshot_count++].name, "job"); /* the stage hears of it */
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        scene->files[i].path = paths[i];
    /* The second one is there, and holds something else. */
    scene->files[1].there = true;
    memset(world_file_bytes(world_file_create(scene->stage->world, paths[1], scene->stage->disk_bytes, 512, false)),
           0xee, scene->stage->disk_bytes);
    guest_writes(8);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        scene->right[i] = malloc(scene->stage->disk_bytes);
        assert_non_null(scene->right[i]);
        memcpy(scene->right[i], world_file_bytes(scene->stage->files[i]), scene->stage->disk_bytes);
    }
    scene->stage->moments = 0;
    scene->stage->die_at = moment;
}

static void live(void)
{
    struct stage *stage = scene->stage;
    if (!scene->begun)
        world_call(stage->control, start_job, NULL);
    for (unsigned i = 0; !scene->begun && !stage->dead && i < 100; i++)
        run_for(10 * NS_PER_MS);
    for (unsigned i = 0; i < WRITES && !stage->dead && !scene->finished; i++) {
        guest_writes(3);
        run_for(60 * NS_PER_MS);
        if (i == WRITES / 2 && scene->cancel && !stage->dead)
            world_call(stage->control, cancel_job, NULL);
    }
    for (unsigned i = 0; !scene->finished && !stage->dead && i < 400; i++)
        run_for(50 * NS_PER_MS);
}

/* The job may be there before anybody was told: the answer got lost. */
static void check_after_death(void)
{
    const struct job *job = job_find(&scene->jobs, "job");
    if (scene->begun && !job)
        fail_msg("moment %llu: the job is gone", (unsigned long long)scene->moment);
    scene->begun = job != NULL;
    if (job)
        return;
    assert_null(vm_snapshot_find(scene->stage->vm, "job"));
    assert_false(scene->files[0].there);
    assert_true(scene->files[1].there);
}

static void remove_record(void *argument)
{
    (void)argument;
    const struct io_shm_name name = {scene->stage->options.memory_folder, "push.0"};
    io_shm_remove(scene->stage->control, &name);
}

/* Whether it died. */
static bool die_and_go_on(void)
{
    struct stage *stage = scene->stage;
    if (!stage->dead)
        return false;
    for (unsigned deaths = 0; stage->dead; deaths++) {
        stage_kill(stage);
        stage->moments = 0;
        stage->die_at = deaths == 0 ? 1 + scene->moment % 97 : deaths == 1 ? 150 + scene->moment % 331 : 0;
        stage_restart(stage);
        jobs_init();
        if (!stage->dead)
            world_call(stage->control, take_over, NULL);
        if (!stage->dead) { /* also a third one, while the copy goes on */
            check_after_death();
            live();
        }
    }
    return true;
}

static void check_targets(void)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        const uint8_t *bytes = world_file_bytes(world_file_find(scene->stage->world, scene->files[i].path));
        assert_true(scene->files[i].there);
        for (uint64_t at = 0; at < scene->stage->disk_bytes; at += STAGE_BLOCK)
            if (memcmp(bytes + at, scene->right[i] + at, STAGE_BLOCK) != 0)
                fail_msg("moment %llu: block %llu of disk %u is not what it was", (unsigned long long)scene->moment,
                         (unsigned long long)(at / STAGE_BLOCK), i);
    }
}

static void end_story(void)
{
    struct stage *stage = scene->stage;
    world_call(stage->control, dismiss_job, NULL);
    stage_settle(stage);
    assert_int_equal(scene->jobs.count, 0);
    assert_null(vm_snapshot_next(stage->vm, NULL));
    stage_destroy_vm(stage);
    stage_settle(stage);
    assert_int_equal(world_named_memory(stage->world), 0);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        free(scene->right[i]);
    void *state = stage;
    stage_tear_down(&state);
    free(scene);
}

/* The daemon dies in that moment; false: the story was over before. */
static bool story(uint64_t moment, bool cancel)
{
    begin_story(moment, cancel);
    struct stage *stage = scene->stage;
    live();
    const bool died = die_and_go_on();
    stage->die_at = 0;
    assert_true(scene->finished);
    if (scene->well)
        check_targets();
    else
        assert_true(scene->cancelled && !scene->files[0].there && scene->files[1].there);
    end_story();
    return died;
}

static void killed_in_every_moment(void **state)
{
    (void)state;
    uint64_t moment = 1, step;
    for (; story(moment, false); moment += step)
        step = 1 + moment % 9; /* all remainders come up */
    assert_true(moment > 300);
}

static void cancelled_and_killed(void **state)
{
    (void)state;
    uint64_t moment = 1, step;
    for (; story(moment, true); moment += step)
        step = 2 + moment % 29;
    assert_true(moment > 200);
}

/* It died between the commit of the snapshot and that of the job: nobody has the snapshot. */
static void a_snapshot_without_a_job_ends(void **state)
{
    (void)state;
    begin_story(0, false);
    world_call(scene->stage->control, start_job, NULL);
    for (unsigned i = 0; !scene->begun && i < 100; i++)
        run_for(10 * NS_PER_MS);
    assert_true(scene->begun);
    stage_kill(scene->stage);
    stage_restart(scene->stage);
    jobs_init();
    world_call(scene->stage->control, remove_record, NULL);
    world_call(scene->stage->control, take_over, NULL);
    stage_settle(scene->stage);
    assert_null(job_find(&scene->jobs, "job"));
    assert_null(vm_snapshot_find(scene->stage->vm, "job"));
    end_story();
}

/* Byte `argument` of the record that a killed daemon has left. */
static void damage_record(void *argument)
{
    const struct io_shm_name name = {scene->stage->options.memory_folder, "push.0"};
    struct io_shm shm;
    struct error err;
    assert_int_equal(io_shm_adopt(scene->stage->control, &shm, &name, &err), 0);
    assert_int_equal(io_shm_grow(scene->stage->control, &shm, (struct range){0, shm.reserved_bytes}), 0);
    shm.base[*(const size_t *)argument] ^= 0x41;
    io_shm_destroy(scene->stage->control, &shm);
}

/* The job fails for that reason and no file goes: nobody knows how far it was. The snapshot does. */
static void a_damaged_word_ends_the_job(void **state)
{
    (void)state;
#define AT(member) (offsetof(struct push_record_layout, member) + 1)
    static const size_t places[] = {AT(state),
                                    AT(cut.snapshot),
                                    AT(cancelled),
                                    AT(progress[0].note.stage),
                                    AT(progress[0].note.is),
                                    AT(progress[1].released)};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        size_t place = places[i];
        begin_story(0, false);
        scene->damaged = true;
        world_call(scene->stage->control, start_job, NULL);
        for (unsigned steps = 0; !scene->begun && steps < 100; steps++)
            run_for(10 * NS_PER_MS);
        run_for(100 * NS_PER_MS);
        assert_true(scene->begun && !scene->finished);
        stage_kill(scene->stage);
        stage_restart(scene->stage);
        jobs_init();
        world_call(scene->stage->control, damage_record, &place);
        world_call(scene->stage->control, take_over, NULL);
        stage_settle(scene->stage);
        const struct job *job = job_find(&scene->jobs, "job");
        assert_true(job && scene->finished && !scene->well);
        assert_non_null(strstr(job->err.text, "is damaged"));
        assert_true(scene->files[0].there && scene->files[1].there);
        assert_null(vm_snapshot_find(scene->stage->vm, "job"));
        end_story();
    }
}

/* ---- deliberate faults ---- */

static const struct CMUnitTest all_tests[] = {
    cmocka_unit_test(a_snapshot_without_a_job_ends),
    cmocka_unit_test(a_damaged_word_ends_the_job),
    cmocka_unit_test(cancelled_and_killed),
    cmocka_unit_test(killed_in_every_moment),
};

static int run_all(void)
{
    return cmocka_run_group_tests(all_tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    const bool with_mutants = argc < 2 || strcmp(argv[1], "--no-mutants") != 0;
    int wrong = run_all();
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants && with_mutants; mutant++)
        if (strncmp(mutant->name, "push_", 5) == 0)
            wrong += !fault_is_caught(mutant, run_all, 120);
    return wrong == 0 ? 0 : 1;
}
