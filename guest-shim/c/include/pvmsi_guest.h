/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Guest half of PV-MSI, the paravirtual MSI service for KVM guests. README.md says how a kernel
 * links it.
 *
 * What every function relies on:
 * 1. A pointer is NULL, or it is valid for reads and writes (const: for reads) of what it points
 *    to, for as long as the call takes. "Safety" below says which may be NULL.
 * 2. Storage that was handed to an init function is changed by functions of this library only,
 *    until the kernel initialises it again or never uses it any more.
 * 3. Callbacks may be called as long as the object exists that they were given to, return
 *    normally, and need no more stack than a kernel function.
 *
 * No function allocates memory, keeps anything outside of the kernel's storage, or uses floating
 * point or vector registers. All may be called with interrupts off.
 */


#ifndef PVMSI_GUEST_H
#define PVMSI_GUEST_H

/* Made by `cargo xtask shim` from guest-shim/c/src; do not edit. */


#ifdef PVMSI_TYPES_HEADER
/* A kernel's own header that defines bool and the types of fixed width. */
#include PVMSI_TYPES_HEADER
#else
#include <stdbool.h>
#include <stdint.h>
#endif


/**
 * No vectors are assigned.
 */
#define PVMSI_REASON_NOT_ASSIGNED (1 << 0)

/**
 * The operator allows the call but not the mapping.
 */
#define PVMSI_REASON_POLICY (1 << 1)

/**
 * The host cannot confine the function to its own interrupts.
 */
#define PVMSI_REASON_NO_ISOLATION (1 << 2)

/**
 * The table's pages cannot be mapped.
 */
#define PVMSI_REASON_NOT_MAPPABLE (1 << 3)

/**
 * MSI-X Enable is clear.
 */
#define PVMSI_REASON_MSIX_DISABLED (1 << 4)

/**
 * Memory Space Enable is clear.
 */
#define PVMSI_REASON_DECODING_OFF (1 << 5)

/**
 * The function is not in power state D0.
 */
#define PVMSI_REASON_POWER_STATE (1 << 6)

/**
 * The host has taken the table back, for a while or for good.
 */
#define PVMSI_REASON_HOST_REVOKED (1 << 7)

/**
 * An event is held for a vector that is masked; direct again once it is delivered.
 */
#define PVMSI_REASON_HELD_EVENT (1 << 8)

/**
 * The guest moved to another host.
 */
#define PVMSI_REASON_MIGRATED (1 << 9)

/**
 * The mechanism has no table (MSI).
 */
#define PVMSI_REASON_NO_TABLE (1 << 10)

/**
 * The host does not find its own messages in the table.
 */
#define PVMSI_REASON_UNREADABLE (1 << 11)

/**
 * No doorbell.
 */
#define PVMSI_DOORBELL_NONE 0

/**
 * A 32-bit write to an I/O port (x86_64). `number` is the port.
 */
#define PVMSI_DOORBELL_PORT 1

/**
 * An SMCCC call (arm64). `number` is the conduit, PVMSI_CONDUIT_HVC or PVMSI_CONDUIT_SMC; the
 * code runs at EL1.
 */
#define PVMSI_DOORBELL_SMCCC 2

/**
 * A 32-bit store to a device register, which the kernel has mapped uncached, on every processor,
 * for good. `pointer` is where; aligned to 4 bytes.
 */
#define PVMSI_DOORBELL_MMIO 3

/**
 * A function of the kernel: `ring`, which gets `pointer`. For kernels that have their own way
 * into the host, and for tests.
 */
#define PVMSI_DOORBELL_CALLBACK 4

/**
 * The instruction `HVC #0`.
 */
#define PVMSI_CONDUIT_HVC 1

/**
 * The instruction `SMC #0`.
 */
#define PVMSI_CONDUIT_SMC 2

/**
 * The host may make tables direct.
 */
#define PVMSI_FEATURE_DIRECT (1 << 0)

/**
 * The host takes MSI as well as MSI-X.
 */
#define PVMSI_FEATURE_MSI (1 << 1)

/**
 * Messages may carry extended destination ids (x86: 15 bits).
 */
#define PVMSI_FEATURE_EXTENDED_DESTINATION_ID (1 << 2)

/**
 * Stands in pvmsi_detail when the error concerns no single vector.
 */
#define PVMSI_NO_VECTOR 4294967295

/**
 * What became of a call. Every error is negative; a call that fails has changed nothing, unless
 * its description says otherwise.
 */
