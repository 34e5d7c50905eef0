/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A guest in C: takes MSI-X interrupts of the software function through the guest half of PV-MSI,
 * with the service where the host offers it and the standard way where not.
 *
 * Then once more with calls only, as a kernel that has an MSI-X layer of its own.
 *
 * Exit status 0 when each event came exactly once, at the right line, and never while masked;
 * else 1 and a line on the serial port.
 */
#include <stddef.h>

#include "machine.h"
#include "software.h"

#define VECTORS 8
/* A line that no vector starts with: the update moves one there. */
#define NEW_LINE VECTORS

static uint8_t call_buffer[4096] __attribute__((aligned(4096)));
static struct pvmsi_client client_storage;
static struct pvmsi_msix msix;
/* Where each vector's interrupt goes. */
static unsigned line_of[VECTORS];

static void succeed(pvmsi_status status, const char *what)
{
    if (status != PVMSI_STATUS_SUCCESS) {
        machine_print("c guest: ");
        machine_print(what);
        machine_print(": ");
        fail(pvmsi_status_text(status));
    }
}

/* What the guest half asks of a kernel. The context is the function's number. */

static uint16_t read_config_u16(void *context, uint16_t offset)
{
    return (uint16_t)machine_read_config(*(uint32_t *)context, offset, 2);
}

static uint32_t read_config_u32(void *context, uint16_t offset)
{
    return machine_read_config(*(uint32_t *)context, offset, 4);
}

static void write_config_u16(void *context, uint16_t offset, uint16_t value)
{
    machine_write_config(*(uint32_t *)context, offset, 2, value);
}

static void deliver(void *context, uint16_t vector)
{
    machine_raise(*(uint32_t *)context, line_of[vector]);
}

static void wait_us(void *context, uint32_t microseconds)
{
    (void)context;
    machine_wait_us(microseconds);
}

/* The client, or NULL where the host has no service. */
static struct pvmsi_client *find_service(const void *handoff)
{
    const struct pvmsi_call_buffer buffer = {
        .start = call_buffer,
        .physical = (uintptr_t)call_buffer,
        .length = sizeof(call_buffer),
    };
    const struct pvmsi_delay delay = { .wait_us = wait_us };
    struct pvmsi_doorbell doorbell;
    struct pvmsi_agreement agreement;

    if (!machine_doorbell(handoff, &doorbell))
        return NULL;
    succeed(pvmsi_client_init(&client_storage, &doorbell, &buffer, &delay), "client");
    succeed(pvmsi_negotiate(&client_storage, &agreement), "negotiate");
    require(agreement.version_major == 1, "another version was agreed on");
    return &client_storage;
}

static void masked(uint16_t vector)
{
    const struct taken before = software_taken(line_of[vector]);
    bool pending;

    succeed(pvmsi_msix_mask(&msix, vector), "mask");
    raise_and_see_nothing(vector, "an interrupt while masked");
    succeed(pvmsi_msix_is_pending(&msix, vector, &pending), "pending");
    require(pending, "a masked event is not pending");
    succeed(pvmsi_msix_unmask(&msix, vector), "unmask");
    expect_one(line_of[vector], before);
}

static void set(struct pvmsi_client *client, uint32_t id, uint16_t vector, unsigned line)
{
    const struct pvmsi_message message = machine_message(id, line);

    succeed(pvmsi_msix_set(&msix, client, vector, message.address, message.data), "set");
    line_of[vector] = line;
}

/* What the host says must be what the guest has done. */
static void query(struct pvmsi_client *client, uint32_t id, uint16_t assigned)
{
    struct pvmsi_vector_state vectors[VECTORS];
    struct pvmsi_function_state function;

    succeed(pvmsi_query_function(client, id, &function), "query-function");
    require(function.assigned == assigned, "the host has assigned another number of vectors");
    succeed(pvmsi_query_vectors(client, id, 0, VECTORS, vectors, NULL), "query-vectors");
    for (unsigned vector = 0; vector < VECTORS; vector++)
        require(vectors[vector].assigned == (vector < assigned), "a vector is not what it was");
}

static void print_state(void)
{
    struct pvmsi_msix_state state;

    succeed(pvmsi_msix_get_state(&msix, &state), "state");
    require(state.granted == VECTORS, "another number of vectors than was granted");
    machine_print("c guest: 8 vectors, ");
    machine_print(state.world == PVMSI_WORLD_PARAVIRTUAL ? "paravirtual, " : "legacy, ");
    machine_print(state.mode == PVMSI_TABLE_MODE_DIRECT ? "direct\n" : "trapped\n");
}

/* A store to vector control that has arrived. */
static void set_masked(uint64_t table, uint16_t vector, bool value)
{
    const uint64_t control = table + vector * 16u + 12;

    register_write(control, value);
    register_read(control);
}

