/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Text and time are turned into one another both ways, and a name is right only if that gives it back: so names sort as
 * their times do, and there is one name for each. */
#include "set/point_name.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"

void point_time_format(char *text, uint64_t seconds)
{
    time_t time = (time_t)seconds;
    struct tm parts;
    assert(seconds < UINT64_C(253402300800)); /* year 10000 */
    gmtime_r(&time, &parts);
    strftime(text, POINT_TIME_BYTES, "%Y-%m-%dT%H:%M:%SZ", &parts);
}

bool point_time_valid(const char *text)
{
    static const char form[] = "dddd-dd-ddTdd:dd:ddZ";
    struct tm parts = {0};
    char again[POINT_TIME_BYTES];
    for (unsigned i = 0; i < sizeof form; i++)
        if (form[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != form[i])
            return false;
    if (!strptime(text, "%Y-%m-%dT%H:%M:%SZ", &parts))
        return false;
    time_t time = timegm(&parts);
    if (time < 0)
        return false;
    point_time_format(again, (uint64_t)time);
    return strcmp(again, text) == 0; /* no 30th of February, no leap second */
}

/* The number behind the time: 1 when there is none; 0: not right. */
static unsigned number_of(const char *rest)
{
    if (rest[0] == '\0')
        return 1;
    if (rest[0] != '-' || rest[1] < '1' || rest[1] > '9')
        return 0;
    unsigned number = (unsigned)(rest[1] - '0');
    if (rest[2] >= '0' && rest[2] <= '9') {
        number = number * 10 + (unsigned)(rest[2] - '0');
        rest++;
    }
    return rest[2] == '\0' && number >= 2 ? number : 0;
}

bool point_name_valid(const char *name)
{
    char time[POINT_TIME_BYTES];
    if (strnlen(name, POINT_NAME_BYTES) < POINT_TIME_BYTES - 1)
        return false;
    memcpy(time, name, POINT_TIME_BYTES - 1);
    time[POINT_TIME_BYTES - 1] = '\0';
    return point_time_valid(time) && number_of(name + POINT_TIME_BYTES - 1) > 0;
}

int point_name_compare(const char *a, const char *b)
{
    int order = strncmp(a, b, POINT_TIME_BYTES - 1);
    return order ? order : (int)number_of(a + POINT_TIME_BYTES - 1) - (int)number_of(b + POINT_TIME_BYTES - 1);
}

void point_name_make(char *name, const char *time, unsigned number)
{
    assert(number >= 1 && number <= LIMIT_POINTS_PER_SECOND && strlen(time) == POINT_TIME_BYTES - 1);
    memcpy(name, time, POINT_TIME_BYTES);
    if (number > 1)
        snprintf(name + POINT_TIME_BYTES - 1, POINT_NAME_BYTES - POINT_TIME_BYTES + 1, "-%u", number % 100);
}