enum pvmsi_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Done.
     */
    PVMSI_STATUS_SUCCESS = 0,
    /**
     * The host does not know the call, the version, or the whole service. Use the standard
     * vector table; do not ask again.
     */
    PVMSI_STATUS_NOT_SUPPORTED = -1,
    /**
     * No function of this machine has that address. Check the address; rescan the bus.
     */
    PVMSI_STATUS_NO_SUCH_FUNCTION = -2,
    /**
     * The request itself is wrong; pvmsi_client_detail says which part of it. Mend the caller;
     * repeating is useless.
     */
    PVMSI_STATUS_PARAMETER = -3,
    /**
     * The host was busy for longer than the call waits. Ask later.
     */
    PVMSI_STATUS_BUSY = -4,
    /**
     * The host has no vector left. Ask for fewer, ask later, or use the standard vector table.
     */
    PVMSI_STATUS_NO_RESOURCES = -5,
    /**
     * The operator does not allow it for this function. Use the standard vector table.
     */
    PVMSI_STATUS_DENIED = -6,
    /**
     * The host or the function failed, or the host's answer is none. Reset the function, or use
     * the standard vector table.
     */
    PVMSI_STATUS_HARDWARE = -7,
    /**
     * MSI-X is enabled already. Call pvmsi_msix_disable first.
     */
    PVMSI_STATUS_ENABLED = -8,
    /**
     * 0 vectors, or more than the vector table has; or more setups than vectors. Ask for fewer.
     */
    PVMSI_STATUS_COUNT = -9,
    /**
     * A vector that was not granted. Use vectors below the number that pvmsi_msix_enable
     * granted.
     */
    PVMSI_STATUS_VECTOR = -10,
    /**
     * The vectors belong to the host's service, and no client was given. Pass a client.
     */
    PVMSI_STATUS_CLIENT_MISSING = -11,
    /**
     * A pointer is NULL or misaligned. Mend the caller.
     */
    PVMSI_STATUS_POINTER = -12,
    /**
     * The object was never initialised. Call its init function first.
     */
    PVMSI_STATUS_NOT_INITIALISED = -13,
    /**
     * Another processor, or the code that this interrupts, is in a call with this client.
     * Serialise calls with a lock that keeps interrupts off, or give each processor a client.
     */
    PVMSI_STATUS_CLIENT_IN_USE = -14,
    /**
     * The call buffer is not aligned to 4096 bytes, not below 16 TiB, or not 4096 to 65,536
     * bytes long. Give another one.
     */
    PVMSI_STATUS_CALL_BUFFER = -15,
    /**
     * There is no doorbell of this kind on this processor, or its number is out of range. Take
     * the one that pvmsi_discover has filled in.
     */
    PVMSI_STATUS_DOORBELL = -16,
    /**
     * The function has no MSI-X capability, or there is none at that offset. Use MSI or INTx.
     */
    PVMSI_STATUS_NO_MSIX = -17,
    /**
     * Bus, device or function number out of range: a bus has 32 devices, a device 8 functions.
     * Mend the caller.
     */
    PVMSI_STATUS_ADDRESS = -18,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pvmsi_status pvmsi_status;
#else
typedef int32_t pvmsi_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which part of a request is wrong, with PVMSI_STATUS_PARAMETER.
 */
enum pvmsi_parameter
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * None, or the host does not say.
     */
    PVMSI_PARAMETER_NONE = 0,
    /**
     * The header of the call buffer.
     */
    PVMSI_PARAMETER_HEADER = 1,
    /**
     * The version.
     */
    PVMSI_PARAMETER_VERSION = 2,
    /**
     * The length of the call buffer: too short for so many vectors (see
     * pvmsi_call_buffer_bytes), or not all of it in RAM.
     */
    PVMSI_PARAMETER_BUFFER_LENGTH = 3,
    /**
     * The length of the request in the call buffer.
     */
    PVMSI_PARAMETER_BODY_LENGTH = 4,
    /**
     * The request in the call buffer cannot be read.
     */
    PVMSI_PARAMETER_BODY = 5,
    /**
     * The call buffer has no room for the answer.
     */
    PVMSI_PARAMETER_ANSWER_ROOM = 6,
    /**
     * The function does not have this kind of interrupt.
     */
    PVMSI_PARAMETER_KIND = 7,
    /**
     * The number of vectors: 0, or more than there can be.
     */
    PVMSI_PARAMETER_COUNT = 8,
    /**
     * A vector outside the table, or not assigned.
     */
    PVMSI_PARAMETER_VECTOR = 9,
    /**
     * A vector that stands twice in one call.
     */
    PVMSI_PARAMETER_DUPLICATE_VECTOR = 10,
    /**
     * A message that the platform cannot deliver.
     */
    PVMSI_PARAMETER_MESSAGE = 11,
    /**
     * The sequence number of a repeated call.
     */
    PVMSI_PARAMETER_SEQUENCE = 12,
    /**
     * A message that another vector of the function has as well: an interrupt translation service
     * takes each event from one vector.
     */
    PVMSI_PARAMETER_SHARED_MESSAGE = 13,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pvmsi_parameter pvmsi_parameter;
