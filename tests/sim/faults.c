/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "faults.h"

#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

struct mutant *fault_find(const char *name)
{
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++)
        if (strcmp(mutant->name, name) == 0)
            return mutant;
    return NULL;
}

bool fault_is_caught(struct mutant *mutant, int (*script)(void), unsigned seconds)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(0);
        mutant->on = true;
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = seconds}, NULL);
        _exit(script() == 0 ? 0 : 1);
    }
    int status = 0;
    const bool caught = child > 0 && waitpid(child, &status, 0) == child &&
                        !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    printf("%-32s %s\n", mutant->name, caught ? "caught" : "NOT CAUGHT");
    return caught;
}
