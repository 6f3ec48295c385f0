/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the commands about checkpoints make of their arguments, and what they answer, with a VM that says what the test
 * wants: the calls to it, and the answers, come here instead (--wrap).
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "control/client.h"
#include "control/command.h"
#include "control/describe.h"

#define UUID "0c2f1f6e-8f0b-4b5e-9d0c-63a4e8f2c7a1"

static struct {
    char call[64], what[128]; /* of the VM */
    struct snapshot_options options;
    char maps[LIMIT_SNAPSHOT_MAPS][LIMIT_NAME_BYTES + 1];
    int fails;          /* with this code, and a sentence */
    char answer[16384]; /* JSON, or "CLASS: SENTENCE" */
} seen;

void __wrap_control_return(struct control_request *request, json_t *value);
void __wrap_control_fail(struct control_request *request, const char *class, const char *format, ...);
void __wrap_control_fail_with(struct control_request *request, const struct error *err);
void __wrap_vm_checkpoint_create(struct vm *vm, const char *name,
                                 void (*done)(void *argument, const struct checkpoint_id *id, const struct error *err),
                                 void *argument);
void __wrap_vm_checkpoint_commit(struct vm *vm, const char *uuid, void (*done)(void *argument, const struct error *err),
                                 void *argument);
void __wrap_vm_checkpoint_delete(struct vm *vm, const char *which,
                                 void (*done)(void *argument, const struct error *err), void *argument);
void __wrap_vm_checkpoint_reset(struct vm *vm, const char *disk, void (*done)(void *argument, const struct error *err),
                                void *argument);
void __wrap_vm_snapshot_create(struct vm *vm, const struct snapshot_options *options,
                               void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                               void *argument);

void __wrap_control_return(struct control_request *request, json_t *value)
{
    (void)request;
    assert_non_null(value);
    char *text = json_dumps(value, JSON_SORT_KEYS);
    snprintf(seen.answer, sizeof seen.answer, "%s", text);
    free(text);
    json_decref(value);
}

void __wrap_control_fail(struct control_request *request, const char *class, const char *format, ...)
{
    char text[LIMIT_ERROR_BYTES];
    va_list args;
    (void)request;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(seen.answer, sizeof seen.answer, "%s: %s", class, text);
}

void __wrap_control_fail_with(struct control_request *request, const struct error *err)
{
    __wrap_control_fail(request, err->code == ENOENT ? "DeviceNotFound" : "GenericError", "%s", err->text);
}

static const struct error *note(const char *call, const char *what)
{
    static struct error err;
    snprintf(seen.call, sizeof seen.call, "%s", call);
    snprintf(seen.what, sizeof seen.what, "%s", what);
    if (!seen.fails)
        return NULL;
    error_set(&err, seen.fails, "no way");
    return &err;
}

void __wrap_vm_checkpoint_create(struct vm *vm, const char *name,
                                 void (*done)(void *argument, const struct checkpoint_id *id, const struct error *err),
                                 void *argument)
{
    static const struct checkpoint_id id = {.name = "monday", .uuid = UUID, .created_wall_ns = 1500 * NS_PER_MS};
    const struct error *err = note("create", name);
    (void)vm;
    done(argument, err ? NULL : &id, err);
}

void __wrap_vm_checkpoint_commit(struct vm *vm, const char *uuid, void (*done)(void *argument, const struct error *err),
                                 void *argument)
{
    (void)vm;
    done(argument, note("commit", uuid));
}

void __wrap_vm_checkpoint_delete(struct vm *vm, const char *which,
                                 void (*done)(void *argument, const struct error *err), void *argument)
{
    (void)vm;
    done(argument, note("delete", which));
}

void __wrap_vm_checkpoint_reset(struct vm *vm, const char *disk, void (*done)(void *argument, const struct error *err),
                                void *argument)
{
    (void)vm;
    done(argument, note("reset", disk));
}

void __wrap_vm_snapshot_create(struct vm *vm, const struct snapshot_options *options,
                               void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                               void *argument)
{
    (void)vm;
    seen.options = *options;
    for (unsigned i = 0; i < options->map_count; i++)
        snprintf(seen.maps[i], sizeof seen.maps[i], "%s", options->maps[i]);
    seen.fails = ENOENT;
    done(argument, NULL, note("snapshot", "")); /* what it returns is the business of other tests */
}

