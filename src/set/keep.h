/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which points of a set stay, by rules such as "the last 7 days". No I/O. */
#ifndef FLEECE_SET_KEEP_H
#define FLEECE_SET_KEEP_H

#include <stdint.h>

#include "set/point_name.h"

enum keep_rule { KEEP_LAST, KEEP_HOURLY, KEEP_DAILY, KEEP_WEEKLY, KEEP_MONTHLY };
#define KEEP_RULES 5

struct keep_rules {
    unsigned count[KEEP_RULES]; /* points that each rule keeps; 0: it keeps none */
};

/* "last", "hourly", ... */
const char *keep_rule_name(enum keep_rule rule);
/* kept[i]: a bit 1 << RULE for each rule that keeps point i; 0: it has expired. `names` are valid and oldest first. The
 * newest point always stays: when no rule keeps it, as the last one. */
void keep_choose(const struct keep_rules *rules, const char (*names)[POINT_NAME_BYTES], unsigned count, uint8_t *kept);

#endif
