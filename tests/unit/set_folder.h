/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The folder of a test that makes a backup set, and where that lies. After <cmocka.h>. No disk: thousands of fsyncs. */
#ifndef FLEECE_TESTS_UNIT_SET_FOLDER_H
#define FLEECE_TESTS_UNIT_SET_FOLDER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char folder[64], path[128];

static inline int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/dev/shm/fleece-unit-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/set", folder);
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

#endif
