/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines for the person who runs the daemon, on stderr, with systemd's priority prefix when stderr is the journal. */
#ifndef FLEECE_BASE_LOG_H
#define FLEECE_BASE_LOG_H

void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
