/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "runner.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/probe.h"

enum { JOBS_MAX = 64, PROBES_MAX = 512, MUTANTS_MAX = 256, NOT_IN_THE_CODE = 3 };

extern struct probe __start_fleece_probes[], __stop_fleece_probes[];
extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

struct arguments {
    const struct runner *runner;
    uint64_t from, to, enough;
    bool trace, probes, one;
    unsigned jobs, requests;
    const char *mutants;
};

struct job { /* in memory that a child shares with this process */
    volatile uint64_t seed;
    struct runner_result sum;
    uint64_t seeds;
    unsigned long hits[PROBES_MAX];
};

static size_t probe_count(void)
{
    return (size_t)(__stop_fleece_probes - __start_fleece_probes);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static struct job *jobs_create(const struct runner *runner)
{
    struct job *jobs = mmap(NULL, JOBS_MAX * sizeof(struct job), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                            0);
    if (jobs == MAP_FAILED || probe_count() > PROBES_MAX) {
        fprintf(stderr, "%s: no shared memory, or more than %d probes\n", runner->name, PROBES_MAX);
        exit(1);
    }
    return jobs;
}

/* The child has ended well: now its leaks are looked for, unless they may be a killed process's. */
static void __attribute__((noreturn)) end(const struct runner *runner, int code)
{
    fflush(stdout);
    if (runner->kills)
        _exit(code);
    exit(code);
}

/* ---- seeds ---- */

static void run_batch(const struct arguments *arguments, struct job *job, uint64_t from, uint64_t to, unsigned requests)
{
    for (uint64_t seed = from; seed <= to; seed++) {
        job->seed = seed;
        const struct runner_result result = arguments->runner->run(
            &(struct runner_seed){.seed = seed, .trace = arguments->trace, .requests = requests});
        for (unsigned i = 0; i < RUNNER_SUMS; i++)
            job->sum.sums[i] += result.sums[i];
        job->seeds++;
    }
    for (size_t i = 0; i < probe_count(); i++)
        job->hits[i] += __start_fleece_probes[i].hits;
}

/* Whether the child ended well; says how it did not. */
static bool child_passed(const struct runner *runner, const struct job *job, int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    unsigned long long seed = job->seed;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: seed %llu: ended by signal %d (%s)\n", runner->name, seed, WTERMSIG(status),
                strsignal(WTERMSIG(status)));
    else
        fprintf(stderr, "%s: seed %llu failed\n", runner->name, seed);
    fprintf(stderr, "run it again: %s --seed %llu --trace\n", runner->name, seed);
    return false;
}

/* Probes of one name (in inlined or repeated code) count together. */
static unsigned count_unreached(const struct arguments *arguments, const struct job *jobs)
{
    unsigned unreached = 0;
    for (size_t i = 0; i < probe_count(); i++) {
        const char *name = __start_fleece_probes[i].name;
        unsigned long hits = 0;
        bool first = true;
        for (size_t k = 0; k < probe_count(); k++) {
            if (strcmp(__start_fleece_probes[k].name, name) != 0)
                continue;
            first = first && k >= i;
            for (unsigned job = 0; job < arguments->jobs; job++)
                hits += jobs[job].hits[k];
        }
        if (hits > 0 || !first || !arguments->runner->is_mine(name))
            continue;
        fprintf(stderr, "%s: the probe %s was never reached\n", arguments->runner->name, name);
        unreached++;
    }
    return unreached;
}

static bool is_enough(const struct arguments *arguments, const struct job *jobs, uint64_t next)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < arguments->jobs; i++)
        sum += jobs[i].sum.sums[0];
    return arguments->enough ? sum >= arguments->enough : next > arguments->to;
}

static pid_t start_batch(const struct arguments *arguments, struct job *job, uint64_t from)
{
    uint64_t to = from + arguments->runner->batch - 1;
    if (!arguments->enough && to > arguments->to)
        to = arguments->to;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        run_batch(arguments, job, from, to, arguments->requests);
        end(arguments->runner, 0);
    }
    return child;
}

static int sum_up(const struct arguments *arguments, const struct job *jobs, double seconds, bool passed)
{
    struct runner_result sum = {0};
    uint64_t seeds = 0;
    for (unsigned i = 0; i < arguments->jobs; i++) {
        seeds += jobs[i].seeds;
        for (unsigned k = 0; k < RUNNER_SUMS; k++)
            sum.sums[k] += jobs[i].sum.sums[k];
    }
    unsigned unreached = passed && arguments->probes ? count_unreached(arguments, jobs) : 0;
    printf("%s: %llu seeds passed in %.1f s (%.0f a second); %zu probes, %u never reached\n", arguments->runner->name,
           (unsigned long long)seeds, seconds, (double)seeds / seconds, probe_count(), unreached);
    if (arguments->runner->print)
        arguments->runner->print(&sum);
    return passed && unreached == 0 ? 0 : 1;
}

