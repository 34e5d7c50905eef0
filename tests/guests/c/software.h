/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The software function, as the guests in C see it, and the interrupts that were taken. */
#ifndef SOFTWARE_H
#define SOFTWARE_H

#include <stdbool.h>
#include <stdint.h>

/* Interrupts so far: at one line, and at all. */
struct taken {
    uint32_t line, all;
};

_Noreturn void fail(const char *what);
void require(bool condition, const char *what);

/* Finds the first software function on bus 0 and switches it on; returns where its BAR 0 is. */
uint64_t software_start(uint32_t *id);

struct taken software_taken(unsigned line);

/* Raises an event of a vector and waits for one interrupt at a line, or for none. */
void raise_and_take(uint16_t vector, unsigned line);
void raise_and_see_nothing(uint16_t vector, const char *what);

/* Waits for one interrupt at a line; none may come besides. */
void expect_one(unsigned line, struct taken before);

#endif
