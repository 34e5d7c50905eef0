/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The smallest example of a guest half in C (MSI-X only). It was written from the specification
 * alone, by a reader who had seen no implementation, as a test of the text: it follows what the
 * clauses say, never what the halves of this repository do.
 * Freestanding C11: no libc, no memory of its own, no locks. The caller lets one function run at
 * a time for each `struct reader_host` (G-205), and maps events in an ITS before it names their
 * messages (G-621). Members are set by the caller unless a comment says who sets them. */
#ifndef READER_H
#define READER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { READER_SUCCESS = 0x00, READER_NOT_SUPPORTED = 0x10, READER_NO_FUNCTION = 0x20, /* W-701 */
	READER_PARAMETER = 0x30, READER_BUSY = 0x40, READER_NO_RESOURCES = 0x50, READER_DENIED = 0x60,
	READER_HARDWARE = 0x70 };
enum { READER_DIRECT = 1, READER_MSI = 2, READER_EXTENDED = 4 }; /* features, W-102 */
enum { READER_MSI_MOST, READER_MSIX_MOST, READER_ASSIGNED, READER_MODE, READER_REASONS,
	READER_GENERATION, READER_DELIVERY, READER_ANSWERS }; /* of query-function */
enum reader_bell { READER_NO_BELL, READER_PORT, READER_SMCCC, READER_REGISTER };

struct reader_host {
	void *ctx;
	void (*cpuid)(void *ctx, uint32_t leaf, uint32_t words[4]); /* or NULL */
	void (*smccc)(void *ctx, uint64_t x[4]); /* the conduit of PSCI (G-123), or NULL */
	void (*out32)(void *ctx, uint16_t port, uint32_t value);    /* or NULL */
	uint32_t (*load32)(void *ctx, uint64_t address);
	void (*store32)(void *ctx, uint64_t address, uint32_t value);
	uint16_t (*config_read16)(void *ctx, uint32_t function, uint32_t offset);
	void (*config_write16)(void *ctx, uint32_t function, uint32_t offset, uint16_t value);
	void (*wait)(void *ctx, uint32_t microseconds); /* or NULL */
	volatile uint8_t *buffer;       /* contiguous RAM, of which at most the host's limit is used */
	uint64_t physical;              /* its guest physical address (G-201) */
	uint32_t length;
	enum reader_bell bell;           /* set by reader_find, or from the device tree (W-124) */
	uint64_t bell_at;               /* likewise */
	bool ready;                     /* set by reader_negotiate, like the next line */
	uint32_t most, features, largest;
	uint32_t parameter;             /* what the last READER_PARAMETER was about, */
	int32_t vector;                 /* -1 for no vector */
};
struct reader_vector {
	uint64_t address, table_address; /* guest message, table message */
	uint32_t data, table_data;
	bool has_message, enabled;
	bool has_table;                 /* set here: table_* are what belongs in the entry */
	bool pending;                   /* set here: an event for the next unmask (G-445) */
};
struct reader_function {
	struct reader_host *host;
	uint32_t function;              /* segment << 16 | bus << 8 | device << 3 | function */
	uint32_t msix_cap;              /* offset of the MSI-X capability */
	uint64_t table;                 /* address of the vector table, for load32 and store32 */
	struct reader_vector *vectors;
	uint16_t room, count;           /* items of vectors; set here: vectors that work, by the */
	bool assigned, refused;         /* service if assigned, else by the standard table */
	uint32_t mode, reasons, generation; /* set here */
	void (*interrupt)(struct reader_function *f, uint16_t vector);
};

bool reader_find(struct reader_host *h);
uint32_t reader_negotiate(struct reader_host *h);
uint32_t reader_query(struct reader_function *f, uint32_t answers[READER_ANSWERS]);
/* Sets up to n vectors up. Whatever it answers, f->count vectors work afterwards. */
uint32_t reader_configure(struct reader_function *f, uint16_t n);
uint32_t reader_set_message(struct reader_function *f, uint16_t v, uint64_t address,
			    uint32_t data);
void reader_enable(struct reader_function *f, uint16_t v, bool enabled); /* unmasks or masks */
void reader_interrupt(struct reader_function *f, uint16_t v); /* the platform took vector v's */
uint32_t reader_restore(struct reader_function *f); /* after a reset that the host cannot see */
void reader_release(struct reader_function *f);     /* and disables MSI-X */
#endif
