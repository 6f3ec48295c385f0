/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The commands of the client `fleece`: one file per command, each with one `const struct cli_command` that
 * main.c lists.
 *
 * What a command prints: results on stdout, everything else on stderr. Errors are one sentence, "fleece:
 * SENTENCE", made by cli_fail(), cli_usage() or cli_warn(); a command returns what they return. With --json,
 * stdout gets one JSON object a line and nothing else.
 */
#ifndef FLEECE_CLI_COMMAND_H
#define FLEECE_CLI_COMMAND_H

#include <stdbool.h>

struct fleece;

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,         /* the command line is wrong; nothing was done */
    CLI_WARNING = 3,       /* done, with a warning that the manual page names */
    CLI_INTERRUPTED = 130, /* by SIGINT or SIGTERM; nothing is left behind */
};

struct cli {             /* what the options before the command say */
    const char *vm;      /* NULL: not given */
    const char *control; /* NULL: not given */
    bool json;
    const struct cli_command *command; /* that runs */
};

struct cli_command {
    const char *name;
    const char *arguments; /* for the usage line: "create [NAME] [--drain-timeout SECONDS] | list | delete NAME" */
    const char *summary;   /* one line for --help */
    /* argv[0] is the command's name; the options of a command are its own business (getopt_long; optind is 0
     * at entry, and opterr is off: say it with cli_usage()). Returns an enum cli_exit. */
    int (*run)(struct cli *cli, int argc, char **argv);
};

extern const struct cli_command cli_status, cli_snapshot, cli_checkpoint, cli_bitmap, cli_cache, cli_qmp, cli_backup,
    cli_list, cli_resize, cli_verify, cli_restore, cli_push, cli_prune, cli_audit;

/* "fleece: SENTENCE" on stderr; returns CLI_FAILED. */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, then the usage line of the command (of fleece itself, when none runs yet); returns CLI_USAGE. */
int cli_usage(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for what getopt_long() refused just now: its '?' or ':' with `option` = argv[optind - 1]. `--help` of a command
 * never gets there. */
int cli_usage_option(const struct cli *cli, int result, char *const *argv);
/* "fleece: warning: SENTENCE" on stderr; returns CLI_WARNING. */
int cli_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "fleece: note: SENTENCE" on stderr: of what is right, but perhaps not what was meant. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Connects to the daemon that --vm or --control names. CLI_DONE, or what the command returns: the error has
 * been said. */
int cli_connect(const struct cli *cli, struct fleece **fleece);
/* After cli_connect(), when the connection is lost: another one, or NULL, of which nothing is said. */
struct fleece *cli_connect_again(const struct cli *cli);
/* Executes and returns the JSON text of "return" (free() it); NULL: the error has been said, return
 * CLI_FAILED. */
char *cli_execute(struct fleece *fleece, const char *command, const char *arguments);

#endif