#else
typedef uint32_t pvmsi_parameter;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who answers accesses to the pages of the vector table.
 */
enum pvmsi_table_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The host: each access exits.
     */
    PVMSI_TABLE_MODE_TRAPPED = 0,
    /**
     * The function itself: the pages are mapped into the guest.
     */
    PVMSI_TABLE_MODE_DIRECT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pvmsi_table_mode pvmsi_table_mode;
#else
typedef uint32_t pvmsi_table_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Whether an interrupt reaches the guest without the host's processor.
 */
enum pvmsi_delivery
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The host cannot tell.
     */
    PVMSI_DELIVERY_UNKNOWN = 0,
    /**
     * The host's processor takes each interrupt and injects it.
     */
    PVMSI_DELIVERY_HOST = 1,
    /**
     * The host's processor is not involved.
     */
    PVMSI_DELIVERY_BYPASS = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pvmsi_delivery pvmsi_delivery;
#else
typedef uint32_t pvmsi_delivery;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the interrupts of a function are set up.
 */
enum pvmsi_world
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * MSI-X is not enabled.
     */
    PVMSI_WORLD_DISABLED = 0,
    /**
     * The standard way: the guest writes messages into the table, the service is not involved.
     */
    PVMSI_WORLD_LEGACY = 1,
    /**
     * By calls: the host owns the table's messages.
     */
    PVMSI_WORLD_PARAVIRTUAL = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum pvmsi_world pvmsi_world;
#else
typedef uint32_t pvmsi_world;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How a call buffer is handed over to the host.
 */
struct pvmsi_doorbell {
    /**
     * PVMSI_DOORBELL_...
     */
    uint32_t kind;
    /**
     * The port or the conduit; not used by the other kinds.
     */
    uint32_t number;
    /**
     * The mapped register, or what `ring` shall be given; not used by the other kinds.
     */
    void *pointer;
    /**
     * Hands the buffer with this page number over: when it returns, the host has answered, or
     * there is none. Only for PVMSI_DOORBELL_CALLBACK. The client puts memory barriers around
     * it.
     */
    void (*ring)(void *pointer, uint32_t page);
};

/**
 * That the host offers the service, and where its doorbell is.
 */
struct pvmsi_offer {
    /**
     * The highest version that the host speaks, major.
     */
    uint16_t version_major;
    /**
     * The same, minor.
     */
    uint16_t version_minor;
    /**
     * What the host offers: PVMSI_FEATURE_...
     */
    uint32_t features;
    /**
     * The largest call buffer in bytes.
     */
    uint32_t buffer_bytes;
    /**
     * The most vectors of one function.
     */
    uint16_t vectors;
    /**
     * The I/O port of the doorbell; 0 when there is none.
     */
    uint16_t doorbell_port;
    /**
     * The guest physical address of the doorbell register; 0 when there is none.
     */
    uint64_t doorbell_address;
    /**
     * The doorbell to give to pvmsi_client_init: the processor's own way into the host where
     * there is one. Else its kind is PVMSI_DOORBELL_MMIO and its `pointer` NULL: the kernel maps
     * 4 bytes at `doorbell_address` as device memory, and stores the pointer there.
     */
    struct pvmsi_doorbell doorbell;
};

/**
 * Makes calls, one after the other, through one call buffer. Storage is the kernel's, the
 * content is not: pvmsi_client_init fills it.
 *
 * A client may be used with interrupts off and from any processor, by one caller at a time
 * (PVMSI_STATUS_CLIENT_IN_USE tells). It may be moved in memory while it is not in use.
 */
struct pvmsi_client {
    uint64_t opaque[16];
};

/**
 * Memory for calls. 4096 bytes serve every call except pvmsi_msix_enable, pvmsi_configure and
 * pvmsi_update of some hundred vectors, see pvmsi_call_buffer_bytes.
 */
struct pvmsi_call_buffer {
    /**
     * Where the kernel sees it: ordinary, cached RAM that nobody else uses as long as the client
     * exists.
     */
    void *start;
    /**
     * Where it begins in the guest's physical address space, in which it is contiguous; a
     * multiple of 4096, below 16 TiB.
     */
    uint64_t physical;
    /**
     * Its length in bytes, 4096 to 65,536.
     */
    uint32_t length;
};

/**
 * How the kernel waits. Only pvmsi_msix_enable, pvmsi_msix_enable_with and pvmsi_configure use
 * it, when the host is busy; 5 seconds in total at most.
 */
struct pvmsi_delay {
    /**
     * Waits for about so many microseconds. It may spin, and must where interrupts are off. It
     * must not use the client.
     */
    void (*wait_us)(void *context, uint32_t microseconds);
    /**
     * What `wait_us` shall be given.
     */
    void *context;
};

/**
 * Details of an error that the host has answered.
 */
