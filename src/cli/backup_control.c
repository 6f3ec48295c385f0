/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control connection of a backup. Commands run on a helper thread, so that a signal can end them. While a copy runs the
 * connection is watched: an event that the snapshot broke, or the end of the daemon, ends the copy at once and gives the
 * reason that the user is told; errors of reads alone would only say that reading failed.
 */
#include "cli/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fleece/fleece.h"

const char *backup_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

void backup_reason(char *reason, const char *text)
{
    size_t length = strlen(text);
    if (length >= LIMIT_REASON_BYTES) {
        length = LIMIT_REASON_BYTES - 1;
        while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) /* in the middle of a character */
            length--;
    }
    memcpy(reason, text, length);
    reason[length] = '\0';
}

struct execution { /* one command, on a helper thread */
    struct fleece *fleece;
    const char *command;
    char *arguments, *reply;
    char error[FLEECE_ERROR_BYTES];
};

static int64_t execute_blocking(void *argument)
{
    struct execution *execution = argument;
    execution->reply = fleece_execute(execution->fleece, execution->command, execution->arguments, execution->error);
    return 0;
}

int backup_execute(struct backup *backup, const char *command, json_t *arguments, json_t **result, struct error *err)
{
    struct execution execution = {.fleece = backup->fleece, .command = command};
    execution.arguments = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    json_decref(arguments);
    transfer_block(&backup->transfer, execute_blocking, &execution, fleece_descriptor(backup->fleece));
    free(execution.arguments);
    if (!execution.reply)
        return error_set(err, EIO, "%s", execution.error);
    *result = json_loads(execution.reply, JSON_DECODE_ANY, NULL);
    free(execution.reply);
    return *result ? 0 : error_set(err, EIO, "the daemon's answer to %s is not JSON", command);
}

static void note_broken(struct backup *backup, const char *reason)
{
    snprintf(backup->cause, sizeof backup->cause, "the snapshot broke in mid-backup: %s",
             reason[0] ? reason : "no reason given");
}

bool backup_control_readable(void *context)
{
    struct backup *backup = context;
    char error[FLEECE_ERROR_BYTES] = "";
    char *text;
    while ((text = fleece_event(backup->fleece, 0, error)) != NULL) {
        json_t *event = json_loads(text, 0, NULL), *data = json_object_get(event, "data");
        if (strcmp(backup_text(event, "event"), "FLEECE_SNAPSHOT_BROKEN") == 0 &&
            strcmp(backup_text(data, "name"), backup->snapshot) == 0)
            note_broken(backup, backup_text(data, "reason"));
        else if (strcmp(backup_text(event, "event"), "FLEECE_SNAPSHOT_DELETED") == 0 &&
                 strcmp(backup_text(data, "name"), backup->snapshot) == 0)
            snprintf(backup->cause, sizeof backup->cause, "the snapshot %s was deleted in mid-backup",
                     backup->snapshot);
        json_decref(event);
        free(text);
    }
    backup->lost |= error[0] != '\0';
    if (error[0] && !backup->cause[0])
        snprintf(backup->cause, sizeof backup->cause, "%s", error);
    return backup->cause[0] == '\0';
}

void backup_find_cause(struct backup *backup)
{
    struct error err;
    json_t *snapshots = NULL, *snapshot;
    size_t i;
    if (!backup_control_readable(backup) || !backup->snapshot[0])
        return;
    if (backup_execute(backup, "fleece-query-snapshots", NULL, &snapshots, &err) < 0) {
        backup->lost = true; /* reading ended a moment before the control connection did */
        snprintf(backup->cause, sizeof backup->cause, "%s", err.text);
        return;
    }
    bool found = false;
    json_array_foreach (snapshots, i, snapshot) {
        if (strcmp(backup_text(snapshot, "name"), backup->snapshot) != 0)
            continue;
        found = true;
        if (strcmp(backup_text(snapshot, "state"), "broken") == 0)
            note_broken(backup, backup_text(snapshot, "reason"));
    }
    if (!found)
        snprintf(backup->cause, sizeof backup->cause, "the snapshot %s was deleted in mid-backup", backup->snapshot);
    json_decref(snapshots);
}
