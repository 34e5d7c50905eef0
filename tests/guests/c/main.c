/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A guest in C: takes MSI-X interrupts of the software function through the guest half of PV-MSI,
 * with the service where the host offers it and the standard way where not.
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
    if (client != NULL)
        query(client, id, 0);
    machine_print("c guest: all is well\n");
    machine_exit(0);
}
