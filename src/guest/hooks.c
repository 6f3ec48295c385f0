/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A hook runs with the daemon's rights, so its file must be root's or the daemon's own, and so must the folder, and all
 * folders on the way to it: whoever may write to one of these may put something else in its place. Group and others must not
 * be able to write to any; but to a folder with the sticky bit, where nobody can rename what is not his.
 *
 * The end of a hook is the end of its first process, or the timeout, after which its whole group is killed. What it starts
 * in the background and leaves running is its own affair; its output is heard as long as the hook runs.
 *
 * A process that sleeps uninterruptibly in the kernel can't be killed: nobody waits for it, but it is remembered as a stray.
 * It may be in the middle of freezing a file system, so its hook is not run again, to thaw that, before it has ended.
 */
#include "guest/hooks.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/name.h"

extern char **environ;

/* ---- which ---- */

static int check_owner(const char *path, const struct stat *stat, struct error *err)
{
    if (stat->st_uid != 0 && stat->st_uid != geteuid())
        return error_set(err, EPERM, "%s is not trusted: it belongs to user %u, who is neither root nor ours", path,
                         (unsigned)stat->st_uid);
    if (stat->st_mode & 022)
        return error_set(err, EPERM, "%s is not trusted: others than its owner can write to it (mode %04o)", path,
                         (unsigned)stat->st_mode & 07777);
    return 0;
}

/* All folders above a path, which is absolute. */
static int check_above(const char *path, struct error *err)
{
    char above[PATH_MAX];
    struct stat stat;
    for (const char *slash = path; (slash = strchr(slash, '/')); slash++) {
        snprintf(above, sizeof above, "%.*s", slash == path ? 1 : (int)(slash - path), path);
        if (lstat(above, &stat) < 0)
            return error_set(err, errno, "%s: %s", above, error_name(errno));
        if (S_ISLNK(stat.st_mode) || (stat.st_mode & S_ISVTX))
            stat.st_mode &= ~(mode_t)022; /* of a link it means nothing */
        int status = check_owner(above, &stat, err);
        if (status < 0)
            return status;
    }
    return 0;
}

/* The folder, the way to it as it is written, and that to which links lead. */
static int check_folder(const char *folder, struct error *err)
{
    struct stat stat;
    char real[PATH_MAX];
    if (lstat(folder, &stat) < 0 || !realpath(folder, real))
        return error_set(err, errno, "the folder of hooks %s can't be read: %s", folder, error_name(errno));
    if (S_ISLNK(stat.st_mode))
        return error_set(err, EPERM, "%s is not trusted: it is a symbolic link", folder);
    int status = check_owner(folder, &stat, err);
    if (status == 0)
        status = check_above(folder, err);
    return status == 0 ? check_above(real, err) : status;
}

static int add_hook(struct hook_list *list, const char *name, struct error *err)
{
    char path[PATH_MAX + LIMIT_NAME_BYTES + 2];
    struct stat stat;
    if (name[0] == '.' || name_check("hook", name, NULL) < 0)
        return 0;
    snprintf(path, sizeof path, "%s/%s", list->folder, name);
    if (lstat(path, &stat) < 0)
        return 0; /* gone meanwhile */
    if (S_ISLNK(stat.st_mode))
        return error_set(err, EPERM, "%s is not trusted: it is a symbolic link", path);
    if (!S_ISREG(stat.st_mode) || access(path, X_OK) < 0)
        return 0;
    int status = check_owner(path, &stat, err);
    if (status < 0)
        return status;
    if (list->count == LIMIT_HOOKS)
        return error_set(err, ENOSPC, "%s has more than %d hooks", list->folder, LIMIT_HOOKS);
    snprintf(list->names[list->count++], sizeof list->names[0], "%s", name);
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

int hooks_find(struct hook_list *list, struct error *err)
{
    list->count = 0;
    int status = check_folder(list->folder, err);
    if (status < 0)
        return status;
    DIR *folder = opendir(list->folder);
    if (!folder)
        return error_set(err, errno, "the folder of hooks %s can't be read: %s", list->folder, error_name(errno));
    for (struct dirent *entry; status == 0 && (entry = readdir(folder));)
        status = add_hook(list, entry->d_name, err);
    closedir(folder);
    qsort(list->names, list->count, sizeof list->names[0], compare_names);
    return status;
}

/* ---- running ---- */

struct output {
    const char *name;
    char line[LIMIT_HOOK_LINE_BYTES];
    size_t used, total;
};

static void say_line(struct output *output)
{
    for (size_t i = 0; i < output->used; i++)
        if ((unsigned char)output->line[i] < ' ')
            output->line[i] = '?';
    if (output->used > 0)
        log_info("hook %s: %.*s", output->name, (int)output->used, output->line);
    output->used = 0;
}

static void take_output(struct output *output, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length && output->total < LIMIT_HOOK_OUTPUT_BYTES; i++, output->total++) {
        if (bytes[i] == '\n' || output->used == sizeof output->line)
            say_line(output);
        if (bytes[i] != '\n')
            output->line[output->used++] = bytes[i];
    }
}