/* The command with arguments that its table lets through; what it answered is in `seen`. */
static void command(const struct control_command *table, const char *name, const char *arguments)
{
    static struct control_server server;
    static struct control_client client = {.server = &server, .lease = (const void *)7};
    struct control_request request = {.server = &server, .client = &client};
    int fails = seen.fails;
    while (table->name && strcmp(table->name, name) != 0)
        table++;
    assert_non_null(table->name);
    memset(&seen, 0, sizeof seen);
    seen.fails = fails;
    request.command = table;
    request.arguments = json_loads(arguments, 0, NULL);
    assert_non_null(request.arguments);
    table->run(&request);
    json_decref(request.arguments);
    seen.fails = 0;
    assert_string_not_equal(seen.answer, "");
}

static void checkpoint(const char *name, const char *arguments)
{
    command(control_commands_checkpoint, name, arguments);
}

static void commands_reach_the_vm(void **state)
{
    (void)state;
    checkpoint("fleece-checkpoint-create", "{\"name\": \"monday\"}");
    assert_string_equal(seen.what, "monday");
    assert_string_equal(seen.answer, "{\"created\": \"1970-01-01T00:00:01.500000Z\", \"created-ns\": 1500000000, "
                                     "\"name\": \"monday\", \"state\": \"committed\", \"uuid\": \"" UUID "\"}");
    checkpoint("fleece-checkpoint-commit", "{\"uuid\": \"" UUID "\"}");
    assert_string_equal(seen.call, "commit");
    assert_string_equal(seen.answer, "{}");
    checkpoint("fleece-checkpoint-delete", "{\"uuid\": \"" UUID "\"}");
    assert_string_equal(seen.what, UUID);
    checkpoint("fleece-checkpoint-delete", "{\"name\": \"monday\"}");
    assert_string_equal(seen.what, "monday");
    checkpoint("fleece-checkpoint-reset", "{\"disk\": \"vda\"}");
    assert_string_equal(seen.call, "reset");
    assert_string_equal(seen.what, "vda");
}

static void errors_have_a_class(void **state)
{
    (void)state;
    static const struct {
        int code;
        const char *answer;
    } cases[] = {
        {ENOENT, "DeviceNotFound: no way"}, {ENODEV, "DeviceNotFound: no way"}, {EBUSY, "GenericError: no way"}};
    for (unsigned i = 0; i < 3; i++) {
        seen.fails = cases[i].code;
        checkpoint("fleece-checkpoint-commit", "{\"uuid\": \"x\"}");
        assert_string_equal(seen.answer, cases[i].answer);
        seen.fails = cases[i].code;
        checkpoint("fleece-checkpoint-create", "{\"name\": \"x\"}");
        assert_string_equal(seen.answer, cases[i].answer);
    }
    checkpoint("fleece-checkpoint-delete", "{}");
    assert_string_equal(seen.answer,
                        "GenericError: fleece-checkpoint-delete takes either 'name' or 'uuid', not neither");
    checkpoint("fleece-checkpoint-delete", "{\"name\": \"x\", \"uuid\": \"y\"}");
    assert_string_equal(seen.answer, "GenericError: fleece-checkpoint-delete takes either 'name' or 'uuid', not both");
    assert_string_equal(seen.call, "");
}

static void a_snapshot_has_what_was_asked_for(void **state)
{
    (void)state;
    command(control_commands_snapshot, "fleece-snapshot-create",
            "{\"lease\": true, \"grace\": 90, \"since\": \"monday\", \"checkpoint\": \"tuesday\", "
            "\"maps\": [\"sunday\", \"" UUID "\"]}");
    assert_string_equal(seen.call, "snapshot");
    assert_true(seen.options.lease == (const void *)7 && seen.options.grace_ns == 90 * NS_PER_S);
    assert_int_equal(seen.options.map_count, 2);
    assert_string_equal(seen.maps[0], "sunday");
    assert_string_equal(seen.maps[1], UUID);
    command(control_commands_snapshot, "fleece-snapshot-create", "{}");
    assert_true(!seen.options.since && !seen.options.checkpoint && seen.options.map_count == 0);
    assert_true(!seen.options.lease && seen.options.grace_ns == 0);
}

