/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The machine on arm64: configuration space, timer, serial port. */
#include "aarch64.h"

#define SERIAL 0x09000000u
#define SERIAL_LINE_STATUS (SERIAL + 5)
#define EXIT 0x0a010004u
#define ECAM 0x3f000000u

/* Only plain loads and stores: a host sees no others of device memory. */

uint32_t register_read(uint64_t address)
{
    uint32_t value;
    __asm__ volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

void register_write(uint64_t address, uint32_t value)
{
    __asm__ volatile("str %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static uint32_t read16(uint64_t address)
{
    uint32_t value;
    __asm__ volatile("ldrh %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static void write16(uint64_t address, uint32_t value)
{
    __asm__ volatile("strh %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static uint32_t read8(uint64_t address)
{
    uint32_t value;
    __asm__ volatile("ldrb %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static void write8(uint64_t address, uint32_t value)
{
    __asm__ volatile("strb %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

void machine_start(void)
{
    gic_start();
    __asm__ volatile("msr daifclr, #2" : : : "memory");
}

/* A function's device id is its requester id; its events are the lines. */
struct pvmsi_message machine_message(uint32_t id, unsigned line)
{
    gic_map((uint16_t)id, line);
    return (struct pvmsi_message){ .address = ITS_TRANSLATER, .data = line };
}

void machine_raise(uint32_t id, unsigned line)
{
    gic_raise((uint16_t)id, line);
}

static uint64_t config_address(uint32_t id, uint16_t offset)
{
    return ECAM + ((uint64_t)(id & 0xff) << 12) + offset;
}

uint32_t machine_read_config(uint32_t id, uint16_t offset, unsigned bytes)
{
    const uint64_t address = config_address(id, offset);

    if (bytes == 1)
        return read8(address);
    return bytes == 2 ? read16(address) : register_read(address);
}

void machine_write_config(uint32_t id, uint16_t offset, unsigned bytes, uint32_t value)
{
    const uint64_t address = config_address(id, offset);

    if (bytes == 2)
        write16(address, value);
    else
        register_write(address, value);
}

/* The virtual counter (CNTVCT_EL0), and how often it counts in a second. */
static uint64_t counter(void)
{
    uint64_t value;
    __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(value) : : "memory");
    return value;
}

void machine_wait_us(uint32_t microseconds)
{
    uint64_t frequency;
    const uint64_t start = counter();

    __asm__("mrs %0, cntfrq_el0" : "=r"(frequency));
    while (counter() - start < frequency * microseconds / 1000000)
        __asm__ volatile("yield");
}

void machine_print(const char *text)
{
    for (; *text != '\0'; text++) {
        while (!(read8(SERIAL_LINE_STATUS) & 0x20))
            ;
        write8(SERIAL, (uint8_t)*text);
    }
}

_Noreturn void machine_exit(uint8_t status)
{
    register_write(EXIT, status);
    for (;;)
        __asm__ volatile("wfi");
}

/* Called by the exception vectors. */
_Noreturn void machine_exception(void);

_Noreturn void machine_exception(void)
{
    machine_print("c guest: an unexpected exception\n");
    machine_exit(1);
}
