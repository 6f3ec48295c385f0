/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Work that is killed before or after each of its system calls. After <cmocka.h>. */
#ifndef FLEECE_TESTS_UNIT_KILL_STEPS_H
#define FLEECE_TESTS_UNIT_KILL_STEPS_H

#include <signal.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

/* Whether processes may be traced here at all. */
static inline bool kill_steps_allowed(void)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status == 0;
}

/* Runs work() in a child and kills it at its `stop`-th system call stop. False: it ended before, without an error. */
static inline bool kill_steps_run(int (*work)(struct error *err), unsigned stop)
{
    pid_t child = fork();
    if (child == 0) {
        struct error err;
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(work(&err) < 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSTOPPED(status));
    for (unsigned i = 0; i < stop && !WIFEXITED(status); i++) {
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
        assert_int_equal(waitpid(child, &status, 0), child);
    }
    if (WIFEXITED(status)) {
        assert_int_equal(WEXITSTATUS(status), 0);
        return false;
    }
    kill(child, SIGKILL);
    while (waitpid(child, &status, 0) == child && !WIFSIGNALED(status) && !WIFEXITED(status))
        continue;
    return true;
}

#endif
