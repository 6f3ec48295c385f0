/* SPDX-License-Identifier: GPL-2.0-or-later */
/* guest_load: what the guests of tests/guest run. It writes what can be recognised later, and says what must have survived
 * on its standard output, one line and one write() each: "NAME N". It is linked statically and needs nothing around it.
 *
 * All functions end the program with status 1 and a sentence when something is wrong, so none returns an error. */
#ifndef GUEST_LOAD_H
#define GUEST_LOAD_H
#include <stddef.h>
#include <stdint.h>

/* Says what is wrong, with errno's words when it is not 0, and ends the program. Any thread. */
_Noreturn void load_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says that number n of `name` is durable. */
void load_say(const char *name, uint64_t n);
/* Sleeps; a guest without KVM has no processor to spare. */
void load_pause(unsigned milliseconds);
/* The next number of a reproducible sequence. */
uint64_t load_random(uint64_t *state);
/* Fills `words` words with the content that belongs to `seed`. */
void load_fill(uint64_t *buffer, size_t words, uint64_t seed);

/* Writes and fsyncs files in `folder` until it is killed; the largest number that is there is taken up again. */
_Noreturn void load_files(const char *folder, const char *name, unsigned pause_ms);
/* Files 1 to `last` of `folder` are there and right; says how many others are there. */
void load_check_files(const char *folder, uint64_t last);

/* Writes n to the first device, then n to the second, each durable before what follows, until it is killed. */
_Noreturn void load_ordered(const char *name, const char *first, const char *second);

/* Writes to random sectors of `device`, which holds zeroes, from several threads at once and reads back what was
 * acknowledged; on SIGTERM the whole device is compared, and the number of writes is said. */
void load_blocks(const char *name, const char *device, unsigned threads);
#endif
