/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What a guest needs of the machine (hypervisor/vmm/MACHINE.md), the same on every architecture.
 *
 * An interrupt line is a number below LINES: an interrupt vector of the processor on x86_64, an
 * LPI on arm64.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include <pvmsi_guest.h>

#define LINES 16

/* Called by the architecture's entry code, with interrupts off. `handoff`: what the machine hands
 * over (x86_64: start info, arm64: device tree). */
_Noreturn void guest_main(const void *handoff);

/* Called by the architecture's interrupt handler. */
void guest_interrupt(unsigned line);

/* Makes the interrupt controller ready and switches interrupts on. */
void machine_start(void);

/* Finds the doorbell of PV-MSI; false when the host does not offer the service. */
bool machine_doorbell(const void *handoff, struct pvmsi_doorbell *doorbell);

/* The message that makes a function raise a line; it is ready to arrive when this returns.
 * `id`: the function, as PV-MSI numbers it. */
struct pvmsi_message machine_message(uint32_t id, unsigned line);

/* Raises a line as if the function had sent its message. */
void machine_raise(uint32_t id, unsigned line);

uint32_t machine_read_config(uint32_t id, uint16_t offset, unsigned bytes);
void machine_write_config(uint32_t id, uint16_t offset, unsigned bytes, uint32_t value);

void machine_wait_us(uint32_t microseconds);
void machine_print(const char *text);

/* Ends the run. */
_Noreturn void machine_exit(uint8_t status);

/* 32-bit device registers, in the order of the program. */
uint32_t register_read(uint64_t address);
void register_write(uint64_t address, uint32_t value);

#endif
