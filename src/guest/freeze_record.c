/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lines of text, the first and the last of which say that it is one and that it is whole:
 *
 *     fleeced freeze 1
 *     snapshot nightly
 *     agent unix:/run/web1/agent.sock
 *     folder /etc/fleece/hooks
 *     hook 10-database
 *     running 4711 1093205
 *     end
 *
 * It is written under another name and renamed, so that a kill leaves the old one or the new one.
 */
#include "guest/freeze_record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/name.h"

static const char head[] = "fleeced freeze 1";

static size_t write_text(const struct freeze_record *record, char text[LIMIT_FREEZE_RECORD_BYTES])
{
    size_t used = (size_t)snprintf(text, LIMIT_FREEZE_RECORD_BYTES, "%s\nsnapshot %s\n", head, record->snapshot);
    if (record->agent[0])
        used += (size_t)snprintf(text + used, LIMIT_FREEZE_RECORD_BYTES - used, "agent %s\n", record->agent);
    if (record->hooks.count > 0)
        used += (size_t)snprintf(text + used, LIMIT_FREEZE_RECORD_BYTES - used, "folder %s\n", record->hooks.folder);
    for (unsigned i = 0; i < record->hooks.count; i++)
        used += (size_t)snprintf(text + used, LIMIT_FREEZE_RECORD_BYTES - used, "hook %s\n", record->hooks.names[i]);
    if (record->running.number)
        used += (size_t)snprintf(text + used, LIMIT_FREEZE_RECORD_BYTES - used, "running %" PRId64 " %" PRIu64 "\n",
                                 record->running.number, record->running.began);
    used += (size_t)snprintf(text + used, LIMIT_FREEZE_RECORD_BYTES - used, "end\n");
    return used;
}

int freeze_record_store(const char *path, const struct freeze_record *record, struct error *err)
{
    char text[LIMIT_FREEZE_RECORD_BYTES], unfinished[PATH_MAX + 8];
    const size_t length = write_text(record, text);
    snprintf(unfinished, sizeof unfinished, "%s.new", path);
    int fd = open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool is_written = fd >= 0 && write(fd, text, length) == (ssize_t)length;
    int problem = is_written ? 0 : errno ? errno : ENOSPC;
    if (fd >= 0)
        close(fd);
    if (is_written && rename(unfinished, path) == 0)
        return 0;
    if (is_written)
        problem = errno;
    unlink(unfinished);
    return error_set(err, problem, "the freeze can't be noted in %s: %s", path, error_name(problem));
}

/* One line. False: it is not right. */
static bool read_line(struct freeze_record *record, const char *line)
{
    struct hook_list *hooks = &record->hooks;
    if (strncmp(line, "snapshot ", 9) == 0 && strlen(line + 9) < sizeof record->snapshot)
        return strcpy(record->snapshot, line + 9);
    if (strncmp(line, "agent unix:/", 12) == 0 && strlen(line + 6) < sizeof record->agent)
        return strcpy(record->agent, line + 6);
    if (strncmp(line, "folder /", 8) == 0 && strlen(line + 7) < sizeof hooks->folder)
        return strcpy(hooks->folder, line + 7);
    if (strncmp(line, "hook ", 5) == 0 && name_check("hook", line + 5, NULL) == 0 && hooks->folder[0] &&
        hooks->count < LIMIT_HOOKS)
        return strcpy(hooks->names[hooks->count++], line + 5);
    if (strncmp(line, "running ", 8) == 0)
        return sscanf(line + 8, "%9" SCNd64 " %19" SCNu64, &record->running.number, &record->running.began) == 2;
    return false;
}

int freeze_record_load(const char *path, struct freeze_record *record, struct error *err)
{
    char text[LIMIT_FREEZE_RECORD_BYTES + 1], *rest = NULL;
    *record = (struct freeze_record){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return -ENOENT;
    ssize_t length = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    int problem = length < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (problem) {
        error_set(err, problem, "the record of a freeze %s can't be read: %s", path, error_name(problem));
        return -EINVAL;
    }
    text[length] = 0;
    const char *line = strtok_r(text, "\n", &rest);
    bool is_right = line && strcmp(line, head) == 0, is_whole = false;
    while (is_right && !is_whole && (line = strtok_r(NULL, "\n", &rest))) {
        is_whole = strcmp(line, "end") == 0;
        is_right = is_whole || read_line(record, line);
    }
    if (is_right && is_whole)
        return 0;
    *record = (struct freeze_record){0};
    return error_set(err, EINVAL, "%s is not a record of a freeze", path);
}

void freeze_record_remove(const char *path)
{
    unlink(path);
}
