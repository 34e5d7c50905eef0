/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * PV-MSI 1.0, wire format and calls of a guest.
 *
 * The lower layer of the Linux module: it knows the specification and nothing
 * of Linux. It allocates nothing, waits for nothing, locks nothing, and keeps
 * no state but what is in the structures of its caller. Numbers such as G-204
 * are clauses of the specification.
 *
 * The host may be wrong, and may write to the buffer at any time: every byte
 * of an answer is fetched once, inside the buffer, and an answer that cannot
 * be decoded is PVMSI_HARDWARE (G-702).
 */
#ifndef PVMSI_WIRE_H
#define PVMSI_WIRE_H

#include <linux/types.h>

#define PVMSI_MAJOR		1	/* the version that this layer speaks */
#define PVMSI_MINOR		0

#define PVMSI_PAGE		4096	/* buffers are aligned to it (G-201) */
#define PVMSI_HEADER		32	/* bytes in front of a call's body (W-202) */
#define PVMSI_BUFFER_MAX	65536	/* no call needs a larger buffer (H-103) */
#define PVMSI_VECTORS_MAX	2048

/* Function ids of SMCCC calls, arm64 (W-120, W-220). */
#define PVMSI_SMCCC_DISCOVER	0xc6005650U	/* X1: leaf, 0 to 3 */
#define PVMSI_SMCCC_RING	0xc6005651U	/* X1: page number of the buffer */

/* The node of the device tree (W-124). */
#define PVMSI_NODE		"/pv-msi"
#define PVMSI_COMPATIBLE	"pv-msi,pv-msi-1"

/* Features (W-102). */
#define PVMSI_FEATURE_DIRECT	0x1U	/* tables may be direct */
#define PVMSI_FEATURE_MSI	0x2U	/* configure takes MSI too */
#define PVMSI_FEATURE_EXT_DEST	0x4U	/* extended destination ids */
#define PVMSI_FEATURES		0x7U	/* those that have a name */

/* Why a table is not direct (W-501); a bit that is not here may be set too. */
#define PVMSI_REASON_NOT_ASSIGNED	0x1U
#define PVMSI_REASON_POLICY		0x2U
#define PVMSI_REASON_NO_ISOLATION	0x4U
#define PVMSI_REASON_NOT_MAPPABLE	0x8U
#define PVMSI_REASON_MSIX_DISABLED	0x10U
#define PVMSI_REASON_DECODING_OFF	0x20U
#define PVMSI_REASON_POWER_STATE	0x40U
#define PVMSI_REASON_HOST_REVOKED	0x80U
#define PVMSI_REASON_HELD_EVENT		0x100U
#define PVMSI_REASON_MIGRATED		0x200U
#define PVMSI_REASON_NO_TABLE		0x400U
#define PVMSI_REASON_UNREADABLE		0x800U
#define PVMSI_REASONS			12	/* how many have a name */

/* How a call ended, as on the wire (W-701). */
enum pvmsi_status {
	PVMSI_SUCCESS = 0x00,
	PVMSI_NOT_SUPPORTED = 0x10,	/* also where nobody answered (G-204) */
	PVMSI_NO_SUCH_FUNCTION = 0x20,
	PVMSI_PARAMETER = 0x30,		/* client->parameter, client->vector */
	PVMSI_BUSY = 0x40,		/* of pvmsi_configure() alone */
	PVMSI_NO_RESOURCES = 0x50,
	PVMSI_DENIED = 0x60,
	PVMSI_HARDWARE = 0x70,		/* also an answer that makes no sense */
};

/* Which part of a call was wrong. */
enum pvmsi_parameter {
	PVMSI_PARAMETER_HEADER,
	PVMSI_PARAMETER_VERSION,
	PVMSI_PARAMETER_BUFFER_LENGTH,
	PVMSI_PARAMETER_BODY_LENGTH,
	PVMSI_PARAMETER_BODY,
	PVMSI_PARAMETER_ANSWER_ROOM,
	PVMSI_PARAMETER_KIND,
	PVMSI_PARAMETER_COUNT,
	PVMSI_PARAMETER_VECTOR,
	PVMSI_PARAMETER_DUPLICATE_VECTOR,
	PVMSI_PARAMETER_MESSAGE,
	PVMSI_PARAMETER_SEQUENCE,
	PVMSI_PARAMETER_SHARED_MESSAGE,
};

enum pvmsi_kind { PVMSI_KIND_MSI, PVMSI_KIND_MSIX };
enum pvmsi_mode { PVMSI_TRAPPED, PVMSI_DIRECT };
enum pvmsi_delivery { PVMSI_DELIVERY_UNKNOWN, PVMSI_DELIVERY_HOST, PVMSI_DELIVERY_BYPASS };

/*
 * Discovery
 */

