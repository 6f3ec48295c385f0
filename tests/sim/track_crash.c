/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program: runs seeds of the crash simulation (crash.h) until there are enough crash states. A crash state is one
 * restart after a crash, with the oracle run.
 *
 *   track_crash --states N [--jobs N]      seeds from 1 on, until N crash states have passed; every probe is reached
 *   track_crash --seeds FROM-TO [--jobs N] these seeds
 *   track_crash --seed N [--trace]         one of them, twice: both runs must be the same
 *   track_crash --mutants FILE [--jobs N]  each deliberate fault named in FILE must be caught by some seed
 *   --no-probes                            probes that were not reached are no failure
 *
 * What killed processes had stays in memory, so each child runs a batch of seeds only. Exit codes: 0 passed, 1 failed,
 * 2 usage.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/probe.h"
#include "crash.h"

enum {
    JOBS_MAX = 64,
    PROBES_MAX = 512,
    BATCH = 16,          /* seeds of one child */
    MUTANT_SEEDS = 2000, /* a fault that so many runs do not show is not caught */
    MUTANT_BATCH = 40,   /* seeds of one child */
    MUTANT_SECONDS = 5,  /* of the processor, for one seed */
};

extern struct probe __start_fleece_probes[], __stop_fleece_probes[];
extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

struct arguments {
    uint64_t from, to, states;
    bool trace, probes;
    unsigned jobs;
    const char *mutants;
};

struct job { /* in memory that a child shares with this process */
    volatile uint64_t seed;
    struct crash_result sum;
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

void crash_fail(const struct crash_sim *sim, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "track_crash: seed %llu, life %llu, %.6f s: ", (unsigned long long)sim->options.seed,
            (unsigned long long)sim->result.lives, (double)world_now(sim->world) / (double)NS_PER_S);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nrun it again: track_crash --seed %llu --trace\n", (unsigned long long)sim->options.seed);
    exit(1);
}

void crash_trace(const struct crash_sim *sim, const char *format, ...)
{
    if (!sim->options.trace)
        return;
    va_list arguments;
    fprintf(stderr, "%14.3f us -- ", (double)world_now(sim->world) / 1000);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

static void add(struct crash_result *sum, const struct crash_result *one)
{
    sum->states += one->states;
    for (unsigned i = 0; i <= TRACKER_VOID; i++)
        sum->recovered[i] += one->recovered[i];
    sum->lives += one->lives;
    sum->writes += one->writes;
    sum->checks += one->checks;
    sum->tampers += one->tampers;
}

static void run_batch(const struct arguments *arguments, struct job *job, uint64_t from, uint64_t to)
{
    for (uint64_t seed = from; seed <= to; seed++) {
        job->seed = seed;
        struct crash_result result = crash_run(&(struct crash_options){.seed = seed, .trace = arguments->trace});
        add(&job->sum, &result);
        job->seeds++;
    }
    for (size_t i = 0; i < probe_count(); i++)
        job->hits[i] += __start_fleece_probes[i].hits;
}

static bool child_passed(const struct job *job, int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    unsigned long long seed = job->seed;
    if (WIFSIGNALED(status))
        fprintf(stderr,
                "track_crash: seed %llu: ended by signal %d (%s)\nrun it again: track_crash --seed %llu --trace\n",
                seed, WTERMSIG(status), strsignal(WTERMSIG(status)), seed);
    else
        fprintf(stderr, "track_crash: seed %llu failed\n", seed);
    return false;
}

static struct job *jobs_create(void)
{
    struct job *jobs = mmap(NULL, JOBS_MAX * sizeof(struct job), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                            0);
    if (jobs == MAP_FAILED || probe_count() > PROBES_MAX) {
        fprintf(stderr, "track_crash: no shared memory, or more than %d probes\n", PROBES_MAX);
        exit(1);
    }
    return jobs;
}

/* Only tracking is simulated here; probes of one name (in inlined or repeated code) count together. */
static unsigned count_unreached(const struct job *jobs, unsigned count)
{
    unsigned unreached = 0;
    for (size_t i = 0; i < probe_count(); i++) {
        unsigned long hits = 0;
        bool first = true;
        for (size_t k = 0; k < probe_count(); k++) {
            if (strcmp(__start_fleece_probes[k].name, __start_fleece_probes[i].name) != 0)
                continue;
            first = first && k >= i;
            for (unsigned job = 0; job < count; job++)
                hits += jobs[job].hits[k];
        }
        if (hits > 0 || !first || strncmp(__start_fleece_probes[i].name, "track_", 6) != 0)
            continue;
        fprintf(stderr, "track_crash: the probe %s was never reached\n", __start_fleece_probes[i].name);
        unreached++;
    }
    return unreached;
}

static void print_sum(const struct job *jobs, unsigned count, double seconds, unsigned unreached)
{
    struct crash_result sum = {0};
    uint64_t seeds = 0;
    for (unsigned i = 0; i < count; i++) {
        add(&sum, &jobs[i].sum);
        seeds += jobs[i].seeds;
    }
    printf("track_crash: %llu crash states of %llu seeds passed in %.1f s (%.0f a second)\n"
           "  %llu lives; recovered: %llu new, %llu clean, %llu adopted, %llu replayed, %llu void; %llu requests, %llu "
           "bitmaps "
           "checked, %llu changes behind our back; %u probes never reached\n",
           (unsigned long long)sum.states, (unsigned long long)seeds, seconds, (double)sum.states / seconds,
           (unsigned long long)sum.lives, (unsigned long long)sum.recovered[TRACKER_NEW],
           (unsigned long long)sum.recovered[TRACKER_CLEAN], (unsigned long long)sum.recovered[TRACKER_ADOPTED],
           (unsigned long long)sum.recovered[TRACKER_REPLAYED], (unsigned long long)sum.recovered[TRACKER_VOID],
           (unsigned long long)sum.writes, (unsigned long long)sum.checks, (unsigned long long)sum.tampers, unreached);
}

static bool is_enough(const struct arguments *arguments, const struct job *jobs, uint64_t next)
{
    uint64_t states = 0;
    for (unsigned i = 0; i < arguments->jobs; i++)
        states += jobs[i].sum.states;
    return arguments->states ? states >= arguments->states : next > arguments->to;
}

static pid_t start_batch(const struct arguments *arguments, struct job *job, uint64_t from)
{
    uint64_t to = from + BATCH - 1;
    if (!arguments->states && to > arguments->to)
        to = arguments->to;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        run_batch(arguments, job, from, to);
        _exit(0);
    }
    return child;
}

