/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program: runs seeds of the simulation, over several processes, and asks for more than their success.
 *
 *   vm_sim --seeds FROM-TO [--jobs N]    all of them must pass, and every probe of the data path must have been reached
 *   vm_sim --seed N [--trace]            one of them, with its story on stderr
 *   vm_sim --mutants FILE [--jobs N]     each deliberate fault named in FILE must be caught by some seed
 *
 * A failure says its seed and how to repeat it. Exit codes: 0 passed, 1 failed, 2 usage.
 */
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

#include "base/probe.h"
#include "sim.h"

enum {
    JOBS_MAX = 64,
    MUTANT_SEEDS = 4000, /* a fault that so many runs do not show is not caught */
    MUTANT_SECONDS = 5,  /* of the processor, for one seed: twenty times what a slow one takes */
    MUTANT_REQUESTS = 2000,
};

extern struct probe __start_fleece_probes[], __stop_fleece_probes[];
extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

struct arguments {
    uint64_t from, to;
    bool trace, probes;
    unsigned jobs, requests;
    const char *mutants;
};

struct shared {                       /* between this process and its children */
    volatile uint64_t seed[JOBS_MAX]; /* that each is at */
    volatile uint64_t done[JOBS_MAX];
    unsigned long hits[JOBS_MAX][512];
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

static void run_share(const struct arguments *arguments, struct shared *shared, unsigned job)
{
    for (uint64_t seed = arguments->from + job; seed <= arguments->to; seed += arguments->jobs) {
        shared->seed[job] = seed;
        sim_run(&(struct sim_options){.seed = seed, .trace = arguments->trace, .requests = arguments->requests});
        shared->done[job]++;
    }
    for (size_t i = 0; i < probe_count(); i++)
        shared->hits[job][i] = __start_fleece_probes[i].hits;
}

/* Whether the child ended well; says how it did not. */
static bool child_passed(const struct shared *shared, unsigned job, int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    unsigned long long seed = shared->seed[job];
    if (WIFSIGNALED(status))
        fprintf(stderr, "vm_sim: seed %llu: ended by signal %d (%s)\nrun it again: vm_sim --seed %llu --trace\n", seed,
                WTERMSIG(status), strsignal(WTERMSIG(status)), seed);
    else
        fprintf(stderr, "vm_sim: seed %llu failed\n", seed);
    return false;
}

/* The file driver, qcow2 and change tracking that outlives the daemon have simulations of their own (file_sim.c,
 * qcow2_sim.c, track_crash.c); here the world's disks are served by sim_leaf.c. */
static bool is_elsewhere(const char *name)
{
    return strncmp(name, "file_", 5) == 0 || strncmp(name, "qcow2_", 6) == 0 || strncmp(name, "track_", 6) == 0;
}

/* Probes of one name (in inlined or repeated code) count together. */
static unsigned count_unreached(const struct shared *shared, unsigned jobs)
{
    unsigned unreached = 0;
    for (size_t i = 0; i < probe_count(); i++) {
        unsigned long hits = 0;
        bool first = true;
        for (size_t k = 0; k < probe_count(); k++) {
            if (strcmp(__start_fleece_probes[k].name, __start_fleece_probes[i].name) != 0)
                continue;
            first = first && k >= i;
            for (unsigned job = 0; job < jobs; job++)
                hits += shared->hits[job][k];
        }
        if (hits > 0 || !first || is_elsewhere(__start_fleece_probes[i].name))
            continue;
        fprintf(stderr, "vm_sim: the probe %s was never reached\n", __start_fleece_probes[i].name);
        unreached++;
    }
    return unreached;
}

static struct shared *shared_create(void)
{
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || probe_count() > 512) {
        fprintf(stderr, "vm_sim: no shared memory, or more than 512 probes\n");
        exit(1);
    }
    return shared;
}

static int run_seeds(const struct arguments *arguments)
{
    struct shared *shared = shared_create();
    double start = seconds_now();
    pid_t children[JOBS_MAX];
    bool passed = true;
    for (unsigned job = 0; job < arguments->jobs; job++) {
        children[job] = fork();
        if (children[job] == 0) {
            run_share(arguments, shared, job);
            exit(0);
        }
    }
    uint64_t done = 0;
    for (unsigned job = 0; job < arguments->jobs; job++) {
        int status = 1;
        waitpid(children[job], &status, 0);
        passed = child_passed(shared, job, status) && passed;
        done += shared->done[job];
    }
    double seconds = seconds_now() - start;
    unsigned unreached = passed && arguments->probes ? count_unreached(shared, arguments->jobs) : 0;
    printf("vm_sim: %llu of %llu seeds passed in %.1f s (%.0f a second); %zu probes, %u never reached\n",
           (unsigned long long)done, (unsigned long long)(arguments->to - arguments->from + 1), seconds,
           (double)done / seconds, probe_count(), unreached);
    return passed && unreached == 0 ? 0 : 1;
}

/* The same seed must give the same run: else no failure could be repeated. */
static int run_one(const struct arguments *arguments)
{
    struct sim_options options = {.seed = arguments->from, .trace = arguments->trace, .requests = arguments->requests};
    uint64_t hash = sim_run(&options);
    options.trace = false;
    bool same = sim_run(&options) == hash;
    printf("vm_sim: seed %llu passed, hash %016llx%s\n", (unsigned long long)arguments->from, (unsigned long long)hash,
           same ? "" : "; a second run of it was different");
    return same ? 0 : 1;
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

/* In a child: runs seeds with the fault switched on, until one shows it or there are none left. */
static void mutant_child(const struct arguments *arguments, const char *name, struct shared *shared, unsigned job)
{
    if (freopen("/dev/null", "w", stderr) == NULL || !mutant_select(name))
        _exit(3);
    for (uint64_t seed = arguments->from; seed < arguments->from + MUTANT_SEEDS; seed++) {
        shared->seed[job] = seed;
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = MUTANT_SECONDS}, NULL);
        sim_run(&(struct sim_options){.seed = seed, .requests = MUTANT_REQUESTS});
    }
    _exit(0);
}