/* MSI-X Enable, Function Mask and the table are this guest's own; the library makes the calls. */
static void configure(struct pvmsi_client *client, uint32_t id, uint16_t capability,
                      uint64_t table)
{
    const uint16_t control = capability + 2;
    const uint16_t others = read_config_u16(&id, control) & 0x3fff;
    struct pvmsi_vector_setup setups[VECTORS / 2];
    struct pvmsi_vector_update updates[VECTORS / 2];
    struct pvmsi_vector_answer answers[VECTORS];
    struct pvmsi_grant grant;
    struct taken before;

    write_config_u16(&id, control, others | 0xc000);
    for (uint16_t vector = 0; vector < VECTORS; vector++)
        set_masked(table, vector, true);
    raise_and_see_nothing(3, "an interrupt before the call");

    /* The first half with messages, the other half without. */
    for (uint16_t vector = 0; vector < VECTORS / 2; vector++) {
        const struct pvmsi_message message = machine_message(id, vector);

        setups[vector] = (struct pvmsi_vector_setup){
            .address = message.address, .data = message.data, .masked = true,
        };
    }
    succeed(pvmsi_configure(client, id, VECTORS, setups, VECTORS / 2, answers, &grant),
            "configure");
    require(grant.granted == VECTORS, "configure: fewer than 8 vectors granted");
    require((grant.mode == PVMSI_TABLE_MODE_DIRECT) == (grant.reasons == 0), "mode and reasons");
    for (uint16_t vector = 0; vector < VECTORS; vector++) {
        const uint64_t entry = table + vector * 16u;
        const uint64_t address = (uint64_t)register_read(entry + 4) << 32 | register_read(entry);

        require(answers[vector].table_message.address == address
                    && answers[vector].table_message.data == register_read(entry + 8),
                "the table holds another message");
        require(!answers[vector].pending || vector == 2 || vector == 3,
                "a pending bit without an event");
    }
    for (uint16_t i = 0; i < VECTORS / 2; i++) {
        const uint16_t vector = VECTORS / 2 + i;
        const struct pvmsi_message message = machine_message(id, vector);

        updates[i] = (struct pvmsi_vector_update){
            .address = message.address, .data = message.data, .vector = vector,
        };
    }
    succeed(pvmsi_update(client, id, updates, VECTORS / 2, NULL), "update");
    write_config_u16(&id, control, others | 0x8000);

    for (uint16_t vector = 0; vector < VECTORS; vector++) {
        before = software_taken(vector);
        set_masked(table, vector, false);
        /* The host has taken the event, or it waits in the function and comes by itself. That of
         * vector 2 came when MSI-X was off. */
        if (answers[vector].pending)
            machine_raise(id, vector);
        if (vector == 2 || vector == 3)
            expect_one(vector, before);
    }
    for (uint16_t vector = 0; vector < VECTORS; vector++)
        raise_and_take(vector, vector);
    before = software_taken(5);
    set_masked(table, 5, true);
    raise_and_see_nothing(5, "an interrupt while masked");
    set_masked(table, 5, false);
    expect_one(5, before);
    query(client, id, VECTORS);

    succeed(pvmsi_release(client, id, NULL), "release");
    raise_and_see_nothing(2, "an interrupt although the function was released");
    query(client, id, 0);
    write_config_u16(&id, control, others);
}

_Noreturn void guest_main(const void *handoff)
{
    struct pvmsi_msix_capability capability;
    struct pvmsi_client *client;
    uint16_t granted;
    uint32_t id, named;

    machine_start();
    const uint64_t bar = software_start(&id);
    succeed(pvmsi_function_id(0, 0, id >> 3 & 31, id & 7, &named), "function id");
    require(named == id, "the function has another number");
    const struct pvmsi_function function = {
        .context = &id,
        .read_config_u16 = read_config_u16,
        .read_config_u32 = read_config_u32,
        .write_config_u16 = write_config_u16,
        .deliver = deliver,
        .id = id,
    };
    succeed(pvmsi_msix_find(&function, &capability), "capability");
    require(capability.table_size >= VECTORS, "the function has fewer than 8 vectors");
    require(capability.table_bar == 0 && capability.pending_bar == 0, "the table is not in BAR 0");

    client = find_service(handoff);
    succeed(pvmsi_msix_init(&msix, &function, &capability,
                            (void *)(uintptr_t)(bar + capability.table_offset),
                            (void *)(uintptr_t)(bar + capability.pending_offset)),
            "MSI-X");
    succeed(pvmsi_msix_enable(&msix, client, VECTORS, &granted), "enable");
    require(granted == VECTORS, "fewer than 8 vectors granted");
    for (uint16_t vector = 0; vector < VECTORS; vector++) {
        set(client, id, vector, vector);
        succeed(pvmsi_msix_unmask(&msix, vector), "unmask");
    }
    print_state();
    for (uint16_t vector = 0; vector < VECTORS; vector++)
        raise_and_take(vector, line_of[vector]);
    masked(0);
    set(client, id, 1, NEW_LINE);
    raise_and_take(1, line_of[1]);
    masked(1);
    if (client != NULL)
        query(client, id, VECTORS);

    succeed(pvmsi_msix_disable(&msix), "disable");
    raise_and_see_nothing(2, "an interrupt although MSI-X is off");
    if (client != NULL) {
        query(client, id, 0);
        configure(client, id, capability.offset, bar + capability.table_offset);
    }
    machine_print("c guest: all is well\n");
    machine_exit(0);
}