static int run_seeds(const struct arguments *arguments)
{
    struct job *jobs = jobs_create(arguments->runner);
    pid_t children[JOBS_MAX] = {0};
    double start = seconds_now();
    uint64_t next = arguments->from;
    unsigned running = 0;
    bool passed = true;
    for (;;) {
        for (unsigned i = 0; i < arguments->jobs && passed && !is_enough(arguments, jobs, next); i++) {
            if (children[i])
                continue;
            children[i] = start_batch(arguments, &jobs[i], next);
            next += arguments->runner->batch;
            running++;
        }
        if (running == 0)
            break;
        int status = 1;
        pid_t child = wait(&status);
        for (unsigned i = 0; i < arguments->jobs; i++) {
            if (children[i] != child)
                continue;
            children[i] = 0;
            running--;
            passed = child_passed(arguments->runner, &jobs[i], status) && passed;
        }
    }
    return sum_up(arguments, jobs, seconds_now() - start, passed);
}

/* The same seed must give the same run: else no failure could be repeated. */
static void __attribute__((noreturn)) run_one(const struct arguments *arguments)
{
    struct runner_seed seed = {.seed = arguments->from, .trace = arguments->trace, .requests = arguments->requests};
    const struct runner_result result = arguments->runner->run(&seed);
    seed.trace = false;
    bool same = arguments->runner->run(&seed).hash == result.hash;
    printf("%s: seed %llu passed, hash %016llx%s\n", arguments->runner->name, (unsigned long long)arguments->from,
           (unsigned long long)result.hash, same ? "" : "; a second run of it was different");
    if (arguments->runner->print)
        arguments->runner->print(&result);
    end(arguments->runner, same ? 0 : 1);
}

/* ---- mutants ---- */

static bool mutant_select(const char *name)
{
    bool found = false;
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        mutant->on = strcmp(mutant->name, name) == 0;
        found = found || mutant->on;
    }
    return found;
}

struct fault {
    char name[64];
    unsigned long long seed; /* the one that is tried before all others; 0: none */
};

enum which { ALL, IN_LONG_RUNS, IN_EACH_RUN };

/* A line that begins with '~' is a fault that takes a minute or more to show itself: it is tried in long runs only; one that
 * begins with '=' is not tried here: a script goes to where it shows itself. */
static unsigned mutants_read(const struct arguments *arguments, enum which which, struct fault *faults)
{
    FILE *file = fopen(arguments->mutants, "r");
    if (file == NULL) {
        fprintf(stderr, "%s: cannot read %s: %s\n", arguments->runner->name, arguments->mutants, strerror(errno));
        exit(2);
    }
    unsigned count = 0;
    for (char line[512]; fgets(line, sizeof line, file) != NULL && count < MUTANTS_MAX;) {
        const bool rare = line[0] == '~', scripted = line[0] == '=';
        faults[count].seed = 0;
        if (line[0] != '#' && (!rare || which != IN_EACH_RUN) && (!scripted || which == ALL) &&
            sscanf(line + (rare || scripted), "%63[^@ \n]@%llu", faults[count].name, &faults[count].seed) >= 1)
            count++;
    }
    fclose(file);
    return count;
}

/* Every mutant of the code is in the list. */
static unsigned count_unlisted(const struct arguments *arguments, const struct fault *faults, unsigned count)
{
    unsigned unlisted = 0;
    for (const struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        bool listed = !arguments->runner->is_mine(mutant->name);
        for (unsigned i = 0; i < count; i++)
            listed = listed || strcmp(faults[i].name, mutant->name) == 0;
        if (!listed) {
            fprintf(stderr, "%s: the mutant %s is not in the list\n", arguments->runner->name, mutant->name);
            unlisted++;
        }
    }
    return unlisted;
}

/* In a child: seeds with the fault switched on, until one shows it. from 0: the one that the list names; else a batch. */
static pid_t start_mutant(const struct arguments *arguments, const struct fault *fault, struct job *job, uint64_t from)
{
    fflush(stdout);
    pid_t child = fork();
    if (child != 0)
        return child;
    if (!freopen("/dev/null", "w", stderr) || !mutant_select(fault->name))
        _exit(NOT_IN_THE_CODE);
    uint64_t first = from > 0 ? from : fault->seed, last = from > 0 ? from + arguments->runner->batch - 1 : first;
    for (uint64_t seed = first; seed <= last; seed++) {
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = arguments->runner->mutant_seconds}, NULL);
        run_batch(arguments, job, seed, seed, arguments->runner->mutant_requests);
    }
    _exit(0);
}

static bool mutant_caught(const char *name, const struct job *job, int status)
{
    unsigned long long seed = job->seed;
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == NOT_IN_THE_CODE)) {
        printf("%-32s %s\n", name, WEXITSTATUS(status) == 0 ? "NOT CAUGHT" : "is not in the code");
        return false;
    }
    printf("%-32s caught at seed %llu: %s\n", name, seed,
           !WIFSIGNALED(status)          ? "the oracle"
           : WTERMSIG(status) == SIGPROF ? "hang"
                                         : strsignal(WTERMSIG(status)));
    return true;
}

