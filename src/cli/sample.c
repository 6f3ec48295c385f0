/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The numbers come from a small generator of our own and not from the system's, so that a seed chooses the same sample
 * everywhere, and what was found once can be looked at again. */
#include "cli/sample.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

void sample_init(struct sample *sample, double percent)
{
    uint32_t seed = 0;
    getrandom(&seed, sizeof seed, 0); /* any seed will do */
    *sample = (struct sample){.percent = percent, .seed = seed, .state = seed};
}

static int parse_percent(const struct cli *cli, struct sample *sample, const char *text)
{
    char *end;
    sample->percent = strtod(text, &end);
    if (strspn(text, "0123456789.%") == strlen(text) && end != text &&
        (strcmp(end, "") == 0 || strcmp(end, "%") == 0) && sample->percent > 0 && sample->percent <= 100)
        return CLI_DONE;
    return cli_usage(cli, "--sample is '%s', not a part such as 5%% (more than 0, at most 100)", text);
}

static int parse_seed(const struct cli *cli, struct sample *sample, const char *text)
{
    char *end;
    errno = 0;
    sample->seed = sample->state = strtoull(text, &end, 10);
    if (text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && sample->seed <= INT64_MAX)
        return CLI_DONE;
    return cli_usage(cli, "--seed is '%s', not a whole number of 0 to %lld", text, (long long)INT64_MAX);
}

int sample_parse_options(const struct cli *cli, struct sample *sample, int argc, char **argv)
{
    static const struct option options[] = {
        {"sample", required_argument, NULL, 's'},
        {"seed", required_argument, NULL, 'S'},
        {NULL, 0, NULL, 0},
    };
    int option, code = CLI_DONE;
    bool seed = false;
    while (code == CLI_DONE && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (option == 's')
            code = parse_percent(cli, sample, optarg);
        else if (option == 'S') {
            seed = true;
            code = parse_seed(cli, sample, optarg);
        } else
            return cli_usage_option(cli, option, argv);
    }
    if (code == CLI_DONE && seed && sample->percent >= 100)
        code = cli_usage(cli, "--seed chooses the sample of --sample PERCENT, and here everything is looked at");
    return code;
}

/* splitmix64 (Steele, Lea, Flood 2014): good enough to choose a sample. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Knuth's algorithm S: of those that are left, as many as are still wanted. */
int sample_choose(struct sample *sample, bool (*may_choose)(const void *context, uint64_t bit), const void *context,
                  struct bitmap *chosen, uint64_t *among, uint64_t *count)
{
    uint64_t left = 0;
    for (uint64_t bit = 0; bit < chosen->bit_count; bit++)
        left += may_choose(context, bit);
    *among = left;
    uint64_t wanted = (uint64_t)((double)left * sample->percent / 100 + 0.999999);
    wanted = wanted > 0 ? wanted : 1; /* however small the part is */
    *count = wanted = wanted < left ? wanted : left;
    for (uint64_t bit = 0; bit < chosen->bit_count && wanted > 0; bit++) {
        if (!may_choose(context, bit))
            continue;
        if (random_next(&sample->state) % left < wanted) {
            if (bitmap_assign(chosen, bit, 1, true) < 0)
                return -ENOMEM;
            wanted--;
        }
        left--;
    }
    return 0;
}