/**
 * struct pvmsi_service - what discovery has found (W-101)
 * @major: version of the host; the major is PVMSI_MAJOR
 * @minor: likewise
 * @features: PVMSI_FEATURE_*; unknown bits are left out (G-107)
 * @largest_buffer: the largest call buffer in bytes, for who wants to know
 *	before negotiate; not checked
 * @vectors: most vectors of one function, likewise
 * @port: I/O port of the doorbell, 0 for none
 * @smccc: the doorbell is the SMCCC call PVMSI_SMCCC_RING
 * @address: guest physical address of the doorbell register, 0 for none
 *
 * Where more than one doorbell is named the guest takes one that it can ring.
 */
struct pvmsi_service {
	u16 major;
	u16 minor;
	u32 features;
	u32 largest_buffer;
	u32 vectors;
	u16 port;
	bool smccc;
	u64 address;
};

/**
 * pvmsi_find_cpuid() - looks for the service with CPUID, x86 (G-111)
 * @service: is filled where the service is found
 * @cpuid: executes CPUID for a leaf: EAX, EBX, ECX, EDX to @words
 * @context: for @cpuid
 *
 * Looks at all bases. Blocks of others, of another major version, without
 * doorbell or with too few leaves are ignored (G-106).
 *
 * Return: whether the service is there.
 */
bool pvmsi_find_cpuid(struct pvmsi_service *service,
		      void (*cpuid)(void *context, u32 leaf, u32 words[4]),
		      void *context);

/**
 * pvmsi_find_smccc() - looks for the service with SMCCC calls, arm64 (W-120)
 * @service: is filled where the service is found
 * @discover: calls PVMSI_SMCCC_DISCOVER with @leaf in X1 by the conduit of
 *	PSCI (G-123), and puts X0 to X2 of the answer to @x
 * @context: for @discover
 *
 * Return: whether the service is there.
 */
bool pvmsi_find_smccc(struct pvmsi_service *service,
		      void (*discover)(void *context, u32 leaf, u64 x[3]),
		      void *context);

/*
 * Calls
 */

/**
 * struct pvmsi_terms - what negotiate has agreed on
 * @minor: minor of the version in use
 * @features: PVMSI_FEATURE_* that may be used
 * @largest_buffer: no call uses more of a buffer, 4096 to PVMSI_BUFFER_MAX
 * @vectors: most vectors of a function, 1 to PVMSI_VECTORS_MAX; 0 before
 *	negotiate, and then no other call is made
 */
struct pvmsi_terms {
	u16 minor;
	u32 features;
	u32 largest_buffer;
	u16 vectors;
};

/**
 * struct pvmsi_client - a call buffer and how to ring for it
 * @buffer: the call buffer: RAM that is not used for anything else
 * @address: its guest physical address, a multiple of 4096 and below 2^44
 * @length: its length in bytes; contiguous; PVMSI_PAGE does for all calls but
 *	a configure of many vectors
 * @ring: rings the doorbell with the buffer's page number, with a full memory
 *	barrier (mb()) before and after (G-206)
 * @context: for @ring
 * @terms: what pvmsi_negotiate() has agreed on; once is enough, so that
 *	further clients get a copy (G-132)
 * @parameter: after PVMSI_PARAMETER: what was wrong
 * @vector: after PVMSI_PARAMETER: which vector it concerns, -1 for none
 *
 * One call at a time (G-205): the caller sees to it. Any context will do, also
 * with interrupts off. The caller fills in the first five members, the others
 * begin as 0. What the layer itself refuses (a request too long for the buffer, a
 * count of 0) it refuses with the status that the host would answer.
 */
struct pvmsi_client {
	u8 *buffer;
	u64 address;
	u32 length;
	void (*ring)(struct pvmsi_client *client, u32 page);
	void *context;
	struct pvmsi_terms terms;
	enum pvmsi_parameter parameter;
	s32 vector;
};

/* A guest message or a table message. */
struct pvmsi_message {
	u64 address;
	u32 data;
};

/**
 * struct pvmsi_list - the list of an answer, still in the buffer
 * @at: the next item; private
 * @end: where the answer ends; private
 * @left: how many items are still to come
 *
 * Valid until the next call with the same client. The call has checked every
 * item already: that reading one fails afterwards means that the host has
 * written to the buffer after its answer.
 */
struct pvmsi_list {
	const u8 *at;
	const u8 *end;
	u16 left;
};

/**
 * pvmsi_function() - a function's address, as calls take it
 * @segment: PCI segment (domain)
 * @bus: bus number
 * @devfn: device number in bits 7..3, function number in bits 2..0
 *
 * Return: the address.
 */
static inline u32 pvmsi_function(u16 segment, u8 bus, u8 devfn)
{
	return (u32)segment << 16 | (u32)bus << 8 | devfn;
}