/* A line that begins with '~' is a fault that takes a minute or more to show itself: it is tried in long runs only. */
static unsigned mutants_read(const char *path, bool rare, char names[][64], unsigned max)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "vm_sim: cannot read %s: %s\n", path, strerror(errno));
        exit(2);
    }
    unsigned count = 0;
    for (char line[512]; fgets(line, sizeof(line), file) != NULL;)
        if (line[0] != '#' && (line[0] != '~' || rare) && count < max &&
            sscanf(line + (line[0] == '~'), "%63s", names[count]) == 1)
            count++;
    fclose(file);
    return count;
}

/* Every mutant of the code is in the list. */
static unsigned count_unlisted(char names[][64], unsigned count)
{
    unsigned unlisted = 0;
    for (const struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        bool listed = is_elsewhere(mutant->name);
        for (unsigned i = 0; i < count; i++)
            listed = listed || strcmp(names[i], mutant->name) == 0;
        if (!listed) {
            fprintf(stderr, "vm_sim: the mutant %s is not in the list\n", mutant->name);
            unlisted++;
        }
    }
    return unlisted;
}

static bool mutant_caught(const char *name, const struct shared *shared, unsigned job, int status)
{
    unsigned long long seed = shared->seed[job];
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3)) {
        printf("%-32s %s\n", name, WEXITSTATUS(status) == 3 ? "is not in the code" : "NOT CAUGHT");
        return false;
    }
    if (WIFSIGNALED(status))
        printf("%-32s caught at seed %llu: %s\n", name, seed,
               WTERMSIG(status) == SIGPROF ? "hang" : strsignal(WTERMSIG(status)));
    else
        printf("%-32s caught at seed %llu: the oracle\n", name, seed);
    return true;
}

static int run_mutants(const struct arguments *arguments)
{
    static char names[256][64];
    const char *mode = getenv("FLEECE_CHECK");
    const bool is_long = mode != NULL && strcmp(mode, "long") == 0;
    unsigned count = mutants_read(arguments->mutants, is_long, names, 256), next = 0, running = 0, caught = 0;
    struct shared *shared = shared_create();
    pid_t children[JOBS_MAX] = {0};
    unsigned whose[JOBS_MAX];
    double start = seconds_now();
    while (next < count || running > 0) {
        for (unsigned job = 0; job < arguments->jobs && next < count; job++) {
            if (children[job] != 0)
                continue;
            whose[job] = next++;
            fflush(stdout);
            children[job] = fork();
            if (children[job] == 0)
                mutant_child(arguments, names[whose[job]], shared, job);
            running++;
        }
        int status = 0;
        pid_t child = wait(&status);
        for (unsigned job = 0; job < arguments->jobs; job++) {
            if (children[job] != child)
                continue;
            children[job] = 0;
            running--;
            caught += mutant_caught(names[whose[job]], shared, job, status);
        }
    }
    static char listed[256][64];
    unsigned unlisted = count_unlisted(listed, mutants_read(arguments->mutants, true, listed, 256));
    printf("vm_sim: %u of %u mutants caught in %.1f s\n", caught, count, seconds_now() - start);
    return caught == count && unlisted == 0 ? 0 : 1;
}

static int usage(void)
{
    fprintf(stderr, "usage: vm_sim --seeds FROM-TO [--jobs N] [--requests N] [--no-probes] | --seed N [--trace] | "
                    "--mutants FILE [--jobs N]\n");
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seeds", required_argument, NULL, 's'},
        {"seed", required_argument, NULL, 'o'},
        {"trace", no_argument, NULL, 't'},
        {"jobs", required_argument, NULL, 'j'},
        {"mutants", required_argument, NULL, 'm'},
        {"mutant", required_argument, NULL, 'M'},
        {"requests", required_argument, NULL, 'r'},
        {"no-probes", no_argument, NULL, 'P'},
        {NULL, 0, NULL, 0},
    };
    struct arguments arguments = {.from = 1, .to = 0, .jobs = 1, .probes = true};
    bool one = false;
    mallopt(M_MMAP_THRESHOLD, 64 * MIB); /* what one seed had, the next one uses again: no page faults */
    mallopt(M_TRIM_THRESHOLD, 256 * MIB);
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        unsigned long long from, to;
        if (option == 's' && sscanf(optarg, "%llu-%llu", &from, &to) == 2 && from <= to) {
            arguments.from = from;
            arguments.to = to;
        } else if (option == 'o' && sscanf(optarg, "%llu", &from) == 1) {
            arguments.from = arguments.to = from;
            one = true;
        } else if (option == 't') {
            arguments.trace = true;
        } else if (option == 'j' && sscanf(optarg, "%u", &arguments.jobs) == 1 && arguments.jobs > 0 &&
                   arguments.jobs <= JOBS_MAX) {
        } else if (option == 'r' && sscanf(optarg, "%u", &arguments.requests) == 1) {
        } else if (option == 'm') {
            arguments.mutants = optarg;
        } else if (option == 'M' && mutant_select(optarg)) {
            one = true;
        } else if (option == 'P') {
            arguments.probes = false;
        } else {
            return usage();
        }
    }
    if (optind != argc || (arguments.mutants == NULL && arguments.to == 0))
        return usage();
    return arguments.mutants != NULL ? run_mutants(&arguments) : one ? run_one(&arguments) : run_seeds(&arguments);
}