struct pvmsi_detail {
    /**
     * Which part of the request was wrong, with PVMSI_STATUS_PARAMETER.
     */
    pvmsi_parameter parameter;
    /**
     * The vector that it concerns, or PVMSI_NO_VECTOR.
     */
    uint32_t vector;
    /**
     * The host expects to be ready after so many microseconds, with PVMSI_STATUS_BUSY; else 0.
     */
    uint32_t delay_us;
};

/**
 * What guest and host have agreed on.
 */
struct pvmsi_agreement {
    /**
     * The version that both use, major.
     */
    uint16_t version_major;
    /**
     * The same, minor.
     */
    uint16_t version_minor;
    /**
     * The features that both know: PVMSI_FEATURE_...
     */
    uint32_t features;
    /**
     * The largest call buffer that the host takes, in bytes.
     */
    uint32_t buffer_bytes;
    /**
     * The most vectors of one function.
     */
    uint16_t vectors;
};

/**
 * What the service can do for a function, and how it stands.
 */
struct pvmsi_function_state {
    /**
     * Vectors that can be asked for with MSI; 0 when it is not supported.
     */
    uint16_t msi_vectors;
    /**
     * Vectors that can be asked for with MSI-X; 0 when it is not supported.
     */
    uint16_t msix_vectors;
    /**
     * Vectors that are assigned now.
     */
    uint16_t assigned;
    /**
     * Who answers the table now.
     */
    pvmsi_table_mode mode;
    /**
     * Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
     */
    uint32_t reasons;
    /**
     * The number of the state that this describes.
     */
    uint32_t generation;
    /**
     * Whether delivery bypasses the host's processor.
     */
    pvmsi_delivery delivery;
};

/**
 * A message: what a function writes to raise an interrupt.
 */
struct pvmsi_message {
    /**
     * Message Address. 0 stands for *no message*.
     */
    uint64_t address;
    /**
     * Message Data.
     */
    uint32_t data;
};

/**
 * What the host knows of one vector.
 */
struct pvmsi_vector_state {
    /**
     * Where the guest wants the interrupt; address 0 while it has not said so.
     */
    struct pvmsi_message guest_message;
    /**
     * What belongs in the hardware table; address 0 while the host cannot know it.
     */
    struct pvmsi_message table_message;
    /**
     * Whether the service owns the vector's route.
     */
    bool assigned;
    /**
     * The vector's mask bit.
     */
    bool masked;
    /**
     * The vector's pending bit.
     */
    bool pending;
};

/**
 * How a vector shall start, in pvmsi_configure.
 */
struct pvmsi_vector_setup {
    /**
     * Message Address: where the guest wants the interrupt. 0: not known yet, pvmsi_update says
     * it later; events wait until then.
     */
    uint64_t address;
    /**
     * Message Data.
     */
    uint32_t data;
    /**
     * The vector's mask bit from now on.
     */
    bool masked;
};

/**
 * What pvmsi_configure answers for each granted vector.
 */
struct pvmsi_vector_answer {
    /**
     * What stands in the vector's entry of the table; address 0 while the host cannot know it.
     */
    struct pvmsi_message table_message;
    /**
     * An event happened before the call: the kernel raises its interrupt when it unmasks the
     * vector.
     */
    bool pending;
};

/**
 * What pvmsi_configure has granted.
 */
struct pvmsi_grant {
    /**
     * Vectors 0 to `granted` - 1 are assigned, the others are not: at least 1, and perhaps fewer
     * than were asked for.
     */
    uint16_t granted;
    /**
     * Who answers the table from now on.
     */
    pvmsi_table_mode mode;
    /**
     * Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
     */
    uint32_t reasons;
    /**
     * The number of the state after the call.
     */
    uint32_t generation;
};

/**
 * The new message of one vector.
 */
struct pvmsi_vector_update {
    /**
     * Message Address: where the guest wants the interrupt from now on.
     */
    uint64_t address;
    /**
     * Message Data.
     */
    uint32_t data;
    /**
     * The vector index; no vector may stand twice in one call.
     */
    uint16_t vector;
};

/**
 * How a function's table stands.
 */
struct pvmsi_table_state {
    /**
     * Who answers the table now.
     */
    pvmsi_table_mode mode;
    /**
     * Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
     */
    uint32_t reasons;
    /**
     * The number of the state that this describes.
     */
    uint32_t generation;
};

/**
 * What the kernel provides for a PCI function. All functions get `context`.
 */