/* False: there is no more now. */
static bool read_output(struct output *output, int fd)
{
    char bytes[1024];
    ssize_t length = read(fd, bytes, sizeof bytes);
    if (length > 0)
        take_output(output, bytes, (size_t)length);
    return length > 0;
}

/* Our environment and two words more. NULL: no memory. The strings are the caller's. */
static char **make_environment(char *vm, char *snapshot)
{
    size_t count = 0;
    while (environ[count])
        count++;
    char **made = calloc(count + 3, sizeof *made);
    if (!made)
        return NULL;
    memcpy(made, environ, count * sizeof *made);
    made[count] = vm;
    made[count + 1] = snapshot;
    return made;
}

/* 0 or an errno. */
static int spawn(const char *path, const char *verb, char **environment, int output, pid_t *child)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char *const arguments[] = {(char *)(uintptr_t)path, (char *)(uintptr_t)verb, NULL};
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    posix_spawn_file_actions_addchdir_np(&actions, "/");
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none); /* ours blocks what the daemon ends by */
    posix_spawnattr_setsigdefault(&attributes, &all);
    int problem = posix_spawn(child, path, &actions, &attributes, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return problem;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

struct process_facts {
    char state;
    int group;
    unsigned long long began;
};

/* False: no process with that number lives. */
static bool look_at_process(const char *number, struct process_facts *facts)
{
    char path[NAME_MAX + 16], text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", number);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    const char *rest = strrchr(text, ')'); /* behind the name, which may hold anything, the 22nd word is the 20th */
    return rest &&
           sscanf(rest + 1, " %c %*s %d %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
                  &facts->state, &facts->group, &facts->began) == 3 &&
           facts->state != 'Z' && facts->state != 'X';
}

/* When it began; 0: no process with that number lives. */
static uint64_t began(pid_t process)
{
    char number[16];
    struct process_facts facts;
    snprintf(number, sizeof number, "%d", (int)process);
    return look_at_process(number, &facts) ? facts.began : 0;
}

/* Whether one of a group sleeps uninterruptibly. What else is left of it has been killed, or was left running on purpose. */
static bool group_sleeps(pid_t group)
{
    struct process_facts facts;
    bool sleeps = false;
    DIR *folder = opendir("/proc");
    for (struct dirent *entry; folder && !sleeps && (entry = readdir(folder));)
        sleeps = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && look_at_process(entry->d_name, &facts) &&
                 facts.group == group && facts.state == 'D';
    if (folder)
        closedir(folder);
    return sleeps;
}

/* Whether a hook that was killed is there still. */
static bool is_left(const struct hook_process *process)
{
    return (process->began != 0 && began((pid_t)process->number) == process->began) ||
           group_sleeps((pid_t)process->number);
}

/* ---- strays ---- */

static void add_stray(struct hook_strays *strays, const char *name, const struct hook_process *process)
{
    assert(strays->count < LIMIT_HOOKS);
    snprintf(strays->each[strays->count].name, sizeof strays->each[0].name, "%s", name);
    strays->each[strays->count++].process = *process;
}

/* Forgets those that have ended. */
static void settle_strays(struct hook_strays *strays)
{
    for (unsigned i = strays->count; i-- > 0;) {
        const struct hook_process *process = &strays->each[i].process;
        (void)waitpid((pid_t)process->number, NULL, WNOHANG); /* if it was ours */
        if (!is_left(process))
            strays->each[i] = strays->each[--strays->count];
    }
}

static const struct hook_process *find_stray(const struct hook_strays *strays, const char *name)
{
    for (unsigned i = 0; i < strays->count; i++)
        if (strcmp(strays->each[i].name, name) == 0)
            return &strays->each[i].process;
    return NULL;
}

static bool is_cut_short(const struct hook_run *run)
{
    return atomic_load(run->cut_short);
}

/* Waits a moment for what was killed. */
static int check_strays(struct hook_run *run)
{
    const char *name = run->list->names[run->index];
    const struct hook_process *stray = NULL;
    for (const uint64_t until_ns = now_ns() + HOOK_KILL_NS;; poll(NULL, 0, HOOK_POLL_MS)) {
        settle_strays(run->strays);
        stray = find_stray(run->strays, name);
        if ((!stray && run->strays->count < LIMIT_HOOKS) || now_ns() >= until_ns || is_cut_short(run))
            break;
    }
    if (stray)
        return error_set(&run->error, EBUSY,
                         "hook %s %s is not run: it was killed before, and process %lld or one of its group has not "
                         "ended: it sleeps in the kernel",
                         name, run->verb, (long long)stray->number);
    if (run->strays->count == LIMIT_HOOKS)
        return error_set(&run->error, EBUSY,
                         "hook %s %s is not run: %d processes of hooks were killed and have not ended", name, run->verb,
                         LIMIT_HOOKS);
    return 0;
}

void hook_kill(const struct hook_process *process, const char *name, struct hook_strays *strays)
{
    const pid_t number = (pid_t)process->number;
    if (number <= 1 || process->began == 0 || !is_left(process))
        return;
    if (began(number) == process->began) {
        kill(-number, SIGKILL);
        kill(number, SIGKILL);
    }
    add_stray(strays, name, process);
}

/* ---- from its start to its end ---- */

/* Hears it until it ends or the time is over. Whether it has ended. */
static bool attend(const struct hook_run *run, int process, int pipe, struct output *output)
{
    const uint64_t until_ns = now_ns() + run->timeout_ns;
    struct pollfd wait[] = {{.fd = process, .events = POLLIN}, {.fd = pipe, .events = POLLIN}};
    for (;;) {
        if (now_ns() >= until_ns || is_cut_short(run))
            return false;
        if (poll(wait, 2, HOOK_POLL_MS) <= 0)
            continue;
        if (wait[1].revents && !read_output(output, pipe))
            wait[1].fd = -1; /* it has closed its end */
        if (wait[0].revents)
            return true;
    }
}

/* Kills it with its group; whether it has ended by that. */
static bool end_process(const struct hook_run *run, const struct hook_process *process)
{
    const pid_t number = (pid_t)process->number;
    const uint64_t until_ns = now_ns() + HOOK_KILL_NS;
    kill(-number, SIGKILL);
    kill(number, SIGKILL); /* it may have gone to another group */
    for (;;) {
        (void)waitpid(number, NULL, WNOHANG);
        if (!is_left(process))
            return true;
        if (now_ns() >= until_ns)
            break;
        poll(NULL, 0, HOOK_POLL_MS);
    }
    add_stray(run->strays, run->list->names[run->index], process);
    return false;
}

static void judge(struct hook_run *run, const char *name, bool ended, bool killed, int status)
{
    if (!ended && !killed)
        error_set(&run->error, ETIMEDOUT, "hook %s %s did not end, and can't be killed: it sleeps in the kernel", name,
                  run->verb);
    else if (!ended && is_cut_short(run))
        error_set(&run->error, ECANCELED, "hook %s %s was killed, since the daemon ends", name, run->verb);
    else if (!ended)
        error_set(&run->error, ETIMEDOUT, "hook %s %s did not end within %.1f s, and was killed", name, run->verb,
                  (double)run->timeout_ns / (double)NS_PER_S);
    else if (WIFSIGNALED(status))
        error_set(&run->error, EINTR, "hook %s %s was ended by signal %d", name, run->verb, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        error_set(&run->error, EIO, "hook %s %s failed with status %d", name, run->verb, WEXITSTATUS(status));
}

/* Once more, for it may be long ago that it was found. */
static int check_again(struct hook_run *run, const char *path)
{
    struct stat stat;
    int status = check_folder(run->list->folder, &run->error);
    if (status == 0 && lstat(path, &stat) < 0)
        status = error_set(&run->error, errno, "hook %s: %s", path, error_name(errno));
    run->is_gone = status == -ENOENT;
    return status < 0 ? status : check_owner(path, &stat, &run->error);
}

static void run_program(struct hook_run *run, const char *path, char **environment, const int pipe[2])
{
    struct output output = {.name = run->list->names[run->index]};
    pid_t child;
    int status = 0;
    bool killed = true;
    int problem = spawn(path, run->verb, environment, pipe[1], &child);
    if (problem) {
        error_set(&run->error, problem, "hook %s can't be started: %s", path, error_name(problem));
        return;
    }
    run->was_started = true;
    int process = (int)syscall(SYS_pidfd_open, child, 0);
    const struct hook_process started = {child, began(child)};
    if (run->started)
        run->started(run->started_argument, &started);
    bool ended = process >= 0 && attend(run, process, pipe[0], &output);
    if (!ended)
        killed = end_process(run, &started);
    while (ended && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    while (read_output(&output, pipe[0]) && output.total < LIMIT_HOOK_OUTPUT_BYTES)
        ;
    say_line(&output);
    if (process >= 0)
        close(process);
    judge(run, output.name, ended, killed, status);
}

int64_t hook_run(void *argument)
{
    struct hook_run *run = argument;
    char path[PATH_MAX + LIMIT_NAME_BYTES + 2], vm[LIMIT_NAME_BYTES + 16], snapshot[LIMIT_NAME_BYTES + 32];
    int pipe[2];
    assert(run->index < run->list->count);
    run->error = (struct error){0};
    run->was_started = false;
    snprintf(path, sizeof path, "%s/%s", run->list->folder, run->list->names[run->index]);
    if (check_again(run, path) < 0 || check_strays(run) < 0)
        return -run->error.code;
    snprintf(vm, sizeof vm, "FLEECE_VM=%s", run->vm);
    snprintf(snapshot, sizeof snapshot, "FLEECE_SNAPSHOT=%s", run->snapshot);
    char **environment = make_environment(vm, snapshot);
    if (!environment)
        return error_set(&run->error, ENOMEM, "no memory to run hook %s", path);
    if (pipe2(pipe, O_CLOEXEC) < 0) {
        error_set(&run->error, errno, "hook %s can't be started: %s", path, error_name(errno));
    } else {
        fcntl(pipe[0], F_SETFL, O_NONBLOCK);
        run_program(run, path, environment, pipe);
        close(pipe[0]);
        close(pipe[1]);
    }
    free(environment);
    return -run->error.code;
}
