/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A guest on the guest half that was written from the specification alone: takes interrupts of the
 * software function, with the service where the host offers it and the standard way where not.
 *
 * Exit status 0 when each event came exactly once, at the right line, and never while masked;
 * else 1 and a line on the serial port.
 */
#include "machine.h"
#include "reader_guest.h"
#include "software.h"

#define VECTORS 4
/* A line that no vector starts with: the update moves one there. */
#define NEW_LINE VECTORS

#define CONFIG_CAPABILITIES 0x34
#define CAPABILITY_MSIX 0x11

static uint8_t call_buffer[4096] __attribute__((aligned(4096)));
static struct reader_vector vectors[VECTORS];
static struct reader_function function;

static uint32_t load32(void *ctx, uint64_t address)
{
    (void)ctx;
    return register_read(address);
}

static void store32(void *ctx, uint64_t address, uint32_t value)
{
    (void)ctx;
    register_write(address, value);
}

static uint16_t config_read16(void *ctx, uint32_t id, uint32_t offset)
{
    (void)ctx;
    return (uint16_t)machine_read_config(id, (uint16_t)offset, 2);
}

static void config_write16(void *ctx, uint32_t id, uint32_t offset, uint16_t value)
{
    (void)ctx;
    machine_write_config(id, (uint16_t)offset, 2, value);
}

static void wait_us(void *ctx, uint32_t microseconds)
{
    (void)ctx;
    machine_wait_us(microseconds);
}

static struct reader_host host = {
    .load32 = load32,
    .store32 = store32,
    .config_read16 = config_read16,
    .config_write16 = config_write16,
    .wait = wait_us,
    .buffer = call_buffer,
    .length = sizeof(call_buffer),
};

/* An event that the host has reported as pending. */
static void interrupt(struct reader_function *f, uint16_t vector)
{
    machine_raise(f->function, (unsigned)vectors[vector].data % LINES);
}

static uint16_t find_capability(uint32_t id)
{
    uint32_t at = machine_read_config(id, CONFIG_CAPABILITIES, 1);

    for (int i = 0; i < 48 && at != 0; i++) {
        if (machine_read_config(id, (uint16_t)at, 1) == CAPABILITY_MSIX)
            return (uint16_t)at;
        at = machine_read_config(id, (uint16_t)(at + 1), 1);
    }
    fail("no MSI-X capability");
}

static void find_service(const void *handoff)
{
    host.physical = (uintptr_t)call_buffer;
    reader_platform(handoff, &host);
    if (host.bell != READER_NO_BELL || reader_find(&host))
        require(reader_negotiate(&host) == READER_SUCCESS, "negotiate failed");
}

static void send_to(uint16_t vector, unsigned line)
{
    const struct pvmsi_message message = machine_message(function.function, line);
    const uint32_t status =
        reader_set_message(&function, vector, message.address, message.data);

    require(status == READER_SUCCESS, "a message was not taken");
}

/* What the host says must be what the guest has. */
static void query(uint32_t assigned)
{
    uint32_t answers[READER_ANSWERS];

    if (!host.ready)
        return;
    require(reader_query(&function, answers) == READER_SUCCESS, "query-function failed");
    require(answers[READER_ASSIGNED] == assigned, "the host has assigned another number");
}

_Noreturn void guest_main(const void *handoff)
{
    uint64_t bar;

    machine_start();
    bar = software_start(&function.function);
    find_service(handoff);
    function.host = &host;
    function.msix_cap = find_capability(function.function);
    function.table = bar + (machine_read_config(function.function,
                                                (uint16_t)(function.msix_cap + 4), 4) & ~7u);
    function.vectors = vectors;
    function.room = VECTORS;
    function.interrupt = interrupt;

    const uint32_t status = reader_configure(&function, VECTORS);
    require((status == READER_SUCCESS) == host.ready, "configure failed");
    require(function.count == VECTORS && function.assigned == host.ready, "another grant");
    for (uint16_t vector = 0; vector < VECTORS; vector++) {
        send_to(vector, vector);
        reader_enable(&function, vector, true);
    }
    machine_print("reader's guest: 4 vectors, ");
    machine_print(function.assigned ? "paravirtual, " : "legacy, ");
    machine_print(function.mode != 0 ? "direct\n" : "trapped\n");
    for (uint16_t vector = 0; vector < VECTORS; vector++)
        raise_and_take(vector, vector);

    const struct taken before = software_taken(0);
    reader_enable(&function, 0, false);
    raise_and_see_nothing(0, "an interrupt while masked");
    reader_enable(&function, 0, true);
    expect_one(0, before);
    send_to(1, NEW_LINE);
    raise_and_take(1, NEW_LINE);
    query(function.assigned ? VECTORS : 0);

    /* There was no reset: everything must be as before. */
    require(reader_restore(&function) == READER_SUCCESS, "restore failed");
    raise_and_take(1, NEW_LINE);
    raise_and_take(2, 2);

    reader_release(&function);
    raise_and_see_nothing(2, "an interrupt although MSI-X is off");
    query(0);
    machine_print("reader's guest: all is well\n");
    machine_exit(0);
}