/**
 * pvmsi_negotiate() - agrees on version, features and limits; the first call
 * @client: its terms are filled in on success, and cleared otherwise
 * @features: PVMSI_FEATURE_* that the guest wants to use
 *
 * Return: how it ended. Anything but success: there is no service.
 */
enum pvmsi_status pvmsi_negotiate(struct pvmsi_client *client, u32 features);

/**
 * struct pvmsi_state - how a function stands
 * @msi_vectors: most vectors of kind MSI; 0: not supported
 * @msix_vectors: most vectors of kind MSI-X
 * @assigned: vectors that are assigned now
 * @mode: who answers the table now
 * @reasons: PVMSI_REASON_*: why it is not direct
 * @generation: of this state; another one after any change (H-504)
 * @delivery: whether interrupts bypass the host's processor
 *
 * pvmsi_restore() fills in mode, reasons and generation alone.
 */
struct pvmsi_state {
	u16 msi_vectors;
	u16 msix_vectors;
	u16 assigned;
	enum pvmsi_mode mode;
	u32 reasons;
	u32 generation;
	enum pvmsi_delivery delivery;
};

/**
 * pvmsi_query_function() - what can be had, and how the function stands
 * @client: client
 * @function: pvmsi_function()
 * @state: is filled in on success
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_query_function(struct pvmsi_client *client, u32 function,
				       struct pvmsi_state *state);

/**
 * struct pvmsi_vector - the state of one vector, as the host sees it
 * @assigned: whether it is assigned
 * @has_guest: whether @guest is there: the guest has given one
 * @has_table: whether @table is there: the host knows it
 * @masked: the mask bit that the guest would read
 * @pending: the pending bit that the guest would read
 * @guest: the guest message in force
 * @table: the table message
 */
struct pvmsi_vector {
	bool assigned;
	bool has_guest;
	bool has_table;
	bool masked;
	bool pending;
	struct pvmsi_message guest;
	struct pvmsi_message table;
};

/**
 * pvmsi_query_vectors() - the state of a range of vectors
 * @client: client
 * @function: pvmsi_function()
 * @first: first vector
 * @count: how many, at least 1
 * @generation: of the state
 * @vectors: for pvmsi_next_vector(): from @first on, at least one, and at most
 *	@count; fewer where the buffer has no room for more: the caller goes on
 *	from there
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_query_vectors(struct pvmsi_client *client, u32 function,
				      u16 first, u16 count, u32 *generation,
				      struct pvmsi_list *vectors);

/**
 * pvmsi_next_vector() - takes the next item of pvmsi_query_vectors()
 * @vectors: the list
 * @vector: the item
 *
 * Return: false at the end.
 */
bool pvmsi_next_vector(struct pvmsi_list *vectors, struct pvmsi_vector *vector);

/**
 * struct pvmsi_setup - how one vector shall start
 * @message: where its interrupt goes
 * @has_message: false: events are held until pvmsi_update() names one
 * @masked: the mask bit
 */
struct pvmsi_setup {
	struct pvmsi_message message;
	bool has_message;
	bool masked;
};

/**
 * struct pvmsi_configure - a configure: what is asked, and what is answered
 * @kind: MSI or MSI-X
 * @requested: how many vectors, from 0 on; 1 to terms.vectors
 * @listed: items of @setups, at most @requested; vectors behind them start
 *	masked and without a message
 * @setups: the first vectors; may be NULL where @listed is 0
 * @sequence: 0 at first; pvmsi_configure() keeps it from then on
 * @delay: after PVMSI_BUSY: call again after so many microseconds. A hint,
 *	which may be more than an hour: the caller bounds its waits (G-906)
 * @granted: after success: vectors 0 to @granted - 1 are assigned,
 *	1 <= @granted <= @requested
 * @mode: after success: who answers the table
 * @reasons: PVMSI_REASON_*: why it is not direct
 * @generation: of the state after the call
 * @answers: after success: for pvmsi_next_answer(), an item for each vector
 *	granted
 */
struct pvmsi_configure {
	enum pvmsi_kind kind;
	u16 requested;
	u16 listed;
	const struct pvmsi_setup *setups;
	u32 sequence;
	u32 delay;
	u16 granted;
	enum pvmsi_mode mode;
	u32 reasons;
	u32 generation;
	struct pvmsi_list answers;
};

/**
 * pvmsi_configure() - asks for vectors and for the table; one attempt
 * @client: client; its buffer has pvmsi_configure_length() bytes
 * @function: pvmsi_function()
 * @configure: what is asked; is filled in with the answer
 *
 * After PVMSI_BUSY the caller waits, without a lock if it likes, and calls
 * again with the same @configure, a bounded number of times; where it gives up
 * it calls pvmsi_release() (G-448). It also releases after PVMSI_HARDWARE, since
 * it cannot know what is assigned (G-703).
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_configure(struct pvmsi_client *client, u32 function,
				  struct pvmsi_configure *configure);

/**
 * struct pvmsi_answer - what the host made of one vector
 * @has_message: whether @message is there: the host knows it
 * @pending: an event that the guest has to deliver itself, once, when it next
 *	unmasks the vector (G-445)
 * @message: the table message: the only one that may be written to the
 *	vector's entry (G-520)
 */
