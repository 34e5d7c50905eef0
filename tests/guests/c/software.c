/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "software.h"

#include "machine.h"

/* How long an interrupt may take, and how long one is waited for that must not come. */
#define PATIENCE_MS 20000
#define QUIET_MS 30

#define SOFTWARE_FUNCTION 0x5650fffe
#define CONFIG_COMMAND 0x04
#define CONFIG_HEADER_TYPE 0x0e
#define CONFIG_BAR0 0x10
#define COMMAND_MEMORY_AND_BUS_MASTER 0x6

/* Registers of the software function, in BAR 0. */
#define DOORBELL 0x08
#define FIRST 0x0c
#define ROTATION 0x10
#define DONE 0x1c

static uint64_t bar;
static volatile uint32_t taken[LINES];

void guest_interrupt(unsigned line)
{
    taken[line]++;
}

_Noreturn void fail(const char *what)
{
    machine_print("c guest: ");
    machine_print(what);
    machine_print("\n");
    machine_exit(1);
}

void require(bool condition, const char *what)
{
    if (!condition)
        fail(what);
}

static uint32_t find(void)
{
    for (uint32_t device = 0; device < 32; device++) {
        for (uint32_t function = 0; function < 8; function++) {
            const uint32_t id = device << 3 | function;

            if (machine_read_config(id, 0, 4) == SOFTWARE_FUNCTION)
                return id;
            if (function == 0 && !(machine_read_config(id, CONFIG_HEADER_TYPE, 1) & 0x80))
                break;
        }
    }
    fail("no software function on bus 0");
}

uint64_t software_start(uint32_t *id)
{
    *id = find();
    machine_write_config(*id, CONFIG_COMMAND, 2, COMMAND_MEMORY_AND_BUS_MASTER);
    bar = machine_read_config(*id, CONFIG_BAR0, 4) & ~0xfu;
    return bar;
}

static void raise_event(uint16_t vector)
{
    uint32_t total = register_read(bar + DOORBELL) + 1;

    register_write(bar + FIRST, vector);
    register_write(bar + ROTATION, 1);
    register_write(bar + DOORBELL, total);
    for (unsigned ms = 0; register_read(bar + DONE) != total; ms++) {
        require(ms < PATIENCE_MS, "the device does not raise what it was asked for");
        machine_wait_us(1000);
    }
}

struct taken software_taken(unsigned line)
{
    struct taken now = { .line = taken[line] };

    for (unsigned each = 0; each < LINES; each++)
        now.all += taken[each];
    return now;
}

void expect_one(unsigned line, struct taken before)
{
    struct taken now;

    for (unsigned ms = 0; taken[line] == before.line; ms++) {
        require(ms < PATIENCE_MS, "an event without an interrupt");
        machine_wait_us(1000);
    }
    machine_wait_us(QUIET_MS * 1000);
    now = software_taken(line);
    require(now.line == before.line + 1, "an interrupt came twice");
    require(now.all == before.all + 1, "an interrupt at another line");
}

void raise_and_take(uint16_t vector, unsigned line)
{
    const struct taken before = software_taken(line);

    raise_event(vector);
    expect_one(line, before);
}

void raise_and_see_nothing(uint16_t vector, const char *what)
{
    const struct taken before = software_taken(0);

    raise_event(vector);
    machine_wait_us(QUIET_MS * 1000);
    require(software_taken(0).all == before.all, what);
}