struct pvmsi_function {
    /**
     * What the functions below shall be given.
     */
    void *context;
    /**
     * Reads 16 bits of config space at a byte offset that is a multiple of 2.
     */
    uint16_t (*read_config_u16)(void *context, uint16_t offset);
    /**
     * Reads 32 bits of config space at a byte offset that is a multiple of 4.
     */
    uint32_t (*read_config_u32)(void *context, uint16_t offset);
    /**
     * Writes 16 bits of config space at a byte offset that is a multiple of 2.
     */
    void (*write_config_u16)(void *context, uint16_t offset, uint16_t value);
    /**
     * Makes the handler of `vector` run once, as if the function had sent the vector's message:
     * an event was pending when the table was switched. Called at most once for such an event,
     * from pvmsi_msix_unmask, after the vector is unmasked, in the context of that call. Sending
     * the vector's interrupt to the own processor is the usual way.
     */
    void (*deliver)(void *context, uint16_t vector);
    /**
     * Segment, bus, device and function number, from pvmsi_function_id.
     */
    uint32_t id;
};

/**
 * The MSI-X capability of a function.
 */
struct pvmsi_msix_capability {
    /**
     * Bytes from the start of its BAR to the vector table.
     */
    uint32_t table_offset;
    /**
     * Bytes from the start of its BAR to the pending bit array.
     */
    uint32_t pending_offset;
    /**
     * Byte offset of the capability in config space.
     */
    uint16_t offset;
    /**
     * Number of entries of the vector table, 1 to 2048.
     */
    uint16_t table_size;
    /**
     * Index of the base address register of the vector table.
     */
    uint8_t table_bar;
    /**
     * Index of the base address register of the pending bit array.
     */
    uint8_t pending_bar;
};

/**
 * The MSI-X interrupts of one function. Storage is the kernel's, the content is not:
 * pvmsi_msix_init fills it.
 *
 * - pvmsi_msix_mask and pvmsi_msix_unmask may run anywhere at any time, interrupt handlers
 *   included: the last store to an entry decides.
 * - pvmsi_msix_enable, pvmsi_msix_enable_with, pvmsi_msix_disable and pvmsi_msix_after_reset
 *   change all vectors: one such call at a time, while no other one of this function runs.
 * - pvmsi_msix_set of a vector must not run beside mask, unmask or set of the same vector (a
 *   kernel holds the interrupt's lock). In the paravirtual world it may.
 */
struct pvmsi_msix {
    uint64_t opaque[128];
};

/**
 * How the interrupts of a function stand.
 */
