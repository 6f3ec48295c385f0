/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of restic, borg and others: time is cut into periods (hours, days, weeks from Monday on, months; UTC, as the
 * names of the points are), and a rule with the number N keeps the newest point of each of the last N periods that have
 * one. A rule does not know of the others: a point stays if any of them keeps it. Periods without a point don't count, so
 * a VM that was not backed up for a while loses nothing by that.
 */
#include "set/keep.h"

#include <assert.h>
#include <time.h>

#define SECONDS_OF_HOUR 3600
#define SECONDS_OF_DAY 86400
#define DAYS_OF_WEEK 7
#define FIRST_MONDAY 4 /* 1970-01-05, in days: the first of January was a Thursday */

static const char *const rule_names[KEEP_RULES] = {
    [KEEP_LAST] = "last",     [KEEP_HOURLY] = "hourly",   [KEEP_DAILY] = "daily",
    [KEEP_WEEKLY] = "weekly", [KEEP_MONTHLY] = "monthly",
};

const char *keep_rule_name(enum keep_rule rule)
{
    return rule_names[rule];
}

/* The number of the period that a point lies in; `index` makes each point a period of its own. */
static int64_t period_of(enum keep_rule rule, const char *name, unsigned index)
{
    struct tm parts = {0};
    const char *rest = strptime(name, "%Y-%m-%dT%H:%M:%SZ", &parts);
    assert(rest);
    int64_t seconds = timegm(&parts), days = seconds / SECONDS_OF_DAY;
    switch (rule) {
    case KEEP_LAST:
        return index;
    case KEEP_HOURLY:
        return seconds / SECONDS_OF_HOUR;
    case KEEP_DAILY:
        return days;
    case KEEP_WEEKLY:
        return (days - FIRST_MONDAY + DAYS_OF_WEEK) / DAYS_OF_WEEK;
    case KEEP_MONTHLY:
        return parts.tm_year * 12 + parts.tm_mon;
    }
    assert(false);
    return 0;
}

static void apply(enum keep_rule rule, unsigned number, const char (*names)[POINT_NAME_BYTES], unsigned count,
                  uint8_t *kept)
{
    int64_t last = -1;
    for (unsigned i = count; i-- > 0 && number > 0;) {
        int64_t period = period_of(rule, names[i], i);
        if (period == last)
            continue;
        last = period;
        kept[i] |= (uint8_t)(1u << rule);
        number--;
    }
}

void keep_choose(const struct keep_rules *rules, const char (*names)[POINT_NAME_BYTES], unsigned count, uint8_t *kept)
{
    for (unsigned i = 0; i < count; i++)
        kept[i] = 0;
    for (enum keep_rule rule = KEEP_LAST; rule <= KEEP_MONTHLY; rule++)
        apply(rule, rules->count[rule], names, count, kept);
    if (count > 0 && kept[count - 1] == 0)
        kept[count - 1] = 1u << KEEP_LAST;
}
