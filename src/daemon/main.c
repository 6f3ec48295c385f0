/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleeced: from the command line to the daemon. */
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/guest.h"

/* Signals that end the daemon are read by the control thread; a lost connection is an error, not a signal. */
static void prepare_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a cache file beyond the limit of file sizes is an error, too */
}

/* Thousands of connections need more descriptors than the soft limit of old gives. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int print(const char *text)
{
    return fputs(text, stdout) < 0 || fflush(stdout) != 0;
}

int main(int argc, char **argv)
{
    struct options options;
    struct error err;
    int code = EXIT_USAGE;
    if (options_parse(&options, argc, argv, &err) < 0)
        log_error("%s", err.text);
    else if (options.action == OPTIONS_HELP)
        code = print(options_help);
    else if (options.action == OPTIONS_VERSION)
        code = print("fleeced " FLEECE_VERSION "\n");
    else if (options.action == OPTIONS_THAW)
        code = guest_thaw_only(&options);
    else {
        prepare_signals();
        raise_descriptor_limit();
        code = daemon_run(&options);
    }
    options_fini(&options);
    return code;
}