static int run_seeds(const struct arguments *arguments)
{
    struct job *jobs = jobs_create();
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
            next += BATCH;
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
            passed = child_passed(&jobs[i], status) && passed;
        }
    }
    unsigned unreached = passed && arguments->probes ? count_unreached(jobs, arguments->jobs) : 0;
    print_sum(jobs, arguments->jobs, seconds_now() - start, unreached);
    return passed && unreached == 0 ? 0 : 1;
}

/* The same seed must give the same run: else no failure could be repeated. */
static void __attribute__((noreturn)) run_one(const struct arguments *arguments)
{
    struct crash_options options = {.seed = arguments->from, .trace = arguments->trace};
    struct crash_result result = crash_run(&options);
    options.trace = false;
    bool same = crash_run(&options).hash == result.hash;
    printf("track_crash: seed %llu passed, %llu crash states, hash %016llx%s\n", (unsigned long long)arguments->from,
           (unsigned long long)result.states, (unsigned long long)result.hash,
           same ? "" : "; a second run of it was different");
    fflush(stdout);
    _exit(same ? 0 : 1); /* what a killed process had in its hands is nobody's: no leak to be told of */
}

/* Mutants. */

static bool mutant_select(const char *name)
{
    bool found = false;
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        mutant->on = strcmp(mutant->name, name) == 0;
        found = found || mutant->on;
    }
    return found;
}

static unsigned mutants_read(const char *path, char names[][64], unsigned max)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "track_crash: cannot read %s: %s\n", path, strerror(errno));
        exit(2);
    }
    unsigned count = 0;
    for (char line[512]; fgets(line, sizeof line, file);)
        if (line[0] != '#' && count < max && sscanf(line, "%63s", names[count]) == 1)
            count++;
    fclose(file);
    return count;
}

static unsigned count_unlisted(char names[][64], unsigned count)
{
    unsigned unlisted = 0;
    for (const struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        bool listed = strncmp(mutant->name, "track_", 6) != 0;
        for (unsigned i = 0; i < count; i++)
            listed = listed || strcmp(names[i], mutant->name) == 0;
        if (!listed) {
            fprintf(stderr, "track_crash: the mutant %s is not in the list\n", mutant->name);
            unlisted++;
        }
    }
    return unlisted;
}

