/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The machine on x86_64: interrupt table, local APIC, configuration mechanism 1, COM1. */
#include "machine.h"

#define FIRST_VECTOR 0x40
#define SPURIOUS_VECTOR 0xff

#define COM1 0x3f8
#define COM1_LINE_STATUS (COM1 + 5)
#define EXIT 0xf4
#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc

/* Registers of the local APIC (Intel SDM volume 3, chapter 12). */
#define APIC 0xfee00000u
#define APIC_TASK_PRIORITY (APIC + 0x80)
#define APIC_EOI (APIC + 0xb0)
#define APIC_SPURIOUS (APIC + 0xf0)
#define APIC_COMMAND (APIC + 0x300)
#define APIC_TIMER (APIC + 0x320)
#define APIC_TIMER_INITIAL (APIC + 0x380)
#define APIC_TIMER_CURRENT (APIC + 0x390)
#define APIC_TIMER_DIVIDE (APIC + 0x3e0)
#define APIC_ENABLE (1u << 8)
#define TIMER_MASKED (1u << 16)
#define TIMER_DIVIDE_BY_1 0xbu
#define COMMAND_SELF (1u << 18)
#define COMMAND_ASSERT (1u << 14)

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

uint32_t register_read(uint64_t address)
{
    return *(volatile uint32_t *)(uintptr_t)address;
}

void register_write(uint64_t address, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)address = value;
}

/* What the processor pushes. */
struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

struct gate {
    uint16_t offset_low, selector;
    uint8_t stack, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

static struct gate gates[256] __attribute__((aligned(16)));

#define LINE(n)                                                              \
    static __attribute__((interrupt)) void line_##n(struct frame *frame)     \
    {                                                                        \
        (void)frame;                                                         \
        guest_interrupt(n);                                                  \
        register_write(APIC_EOI, 0);                                         \
    }
LINE(0) LINE(1) LINE(2) LINE(3) LINE(4) LINE(5) LINE(6) LINE(7)
LINE(8) LINE(9) LINE(10) LINE(11) LINE(12) LINE(13) LINE(14) LINE(15)

static void (*const lines[LINES])(struct frame *) = {
    line_0, line_1, line_2, line_3, line_4, line_5, line_6, line_7,
    line_8, line_9, line_10, line_11, line_12, line_13, line_14, line_15,
};

/* An exception, or an interrupt that nobody has asked for. With some exceptions there is an error
 * code on the stack; nobody returns from here, so it does not matter. */
static __attribute__((interrupt)) void unexpected(struct frame *frame)
{
    (void)frame;
    machine_print("c guest: an exception or an unexpected interrupt\n");
    machine_exit(1);
}

static __attribute__((interrupt)) void spurious(struct frame *frame)
{
    (void)frame;
}

static void set_gate(unsigned vector, void (*handler)(struct frame *))
{
    uint64_t address = (uintptr_t)handler;
    uint16_t selector;

    __asm__("mov %%cs, %0" : "=r"(selector));
    gates[vector] = (struct gate){
        .offset_low = (uint16_t)address,
        .selector = selector,
        .type = 0x8e, /* present, privilege level 0, 64-bit interrupt gate */
        .offset_middle = (uint16_t)(address >> 16),
        .offset_high = (uint32_t)(address >> 32),
    };
}

void machine_start(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } table = { sizeof(gates) - 1, (uintptr_t)gates };

    for (unsigned vector = 0; vector < 256; vector++)
        set_gate(vector, unexpected);
    for (unsigned line = 0; line < LINES; line++)
        set_gate(FIRST_VECTOR + line, lines[line]);
    set_gate(SPURIOUS_VECTOR, spurious);
    __asm__ volatile("lidt %0" : : "m"(table));
    /* The legacy interrupt controllers (8259): all masked. */
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    register_write(APIC_TASK_PRIORITY, 0);
    register_write(APIC_TIMER, TIMER_MASKED);
    register_write(APIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_1);
    register_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    __asm__ volatile("sti" : : : "memory");
}

struct pvmsi_message machine_message(uint32_t id, unsigned line)
{
    (void)id;
    return (struct pvmsi_message){ .address = APIC, .data = FIRST_VECTOR + line };
}

void machine_raise(uint32_t id, unsigned line)
{
    (void)id;
    register_write(APIC_COMMAND, COMMAND_SELF | COMMAND_ASSERT | (FIRST_VECTOR + line));
}

static uint16_t select_config(uint32_t id, uint16_t offset)
{
    out32(PCI_ADDRESS, 0x80000000u | (id & 0xffff) << 8 | (offset & 0xfcu));
    return (uint16_t)(PCI_DATA | (offset & 3));
}

uint32_t machine_read_config(uint32_t id, uint16_t offset, unsigned bytes)
{
    uint32_t value;

    select_config(id, offset);
    value = in32(PCI_DATA) >> (offset & 3) * 8;
    return bytes == 4 ? value : value & ((1u << bytes * 8) - 1);
}

void machine_write_config(uint32_t id, uint16_t offset, unsigned bytes, uint32_t value)
{
    uint16_t port = select_config(id, offset);

    if (bytes == 2)
        out16(port, (uint16_t)value);
    else
        out32(port, value);
}

/* The timer counts nanoseconds under KVM. */
void machine_wait_us(uint32_t microseconds)
{
    while (microseconds != 0) {
        uint32_t now = microseconds > 1000000 ? 1000000 : microseconds;

        register_write(APIC_TIMER_INITIAL, now * 1000);
        while (register_read(APIC_TIMER_CURRENT) != 0)
            __asm__ volatile("pause");
        microseconds -= now;
    }
}

void machine_print(const char *text)
{
    for (; *text != '\0'; text++) {
        while (!(in8(COM1_LINE_STATUS) & 0x20))
            ;
        out8(COM1, (uint8_t)*text);
    }
}

_Noreturn void machine_exit(uint8_t status)
{
    out8(EXIT, status);
    for (;;)
        __asm__ volatile("cli; hlt");
}
