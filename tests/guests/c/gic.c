/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* GICv3 and its interrupt translation service (Arm IHI 0069), for one processor. */
#include "aarch64.h"

#define GICD_CTLR 0x08000000u
#define GICD_CTLR_GROUP1 (1u << 1)
#define GICD_CTLR_AFFINITY (1u << 4)

#define GICR 0x080a0000u
#define GICR_CTLR GICR
#define GICR_CTLR_LPIS 1u
#define GICR_WAKER (GICR + 0x14)
#define GICR_WAKER_SLEEP (1u << 1)
#define GICR_WAKER_ASLEEP (1u << 2)
#define GICR_PROPBASER (GICR + 0x70)
#define GICR_PENDBASER (GICR + 0x78)
#define PENDBASER_ZERO (1ull << 62)

#define GITS 0x08080000u
#define GITS_CTLR GITS
#define GITS_CTLR_ENABLED 1u
#define GITS_TYPER (GITS + 0x08)
#define GITS_CBASER (GITS + 0x80)
#define GITS_CWRITER (GITS + 0x88)
#define GITS_CREADR (GITS + 0x90)
#define GITS_BASER(n) (GITS + 0x100 + 8 * (n))
#define BASER_DEVICES 1u
#define BASER_COLLECTIONS 4u
#define BASER_64K (2ull << 8)
#define VALID (1ull << 63)

/* Write-back, inner shareable: the fields of GICR_*BASER, and of GITS_*BASER. */
#define GICR_CACHED (7ull << 7 | 1ull << 10)
#define GITS_CACHED (7ull << 59 | 1ull << 10)

#define MAPD 0x08u
#define MAPC 0x09u
#define MAPTI 0x0au
#define INT 0x03u
#define SYNC 0x05u

#define FIRST_LPI 8192u
/* Interrupt ids of 14 bits: twice as many as there are before the first LPI. */
#define ID_BITS 14
#define LPI_ENABLED_PRIORITY 0x81
/* 16 events of a device. */
#define EVENT_BITS 4
#define COLLECTION 0u

static uint8_t configuration[(1 << ID_BITS) - FIRST_LPI] __attribute__((aligned(65536)));
static uint8_t pending[65536] __attribute__((aligned(65536)));
static uint8_t devices[65536] __attribute__((aligned(65536)));
static uint8_t collections[65536] __attribute__((aligned(65536)));
static uint8_t translations[4096] __attribute__((aligned(256)));
static volatile uint64_t queue[4096 / 8] __attribute__((aligned(65536)));

static uint64_t read64(uint64_t address)
{
    uint64_t value;
    __asm__ volatile("ldr %0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static void write64(uint64_t address, uint64_t value)
{
    __asm__ volatile("dsb sy; str %0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static _Noreturn void fail(const char *what)
{
    machine_print("c guest: ");
    machine_print(what);
    machine_exit(1);
}

/* Hands a command over and waits until it is executed. */
static void command(uint64_t word0, uint64_t word1, uint64_t word2)
{
    const uint64_t offset = read64(GITS_CWRITER);
    const uint64_t next = (offset + 32) % sizeof(queue);

    queue[offset / 8] = word0;
    queue[offset / 8 + 1] = word1;
    queue[offset / 8 + 2] = word2;
    queue[offset / 8 + 3] = 0;
    write64(GITS_CWRITER, next);
    for (unsigned us = 0; read64(GITS_CREADR) != next; us++) {
        if (us > 1000000)
            fail("the translation service does not take a command\n");
        machine_wait_us(1);
    }
}

static void start_processor(void)
{
    /* The distributor. */
    register_write(GICD_CTLR, GICD_CTLR_AFFINITY | GICD_CTLR_GROUP1);
    /* The redistributor. Its tables cannot change while LPIs are on. */
    register_write(GICR_WAKER, register_read(GICR_WAKER) & ~GICR_WAKER_SLEEP);
    while (register_read(GICR_WAKER) & GICR_WAKER_ASLEEP)
        ;
    register_write(GICR_CTLR, 0);
    for (unsigned lpi = 0; lpi < sizeof(configuration); lpi++)
        configuration[lpi] = LPI_ENABLED_PRIORITY;
    write64(GICR_PROPBASER, (uintptr_t)configuration | GICR_CACHED | (ID_BITS - 1));
    write64(GICR_PENDBASER, (uintptr_t)pending | GICR_CACHED | PENDBASER_ZERO);
    register_write(GICR_CTLR, GICR_CTLR_LPIS);
    /* The CPU interface: system registers (ICC_SRE_EL1), all priorities (ICC_PMR_EL1), group 1
     * (ICC_IGRPEN1_EL1). */
    __asm__ volatile("msr s3_0_c12_c12_5, %0; isb" : : "r"(7ul));
    __asm__ volatile("msr s3_0_c4_c6_0, %0" : : "r"(0xfful));
    __asm__ volatile("msr s3_0_c12_c12_7, %0; isb" : : "r"(1ul));
}

static void start_translation(void)
{
    register_write(GITS_CTLR, 0);
    for (unsigned n = 0; n < 8; n++) {
        const unsigned kind = read64(GITS_BASER(n)) >> 56 & 7;
        const uint64_t table = kind == BASER_DEVICES ? (uintptr_t)devices : (uintptr_t)collections;

        if (kind == BASER_DEVICES || kind == BASER_COLLECTIONS)
            write64(GITS_BASER(n), VALID | GITS_CACHED | table | BASER_64K);
    }
    write64(GITS_CBASER, VALID | GITS_CACHED | (uintptr_t)queue); /* one page of 4 KiB */
    write64(GITS_CWRITER, 0);
    register_write(GITS_CTLR, GITS_CTLR_ENABLED);
    /* The collection of processor 0. */
    command(MAPC, 0, VALID | COLLECTION);
    command(SYNC, 0, 0);
}

void gic_start(void)
{
    start_processor();
    start_translation();
}

void gic_map(uint16_t device, unsigned event)
{
    static bool device_mapped;
    static bool event_mapped[LINES];
    const uint64_t id = (uint64_t)device << 32;

    if (!device_mapped)
        command(MAPD | id, EVENT_BITS - 1, VALID | (uintptr_t)translations);
    if (!event_mapped[event])
        command(MAPTI | id, (uint64_t)(FIRST_LPI + event) << 32 | event, COLLECTION);
    command(SYNC, 0, 0);
    device_mapped = event_mapped[event] = true;
}

void gic_raise(uint16_t device, unsigned event)
{
    command(INT | (uint64_t)device << 32, event, 0);
}

/* Called by the exception vector, with interrupts off. */
void gic_interrupt(void);

void gic_interrupt(void)
{
    uint64_t id;

    __asm__ volatile("mrs %0, s3_0_c12_c12_0; dsb sy" : "=r"(id) : : "memory"); /* ICC_IAR1_EL1 */
    if (id >= 1020 && id < FIRST_LPI)
        return; /* spurious */
    if (id < FIRST_LPI || id >= FIRST_LPI + LINES)
        fail("an interrupt that nobody has asked for\n");
    guest_interrupt((unsigned)(id - FIRST_LPI));
    __asm__ volatile("msr s3_0_c12_c12_1, %0; isb" : : "r"(id) : "memory"); /* ICC_EOIR1_EL1 */
}