static pid_t start_mutant(const struct arguments *arguments, const char *name, struct job *job, uint64_t from)
{
    fflush(stdout);
    pid_t child = fork();
    if (child != 0)
        return child;
    if (!freopen("/dev/null", "w", stderr) || !mutant_select(name))
        _exit(3);
    for (uint64_t seed = from; seed < from + MUTANT_BATCH; seed++) {
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = MUTANT_SECONDS}, NULL);
        run_batch(arguments, job, seed, seed);
    }
    _exit(0);
}

static bool mutant_caught(const char *name, const struct job *job, int status)
{
    unsigned long long seed = job->seed;
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3)) {
        printf("%-32s %s\n", name, WEXITSTATUS(status) == 3 ? "is not in the code" : "NOT CAUGHT");
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
    static char names[256][64];
    unsigned count = mutants_read(arguments->mutants, names, 256), next = 0, running = 0, caught = 0;
    unsigned unlisted = count_unlisted(names, count), whose[JOBS_MAX];
    struct job *jobs = jobs_create();
    pid_t children[JOBS_MAX] = {0};
    uint64_t from[JOBS_MAX];
    double start = seconds_now();
    while (next < count || running > 0) {
        for (unsigned i = 0; i < arguments->jobs && next < count; i++) {
            if (children[i])
                continue;
            whose[i] = next++;
            from[i] = arguments->from;
            children[i] = start_mutant(arguments, names[whose[i]], &jobs[i], from[i]);
            running++;
        }
        int status = 0;
        pid_t child = wait(&status);
        for (unsigned i = 0; i < arguments->jobs; i++) {
            if (children[i] != child)
                continue;
            from[i] += MUTANT_BATCH;
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && from[i] < arguments->from + MUTANT_SEEDS) {
                children[i] = start_mutant(arguments, names[whose[i]], &jobs[i], from[i]); /* it goes on */
                continue;
            }
            children[i] = 0;
            running--;
            caught += mutant_caught(names[whose[i]], &jobs[i], status);
        }
    }
    printf("track_crash: %u of %u mutants caught in %.1f s\n", caught, count, seconds_now() - start);
    return caught == count && unlisted == 0 ? 0 : 1;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: track_crash --states N [--jobs N] [--no-probes] | --seeds FROM-TO [--jobs N] [--no-probes] | "
            "--seed N [--trace] [--mutant NAME] | --mutants FILE [--jobs N]\n");
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"states", required_argument, NULL, 'n'},
        {"seeds", required_argument, NULL, 's'},
        {"seed", required_argument, NULL, 'o'},
        {"trace", no_argument, NULL, 't'},
        {"jobs", required_argument, NULL, 'j'},
        {"mutants", required_argument, NULL, 'm'},
        {"mutant", required_argument, NULL, 'M'},
        {"no-probes", no_argument, NULL, 'P'},
        {NULL, 0, NULL, 0},
    };
    struct arguments arguments = {.from = 1, .jobs = 1, .probes = true};
    bool one = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        unsigned long long from, to;
        if (option == 's' && sscanf(optarg, "%llu-%llu", &from, &to) == 2 && from <= to) {
            arguments.from = from;
            arguments.to = to;
        } else if (option == 'n' && sscanf(optarg, "%llu", &from) == 1 && from > 0) {
            arguments.states = from;
        } else if (option == 'o' && sscanf(optarg, "%llu", &from) == 1) {
            arguments.from = arguments.to = from;
            one = true;
        } else if (option == 't') {
            arguments.trace = true;
        } else if (option == 'j' && sscanf(optarg, "%u", &arguments.jobs) == 1 && arguments.jobs > 0 &&
                   arguments.jobs <= JOBS_MAX) {
        } else if (option == 'm') {
            arguments.mutants = optarg;
        } else if (option == 'M' && mutant_select(optarg)) {
        } else if (option == 'P') {
            arguments.probes = false;
        } else {
            return usage();
        }
    }
    if (optind != argc || (!arguments.mutants && !arguments.to && !arguments.states))
        return usage();
    if (one && !arguments.mutants)
        run_one(&arguments);
    return arguments.mutants ? run_mutants(&arguments) : run_seeds(&arguments);
}