struct pvmsi_answer {
	bool has_message;
	bool pending;
	struct pvmsi_message message;
};

/**
 * pvmsi_next_answer() - takes the next item of pvmsi_configure()
 * @answers: the list
 * @answer: the item
 *
 * Return: false at the end.
 */
bool pvmsi_next_answer(struct pvmsi_list *answers, struct pvmsi_answer *answer);

/**
 * struct pvmsi_update - a new guest message of one vector
 * @vector: an assigned vector, each once in a call
 * @message: where its interrupt goes from now on
 */
struct pvmsi_update {
	u16 vector;
	struct pvmsi_message message;
};

/**
 * pvmsi_update() - new guest messages of assigned vectors
 * @client: client
 * @function: pvmsi_function()
 * @updates: at least one; 225 fit into 4096 bytes whatever they are
 * @count: how many
 * @generation: of the state after the call
 *
 * Ends within a bounded time, never busy. After PVMSI_HARDWARE either message
 * may be in force; after other errors the old one is.
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_update(struct pvmsi_client *client, u32 function,
			       const struct pvmsi_update *updates, u16 count,
			       u32 *generation);

/**
 * pvmsi_release() - no vector is assigned any more, and none in preparation
 * @client: client
 * @function: pvmsi_function()
 * @generation: of the state after the call
 *
 * Where it fails, MSI-X Enable written as 0 does the same (G-703).
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_release(struct pvmsi_client *client, u32 function,
				u32 *generation);

/**
 * pvmsi_restore() - puts table messages back, after a reset unseen by the host
 * @client: client
 * @function: pvmsi_function()
 * @state: mode, reasons and generation are filled in on success, the rest is 0;
 *	PVMSI_REASON_NOT_ASSIGNED: the vectors are lost
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_restore(struct pvmsi_client *client, u32 function,
				struct pvmsi_state *state);

/*
 * Room (H-213)
 */

/* Behind the header: what every body has at most, and what an item adds. */
#define PVMSI_ROOM		32
#define PVMSI_ROOM_SETUP	17	/* and a vector of configure's answer */
#define PVMSI_ROOM_UPDATE	18
#define PVMSI_ROOM_VECTOR	35

/**
 * pvmsi_configure_length() - how long a buffer always suffices for configure
 * @vectors: how many vectors are requested, at most PVMSI_VECTORS_MAX
 *
 * Return: bytes, at most 34,880.
 */
static inline u32 pvmsi_configure_length(u16 vectors)
{
	return PVMSI_HEADER + PVMSI_ROOM + PVMSI_ROOM_SETUP * (u32)vectors;
}

/**
 * pvmsi_configure_vectors() - how many vectors always fit into a buffer
 * @length: of the buffer, in bytes; no more than terms.largest_buffer counts
 *
 * Return: vectors for configure, at most PVMSI_VECTORS_MAX; 237 for one page.
 */
static inline u16 pvmsi_configure_vectors(u32 length)
{
	u32 vectors;

	if (length < PVMSI_HEADER + PVMSI_ROOM)
		return 0;
	vectors = (length - PVMSI_HEADER - PVMSI_ROOM) / PVMSI_ROOM_SETUP;
	return (u16)(vectors < PVMSI_VECTORS_MAX ? vectors : PVMSI_VECTORS_MAX);
}

/*
 * Words, for logs and debugfs: constant, lower case, never NULL where the
 * value is one of its enumeration's; "unknown" for anything else.
 */

const char *pvmsi_status_name(enum pvmsi_status status);
const char *pvmsi_status_remedy(enum pvmsi_status status);
const char *pvmsi_parameter_name(enum pvmsi_parameter parameter);
const char *pvmsi_mode_name(enum pvmsi_mode mode);
const char *pvmsi_delivery_name(enum pvmsi_delivery delivery);

/**
 * pvmsi_reason_name() - the name of a reason, as the specification spells it
 * @bit: number of its bit: 0 to PVMSI_REASONS - 1
 *
 * Return: words.
 */
const char *pvmsi_reason_name(unsigned int bit);

/**
 * pvmsi_reason_words() - what a reason means, for an administrator
 * @bit: number of its bit: 0 to PVMSI_REASONS - 1
 *
 * Return: words.
 */
const char *pvmsi_reason_words(unsigned int bit);

#endif /* PVMSI_WIRE_H */