static int run_mutants(const struct arguments *arguments)
{
    static struct fault faults[MUTANTS_MAX];
    const struct runner *runner = arguments->runner;
    const char *mode = getenv("FLEECE_CHECK");
    unsigned unlisted = count_unlisted(arguments, faults, mutants_read(arguments, ALL, faults));
    const bool is_long = mode && strcmp(mode, "long") == 0;
    unsigned count = mutants_read(arguments, is_long ? IN_LONG_RUNS : IN_EACH_RUN, faults);
    unsigned next = 0, running = 0, caught = 0, whose[JOBS_MAX];
    struct job *jobs = jobs_create(runner);
    pid_t children[JOBS_MAX] = {0};
    uint64_t from[JOBS_MAX];
    double start = seconds_now();
    while (next < count || running > 0) {
        for (unsigned i = 0; i < arguments->jobs && next < count; i++) {
            if (children[i])
                continue;
            whose[i] = next++;
            from[i] = faults[whose[i]].seed ? 0 : arguments->from;
            children[i] = start_mutant(arguments, &faults[whose[i]], &jobs[i], from[i]);
            running++;
        }
        int status = 0;
        pid_t child = wait(&status);
        for (unsigned i = 0; i < arguments->jobs; i++) {
            if (children[i] != child)
                continue;
            from[i] = from[i] > 0 ? from[i] + runner->batch : arguments->from;
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && from[i] < arguments->from + runner->mutant_seeds) {
                children[i] = start_mutant(arguments, &faults[whose[i]], &jobs[i], from[i]); /* it goes on */
                continue;
            }
            children[i] = 0;
            running--;
            caught += mutant_caught(faults[whose[i]].name, &jobs[i], status);
        }
    }
    printf("%s: %u of %u mutants caught in %.1f s\n", runner->name, caught, count, seconds_now() - start);
    return caught == count && unlisted == 0 ? 0 : 1;
}

/* ---- the command line ---- */

static int usage(const struct runner *runner)
{
    fprintf(stderr,
            "usage: %s --seeds FROM-TO | --%s N | --seed N [--trace] [--mutant NAME] | --mutants FILE\n"
            "       [--jobs N] [--requests N] [--no-probes]\n",
            runner->name, runner->enough ? runner->enough : "enough");
    return 2;
}

static bool take_option(struct arguments *arguments, int option)
{
    unsigned long long from, to;
    if (option == 's' && sscanf(optarg, "%llu-%llu", &from, &to) == 2 && from <= to) {
        arguments->from = from;
        arguments->to = to;
    } else if (option == 'n' && sscanf(optarg, "%llu", &from) == 1 && from > 0) {
        arguments->enough = from;
    } else if (option == 'o' && sscanf(optarg, "%llu", &from) == 1) {
        arguments->from = arguments->to = from;
        arguments->one = true;
    } else if (option == 't') {
        arguments->trace = true;
    } else if (option == 'j' && sscanf(optarg, "%u", &arguments->jobs) == 1) {
        return arguments->jobs > 0 && arguments->jobs <= JOBS_MAX;
    } else if (option == 'r') {
        return sscanf(optarg, "%u", &arguments->requests) == 1;
    } else if (option == 'm') {
        arguments->mutants = optarg;
    } else if (option == 'M') {
        return mutant_select(optarg);
    } else if (option == 'P') {
        arguments->probes = false;
    } else {
        return false;
    }
    return true;
}

void runner_fail(const char *name, uint64_t seed, uint64_t now_ns, const char *format, va_list arguments)
{
    fprintf(stderr, "%s: seed %llu, %.6f s: ", name, (unsigned long long)seed, (double)now_ns / 1e9);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\nrun it again: %s --seed %llu --trace\n", name, (unsigned long long)seed);
    exit(1);
}

void runner_trace(uint64_t now_ns, const char *format, va_list arguments)
{
    fprintf(stderr, "%14.3f us -- ", (double)now_ns / 1e3);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

int runner_main(const struct runner *runner, int argc, char **argv)
{
    const struct option options[] = {
        {"seeds", required_argument, NULL, 's'},
        {runner->enough ? runner->enough : "enough", required_argument, NULL, 'n'},
        {"seed", required_argument, NULL, 'o'},
        {"trace", no_argument, NULL, 't'},
        {"jobs", required_argument, NULL, 'j'},
        {"requests", required_argument, NULL, 'r'},
        {"mutants", required_argument, NULL, 'm'},
        {"mutant", required_argument, NULL, 'M'},
        {"no-probes", no_argument, NULL, 'P'},
        {NULL, 0, NULL, 0},
    };
    struct arguments arguments = {.runner = runner, .from = 1, .jobs = 1, .probes = true};
    mallopt(M_MMAP_THRESHOLD, 64 * MIB); /* what one seed had, the next one uses again: no page faults */
    mallopt(M_TRIM_THRESHOLD, 256 * MIB);
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (!take_option(&arguments, option))
            return usage(runner);
    if (optind != argc || (!arguments.mutants && !arguments.to && !arguments.enough))
        return usage(runner);
    if (arguments.one && !arguments.mutants)
        run_one(&arguments);
    return arguments.mutants ? run_mutants(&arguments) : run_seeds(&arguments);
}