static void a_snapshot_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *arguments, *answer;
    } cases[] = {
        {"{\"since\": \"a\", \"bitmap\": \"b\"}",
         "GenericError: Parameters 'since' and 'bitmap' both say what the snapshot needs: give one"},
        {"{\"grace\": 5}", "GenericError: Parameter 'grace' is about a lease: it needs 'lease' to be true"},
        {"{\"grace\": 5, \"lease\": false}",
         "GenericError: Parameter 'grace' is about a lease: it needs 'lease' to be true"},
        {"{\"maps\": [\"a\", 7]}", "GenericError: Parameter 'maps': member 1 must be the name or UUID of a checkpoint"},
        {"{\"maps\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}",
         "GenericError: Parameter 'maps' has 9 members, but must have at most 8"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        command(control_commands_snapshot, "fleece-snapshot-create", cases[i].arguments);
        assert_string_equal(seen.answer, cases[i].answer);
        assert_string_equal(seen.call, "");
    }
}

static void assert_json(json_t *json, const char *wanted)
{
    char *text = json_dumps(json, JSON_SORT_KEYS);
    assert_string_equal(text, wanted);
    free(text);
    json_decref(json);
}

static void checkpoints_are_described(void **state)
{
    (void)state;
    static struct vm_checkpoint one = {.id = {.name = "monday", .uuid = UUID}, .state = CHECKPOINT_PENDING};
    one.disks[0] = (struct vm_checkpoint_disk){.disk = "vda",
                                               .present = true,
                                               .state = CHECKPOINT_PENDING,
                                               .changed_bytes = 8192,
                                               .memory_bytes = 1,
                                               .file_bytes = 2};
    one.disks[1] = (struct vm_checkpoint_disk){
        .disk = "vdb", .present = true, .state = CHECKPOINT_INVALID, .reason = "it was changed by \xff"};
    one.disks[2] = (struct vm_checkpoint_disk){.disk = "vdc", .reason = "it was reset"};
    static struct vm_checkpoints all = {.count = 1, .disk_count = 3, .checkpoints = &one};
    assert_json(
        describe_checkpoints(&all),
        "[{\"created\": \"1970-01-01T00:00:00.000000Z\", \"created-ns\": 0, \"disks\": ["
        "{\"changed\": 8192, \"disk\": \"vda\", \"file-bytes\": 2, \"memory-bytes\": 1, \"state\": \"pending\"}, "
        "{\"changed\": 0, \"disk\": \"vdb\", \"file-bytes\": 0, \"memory-bytes\": 0, "
        "\"reason\": \"it was changed by ?\", \"state\": \"invalid\"}, "
        "{\"disk\": \"vdc\", \"reason\": \"it was reset\", \"state\": \"absent\"}], "
        "\"name\": \"monday\", \"state\": \"pending\", \"uuid\": \"" UUID "\"}]");
    all.count = 0;
    assert_json(describe_checkpoints(&all), "[]");
}

static void tracking_is_described(void **state)
{
    (void)state;
    struct vm_tracking_disk disk = {.disk = "vda"};
    assert_json(describe_tracking(&disk), "{\"state\": \"off\"}");
    disk.reason = "the sidecar is malformed";
    assert_json(describe_tracking(&disk), "{\"reason\": \"the sidecar is malformed\", \"state\": \"invalid\"}");
    disk = (struct vm_tracking_disk){.disk = "vda",
                                     .tracked = true,
                                     .recovery = TRACKER_ADOPTED,
                                     .granularity_bytes = 4096,
                                     .counters = {.activations = 1,
                                                  .log_writes = 2,
                                                  .page_writes = 3,
                                                  .super_writes = 4,
                                                  .syncs = 5,
                                                  .writes_parked = 6,
                                                  .active_now = 7,
                                                  .slots = 960}};
    assert_json(describe_tracking(&disk),
                "{\"activations\": 1, \"active\": 7, \"granularity\": 4096, \"log-writes\": 2, \"page-writes\": 3, "
                "\"recovery\": \"adopted\", \"slots\": 960, \"state\": \"on\", \"super-writes\": 4, \"syncs\": 5, "
                "\"writes-parked\": 6}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_reach_the_vm),
        cmocka_unit_test(errors_have_a_class),
        cmocka_unit_test(a_snapshot_has_what_was_asked_for),
        cmocka_unit_test(a_snapshot_is_refused),
        cmocka_unit_test(checkpoints_are_described),
        cmocka_unit_test(tracking_is_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