struct pvmsi_msix_state {
    /**
     * Which world the function is in.
     */
    pvmsi_world world;
    /**
     * Who answered the table when the host last said so.
     */
    pvmsi_table_mode mode;
    /**
     * Why it was not direct, PVMSI_REASON_...; 0 exactly when it was.
     */
    uint32_t reasons;
    /**
     * The number of the state that `mode` and `reasons` describe; 0 outside the paravirtual
     * world.
     */
    uint32_t generation;
    /**
     * The host's answer that led to the legacy world; PVMSI_STATUS_SUCCESS in any other world,
     * or when no client was given.
     */
    pvmsi_status refusal;
    /**
     * How many vectors may be used; 0 while MSI-X is disabled.
     */
    uint16_t granted;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

#if defined(__aarch64__)
/**
 * Asks the host whether it offers the service, by an SMCCC call. Do this once, at boot.
 *
 * `conduit` is PVMSI_CONDUIT_HVC or PVMSI_CONDUIT_SMC and must be the one that the platform
 * names (the `method` of the device tree's `psci` node, or the PSCI flags of ACPI's FADT): a
 * host that does not know the call answers so; without a host the instruction is undefined.
 * Usable with interrupts off, before anything is initialised.
 *
 * Returns PVMSI_STATUS_NOT_SUPPORTED when there is no service, PVMSI_STATUS_DOORBELL when there
 * is no such conduit, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `offer`: where the offer shall be written; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_discover(uint32_t conduit, struct pvmsi_offer *offer);
#endif

#if defined(__x86_64__)
/**
 * Asks the processor whether the host offers the service. Do this once, at boot.
 *
 * Scans the CPUID hypervisor leaves; on other hosts that finds nothing and has no effect. Usable
 * with interrupts off, before anything is initialised.
 *
 * Returns PVMSI_STATUS_NOT_SUPPORTED when there is no service, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `offer`: where the offer shall be written; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_discover(struct pvmsi_offer *offer);
#endif

/**
 * Bytes of call buffer that `vectors` vectors need at most, in pvmsi_msix_enable,
 * pvmsi_msix_set_many, pvmsi_configure and pvmsi_update. 2048 vectors need less than 40 KiB.
 */
uint32_t pvmsi_call_buffer_bytes(uint16_t vectors);

/**
 * The number of a PCI function, as calls take it.
 *
 * Returns PVMSI_STATUS_ADDRESS when `device` is over 31 or `function` over 7,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `id`: where the number shall be written; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_function_id(uint16_t segment,
                               uint8_t bus,
                               uint8_t device,
                               uint8_t function,
                               uint32_t *id);

/**
 * Makes a client. pvmsi_negotiate comes next. What stood in the storage before is forgotten, so
 * no call may be running with it.
 *
 * Returns PVMSI_STATUS_CALL_BUFFER, PVMSI_STATUS_DOORBELL, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * Each is not NULL, else PVMSI_STATUS_POINTER, and only `client` is used after the call:
 * - `client`: the storage.
 * - `doorbell`: what its kind says it is; a doorbell of this host, or one that disturbs nothing.
 * - `buffer`: memory as described there, and `start` in it. A wrong physical address makes the
 *   host overwrite other memory of the guest.
 * - `delay`: how to wait, and `wait_us` in it.
 */
pvmsi_status pvmsi_client_init(struct pvmsi_client *client,
                               const struct pvmsi_doorbell *doorbell,
                               const struct pvmsi_call_buffer *buffer,
                               const struct pvmsi_delay *delay);

/**
 * Details of the client's last call, if the host answered it with an error.
 *
 * Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `detail`: where the details shall be written; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_client_detail(struct pvmsi_client *client, struct pvmsi_detail *detail);

/**
 * Agrees on version, features and limits. Do this once, before any other call.
 *
 * Returns PVMSI_STATUS_NOT_SUPPORTED when nobody answers or the host speaks another major
 * version: use the standard vector table then. PVMSI_STATUS_HARDWARE,
 * PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `agreement`: where the answer shall be written; may be NULL.
 */
pvmsi_status pvmsi_negotiate(struct pvmsi_client *client, struct pvmsi_agreement *agreement);

/**
 * What the service can do for a function, and how it stands.
 *
 * Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `state`: where the answer shall be written; may be NULL.
 */
pvmsi_status pvmsi_query_function(struct pvmsi_client *client,
                                  uint32_t function,
                                  struct pvmsi_function_state *state);

/**
 * Looks at `count` vectors from `first` on.
 *
 * Asks as often as the buffer makes necessary, so the vectors may come from different states
 * when the host changes something meanwhile. On an error some of `states` may have been written.
 *
 * Returns what the host answers, PVMSI_STATUS_PARAMETER when the range is empty or not inside
 * the table, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `states`: an array of `count` elements for the answer; not NULL, else PVMSI_STATUS_POINTER.
 * - `generation`: where the number of the last state seen shall be written; may be NULL.
 */
pvmsi_status pvmsi_query_vectors(struct pvmsi_client *client,
                                 uint32_t function,
                                 uint16_t first,
                                 uint16_t count,
                                 struct pvmsi_vector_state *states,
                                 uint32_t *generation);

/**
 * Sets the MSI-X interrupts of a function up and asks for its table, for kernels that have an
 * MSI-X layer of their own, below pvmsi_msix_enable: MSI-X Enable, Function Mask and the vector
 * table are left alone.
 *
 * The kernel sets MSI-X Enable and Function Mask before; memory decoding is on, and the function
 * is in D0. `vectors` of them are asked for. Those of `setups` start as it says, the others
 * masked and without a message. After the call the kernel
 * 1. writes no message into the table, but the table message back after a reset (or calls
 *    pvmsi_restore), and gives messages, the first ones and others, by pvmsi_update;
 * 2. raises the interrupt of a vector that `answers` has as pending itself, when it unmasks it
 *    (now, if it is not masked): that event comes no other way;
 * 3. clears Function Mask. From here on it masks and unmasks by vector control.
 *
 * Clearing MSI-X Enable ends it, and so does pvmsi_release.
 *
 * While the host is busy it waits, and may be called again later: PVMSI_STATUS_BUSY says that it
 * has given up and nothing is assigned.
 *
 * Returns what the host answers (PVMSI_STATUS_NOT_SUPPORTED, PVMSI_STATUS_NO_SUCH_FUNCTION,
 * PVMSI_STATUS_DENIED, PVMSI_STATUS_NO_RESOURCES: nothing has changed, and the standard table is
 * there; PVMSI_STATUS_HARDWARE: the function is in its default state),
 * PVMSI_STATUS_PARAMETER also when the call buffer is too short, PVMSI_STATUS_COUNT for no
 * vector, or more setups than vectors, PVMSI_STATUS_NOT_INITIALISED,
 * PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `setups`: an array of `count` elements, for vector 0 and the next ones; NULL only with
 *   `count` 0, else PVMSI_STATUS_POINTER.
 * - `answers`: an array of `vectors` elements, of which those of the granted vectors are
 *   written; after an error some of it may have been. Not NULL, else PVMSI_STATUS_POINTER.
 * - `grant`: where the answer shall be written; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_configure(struct pvmsi_client *client,
                             uint32_t function,
                             uint16_t vectors,
                             const struct pvmsi_vector_setup *setups,
                             uint16_t count,
                             struct pvmsi_vector_answer *answers,
                             struct pvmsi_grant *grant);

/**
 * Gives assigned vectors new messages, in one go: the first ones and affinity changes, below
 * pvmsi_msix_set or after pvmsi_configure. Never busy.
 *
 * Returns what the host answers, PVMSI_STATUS_PARAMETER also when the call buffer is too short,
 * PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `updates`: an array of `count` elements; not NULL, else PVMSI_STATUS_POINTER.
 * - `generation`: where the number of the state after the call shall be written; may be NULL.
 */
pvmsi_status pvmsi_update(struct pvmsi_client *client,
                          uint32_t function,
                          const struct pvmsi_vector_update *updates,
                          uint16_t count,
                          uint32_t *generation);

/**
 * Puts a function back to its default: no vectors assigned, table trapped. Never busy; succeeds
 * for every function of this machine.
 *
 * pvmsi_msix_disable does it without a call, and so does clearing MSI-X Enable; this is for
 * kernels that keep MSI-X enabled after pvmsi_configure, and for functions that another kernel
 * has left behind.
 *
 * Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `generation`: where the number of the state after the call shall be written; may be NULL.
 */
pvmsi_status pvmsi_release(struct pvmsi_client *client, uint32_t function, uint32_t *generation);

/**
 * Puts the table messages of all assigned vectors back, after a reset that the host could not
 * see. Mask bits stay as the function has them. pvmsi_msix_after_reset does more.
 *
 * Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `state`: where the answer shall be written; may be NULL.
 */
pvmsi_status pvmsi_restore(struct pvmsi_client *client,
                           uint32_t function,
                           struct pvmsi_table_state *state);

/**
 * Walks the function's capability list to MSI-X.
 *
 * Returns PVMSI_STATUS_NO_MSIX, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * Each is not NULL, else PVMSI_STATUS_POINTER:
 * - `function`: the function, and all functions in it.
 * - `capability`: where the capability shall be written.
 */
pvmsi_status pvmsi_msix_find(const struct pvmsi_function *function,
                             struct pvmsi_msix_capability *capability);

/**
 * Prepares the interrupts of a function, which nobody has enabled yet. Nothing is accessed. What
 * stood in the storage before is forgotten.
 *
 * Returns PVMSI_STATUS_NO_MSIX when the capability's table size is not 1 to 2048,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * Each is not NULL unless stated, else PVMSI_STATUS_POINTER, and what `function` and
 * `capability` point to is copied:
 * - `msix`: the storage.
 * - `function`: the function, and all functions in it.
 * - `capability`: what pvmsi_msix_find has found.
 * - `table`: where the kernel has mapped the function's vector table, `table_size` times 16
 *   bytes, as device memory (uncached), on every processor, as long as `msix` is used. Nothing
 *   else writes there.
 * - `pending`: where it has mapped the pending bit array, 8 bytes for every 64 entries or part
 *   of them, in the same way; may be NULL: only pvmsi_msix_is_pending looks at it.
 */
pvmsi_status pvmsi_msix_init(struct pvmsi_msix *msix,
                             const struct pvmsi_function *function,
                             const struct pvmsi_msix_capability *capability,
                             void *table,
                             void *pending);

/**
 * Switches MSI-X on with `count` vectors, all masked and without a message.
 *
 * pvmsi_msix_set and pvmsi_msix_unmask each vector next. Memory decoding must be on, and the
 * function in D0. A driver that cannot live with fewer vectors calls pvmsi_msix_disable.
 *
 * Without a client, or where the host does not support the service, does not know the function,
 * denies it or has no vector left, the table is programmed in the standard way;
 * pvmsi_msix_get_state tells.
 *
 * Returns PVMSI_STATUS_BUSY, PVMSI_STATUS_HARDWARE or PVMSI_STATUS_PARAMETER (the call buffer is
 * too short) when the call fails otherwise: MSI-X is off again, and enabling without a client
 * uses the standard table. PVMSI_STATUS_ENABLED, PVMSI_STATUS_COUNT,
 * PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `client`: initialised and negotiated; NULL where the kernel has none.
 * - `granted`: where the number of vectors shall be written that there are, `count` or fewer;
 *   not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_enable(struct pvmsi_msix *msix,
                               struct pvmsi_client *client,
                               uint16_t count,
                               uint16_t *granted);

/**
 * As pvmsi_msix_enable, with messages for the vectors that already have one: no pvmsi_msix_set
 * is needed for those. All vectors start masked.
 *
 * Returns the same as pvmsi_msix_enable.
 *
 * # Safety
 * - `msix`, `client`, `granted`: as in pvmsi_msix_enable.
 * - `messages`: an array of `count` messages, address 0 for a vector without one; not NULL, else
 *   PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_enable_with(struct pvmsi_msix *msix,
                                    struct pvmsi_client *client,
                                    const struct pvmsi_message *messages,
                                    uint16_t count,
                                    uint16_t *granted);

/**
 * Says where the interrupt of `vector` shall go: at first, and at each change of its affinity.
 *
 * Paravirtual: one call, never busy, no access to the table. Legacy: the entry is masked,
 * written and unmasked again if it was.
 *
 * Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_CLIENT_MISSING, what the host answers (the old
 * message stays), PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
 * PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `client`: initialised and negotiated; NULL where the kernel has none.
 */
pvmsi_status pvmsi_msix_set(struct pvmsi_msix *msix,
                            struct pvmsi_client *client,
                            uint16_t vector,
                            uint64_t address,
                            uint32_t data);

/**
 * As pvmsi_msix_set for several vectors; paravirtual: all in one call.
 *
 * Returns the same as pvmsi_msix_set. After an error no vector has changed (paravirtual), or
 * those before the wrong one have (legacy).
 *
 * # Safety
 * - `msix`, `client`: as in pvmsi_msix_set.
 * - `updates`: an array of `count` elements; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_set_many(struct pvmsi_msix *msix,
                                 struct pvmsi_client *client,
                                 const struct pvmsi_vector_update *updates,
                                 uint16_t count);

/**
 * Masks a vector: when this returns, the function starts no interrupt of it any more. One store
 * to the table and one load that makes sure it has arrived.
 *
 * A host whose kernel moves interrupts can clear the mask bit of a direct table (H-517): an
 * interrupt that comes all the same is no fault of the function's. Mask it again.
 *
 * Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_mask(struct pvmsi_msix *msix, uint16_t vector);

/**
 * Unmasks a vector. What was pending is delivered: by the function itself, or by the kernel's
 * `deliver` when the event came before the table was switched. One store to the table.
 *
 * Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_unmask(struct pvmsi_msix *msix, uint16_t vector);

/**
 * Switches MSI-X off: masks the vectors and clears MSI-X Enable, which also releases the vectors
 * on the host. Events that were held are dropped. No call is made; nothing happens when it is
 * off already.
 *
 * Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_disable(struct pvmsi_msix *msix);

/**
 * Makes the interrupts work again after a reset of the function, a power state that loses its
 * state, or a resume. Nothing happens while MSI-X is disabled.
 *
 * The kernel has restored memory decoding, BARs and power state before. Vectors are masked as
 * pvmsi_msix_mask and pvmsi_msix_unmask left them.
 *
 * Paravirtual: one call; the messages are not used, unless the host has given the vectors up (a
 * host without the service, after a migration): then the function continues in the legacy world.
 * Legacy: the messages are written again; a vector without one stays masked until set and
 * unmask.
 *
 * Returns PVMSI_STATUS_CLIENT_MISSING (nothing was done), what the host answers (Function Mask
 * is set then, so no interrupt is delivered: repeat, or disable), PVMSI_STATUS_NOT_INITIALISED,
 * PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `client`: initialised and negotiated; NULL where the kernel has none.
 * - `messages`: an array of `count` messages, from vector 0 on, address 0 for a vector without
 *   one; NULL only with `count` 0, else PVMSI_STATUS_POINTER.
 */
pvmsi_status pvmsi_msix_after_reset(struct pvmsi_msix *msix,
                                    struct pvmsi_client *client,
                                    const struct pvmsi_message *messages,
                                    uint16_t count);

/**
 * Asks the host how the table stands, for pvmsi_msix_get_state: the host may take the table back
 * and return it at any time. Outside the paravirtual world nothing happens.
 *
 * Returns PVMSI_STATUS_CLIENT_MISSING, what the host answers, PVMSI_STATUS_NOT_INITIALISED,
 * PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
 * - `client`: initialised and negotiated; NULL where the kernel has none.
 */
pvmsi_status pvmsi_msix_refresh(struct pvmsi_msix *msix, struct pvmsi_client *client);

/**
 * World, mode, reasons, grant: what is known without a call. Any time, anywhere.
 *
 * Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * Each is not NULL, else PVMSI_STATUS_POINTER:
 * - `msix`: initialised.
 * - `state`: where it shall be written.
 */
pvmsi_status pvmsi_msix_get_state(const struct pvmsi_msix *msix, struct pvmsi_msix_state *state);

/**
 * Whether an event of `vector` waits for the vector to be unmasked: one that was held at the
 * switch, or one in the pending bit array where the kernel has mapped it.
 *
 * Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
 *
 * # Safety
 * Each is not NULL, else PVMSI_STATUS_POINTER:
 * - `msix`: initialised.
 * - `pending`: where the answer shall be written.
 */
pvmsi_status pvmsi_msix_is_pending(const struct pvmsi_msix *msix, uint16_t vector, bool *pending);

/**
 * What a status means and what to do, as one sentence for a log. Never NULL; the text is
 * constant.
 */
const char *pvmsi_status_text(int32_t status);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PVMSI_GUEST_H */
