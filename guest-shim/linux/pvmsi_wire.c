// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * PV-MSI 1.0, wire format and calls of a guest: see pvmsi_wire.h.
 */
#include <linux/compiler.h>
#include <linux/types.h>

#include "pvmsi_wire.h"

#define ARRAY_LENGTH(array)	(sizeof(array) / sizeof((array)[0]))

#define MAGIC			0x49534d50U	/* the bytes PMSI */
#define SENTINEL		0xffffffffU

#define CPUID_FIRST		0x40000000U
#define CPUID_LAST		0x4000ff00U
#define CPUID_STEP		0x100U
#define LEAVES			4

/* Offsets in the header (W-202). */
enum {
	AT_MAGIC = 0,
	AT_MAJOR = 4,
	AT_MINOR = 6,
	AT_CALL = 8,
	AT_FUNCTION = 12,
	AT_BUFFER_LENGTH = 16,
	AT_BODY_LENGTH = 20,
	AT_STATUS = 24,
	AT_RESERVED = 28,
};

enum call {
	CALL_NEGOTIATE = 1,
	CALL_QUERY_FUNCTION = 2,
	CALL_QUERY_VECTORS = 3,
	CALL_CONFIGURE = 4,
	CALL_UPDATE = 5,
	CALL_RELEASE = 6,
	CALL_RESTORE = 7,
};

/*
 * Discovery
 */

static bool is_signature(const u32 words[4])
{
	return words[1] == 0x4d2d5650 && words[2] == 0x00004953 && words[3] == 0;
}

/* Reads the leaves behind a good first one; false where they are to be ignored (G-106). */
static bool read_leaves(struct pvmsi_service *service, u32 leaves[LEAVES][4])
{
	u32 port = leaves[2][0];

	if (leaves[1][0] >> 16 != PVMSI_MAJOR)
		return false;
	service->major = PVMSI_MAJOR;
	service->minor = leaves[1][0] & 0xffff;
	service->features = leaves[1][1] & PVMSI_FEATURES;
	service->port = (u16)(port <= 0xffff ? port : 0);
	service->address = (u64)leaves[2][2] << 32 | leaves[2][1];
	service->largest_buffer = leaves[3][0];
	service->vectors = leaves[3][1];
	return true;
}

bool pvmsi_find_cpuid(struct pvmsi_service *service,
		      void (*cpuid)(void *context, u32 leaf, u32 words[4]),
		      void *context)
{
	u32 leaves[LEAVES][4];
	u32 base, leaf;

	for (base = CPUID_FIRST; base <= CPUID_LAST; base += CPUID_STEP) {
		cpuid(context, base, leaves[0]);
		if (!is_signature(leaves[0]) || leaves[0][0] < base + LEAVES - 1)
			continue;
		for (leaf = 1; leaf < LEAVES; leaf++)
			cpuid(context, base + leaf, leaves[leaf]);
		if (!read_leaves(service, leaves))
			continue;
		service->smccc = false;
		if (service->port || service->address)
			return true;
	}
	return false;
}

bool pvmsi_find_smccc(struct pvmsi_service *service,
		      void (*discover)(void *context, u32 leaf, u64 x[3]),
		      void *context)
{
	u32 leaves[LEAVES][4];
	u64 x[3];
	u32 leaf;

	for (leaf = 0; leaf < LEAVES; leaf++) {
		discover(context, leaf, x);
		if (x[0])
			return false;
		leaves[leaf][0] = (u32)x[1];
		leaves[leaf][1] = (u32)(x[1] >> 32);
		leaves[leaf][2] = (u32)x[2];
		leaves[leaf][3] = (u32)(x[2] >> 32);
		if (leaf == 0 && (!is_signature(leaves[0]) || leaves[0][0] < LEAVES - 1))
			return false;
	}
	service->smccc = true;
	return read_leaves(service, leaves);
}

/*
 * Encoding (chapter 3)
 */

/* The rest of the buffer that a request may fill. */
struct writer {
	u8 *at;
	u8 *end;
	bool full;
};

static void put_byte(struct writer *to, u8 byte)
{
	if (to->at == to->end)
		to->full = true;
	else
		*to->at++ = byte;
}

static void put_number(struct writer *to, u64 value)
{
	for (; value > 0x7f; value >>= 7)
		put_byte(to, 0x80 | (value & 0x7f));
	put_byte(to, (u8)value);
}

static void put_message(struct writer *to, const struct pvmsi_message *message)
{
	put_number(to, message->address);
	put_number(to, message->data);
}

/* What is left of an answer. */
struct reader {
	const u8 *at;
	const u8 *end;
	bool bad;	/* something could not be decoded; what is taken is 0 */
};

static u8 take_byte(struct reader *from)
{
	if (from->bad || from->at == from->end) {
		from->bad = true;
		return 0;
	}
	return READ_ONCE(*from->at++);
}

/* A number of so many bits (W-301, W-302). */
static u64 take_number(struct reader *from, unsigned int bits)
{
	unsigned int shift;
	u64 value = 0;

	for (shift = 0; shift < bits; shift += 7) {
		u8 byte = take_byte(from);
		u8 group = byte & 0x7f;

		if (bits - shift < 7 && group >> (bits - shift))
			break;
		value |= (u64)group << shift;
		if (!(byte & 0x80))
			return value;
	}
	from->bad = true;
	return 0;
}

static u16 take_u16(struct reader *from)
{
	return (u16)take_number(from, 16);
}

static u32 take_u32(struct reader *from)
{
	return (u32)take_number(from, 32);
}

/* A number of an enumeration that has so many. */
static u32 take_enum(struct reader *from, u32 numbers)
{
	u32 value = take_u32(from);

	if (value < numbers)
		return value;
	from->bad = true;
	return 0;
}

static bool take_bool(struct reader *from)
{
	u8 byte = take_byte(from);

	if (byte > 1)
		from->bad = true;
	return byte == 1;
}

static bool take_message(struct reader *from, struct pvmsi_message *message)
{
	bool present = take_bool(from);

	message->address = present ? take_number(from, 64) : 0;
	message->data = present ? take_u32(from) : 0;
	return present;
}

static enum pvmsi_mode take_mode(struct reader *from)
{
	return (enum pvmsi_mode)take_enum(from, PVMSI_DIRECT + 1);
}

/* Whether it was decoded, to its last byte (W-304). */
static bool whole(const struct reader *from)
{
	return !from->bad && from->at == from->end;
}

/*
 * The buffer (chapter 2)
 */

static void store16(u8 *at, u16 value)
{
	at[0] = (u8)value;
	at[1] = (u8)(value >> 8);
}

static void store32(u8 *at, u32 value)
{
	store16(at, (u16)value);
	store16(at + 2, (u16)(value >> 16));
}

static u32 load32(const u8 *at)
{
	return READ_ONCE(at[0]) | (u32)READ_ONCE(at[1]) << 8 |
	       (u32)READ_ONCE(at[2]) << 16 | (u32)READ_ONCE(at[3]) << 24;
}

static enum pvmsi_status refuse(struct pvmsi_client *client, enum pvmsi_parameter parameter)
{
	client->parameter = parameter;
	client->vector = -1;
	return PVMSI_PARAMETER;
}

/* How much of its buffer a client may use now (G-201). */
static u32 usable(const struct pvmsi_client *client)
{
	u32 most = client->terms.vectors ? client->terms.largest_buffer : PVMSI_PAGE;

	return client->length < most ? client->length : most;
}

/* Starts a request's body. */
static struct writer request(const struct pvmsi_client *client)
{
	u32 length = usable(client);
	u32 start = length < PVMSI_HEADER ? length : PVMSI_HEADER;
	struct writer body = { client->buffer + start, client->buffer + length, false };

	return body;
}

static enum pvmsi_status parameter_error(struct pvmsi_client *client, struct reader *body)
{
	u32 parameter = take_enum(body, PVMSI_PARAMETER_SHARED_MESSAGE + 1);
	bool has_vector = take_bool(body);
	s32 vector = has_vector ? take_u16(body) : -1;

	if (!whole(body))
		return PVMSI_HARDWARE;
	client->parameter = (enum pvmsi_parameter)parameter;
	client->vector = vector;
	return PVMSI_PARAMETER;
}

/* What the buffer says once the bell has rung; @answer is the body of success and of busy. */
static enum pvmsi_status read_answer(struct pvmsi_client *client, u32 length, enum call call,
				     struct reader *answer)
{
	const u8 *buffer = client->buffer;
	u32 status = load32(buffer + AT_STATUS);
	u32 body = load32(buffer + AT_BODY_LENGTH);

	if (status == SENTINEL)
		return PVMSI_NOT_SUPPORTED;
	if (load32(buffer + AT_MAGIC) != MAGIC || body > length - PVMSI_HEADER)
		return PVMSI_HARDWARE;
	answer->at = buffer + PVMSI_HEADER;
	answer->end = answer->at + body;
	answer->bad = false;

	switch (status) {
	case PVMSI_SUCCESS:
		return PVMSI_SUCCESS;
	case PVMSI_PARAMETER:
		return parameter_error(client, answer);
	case PVMSI_BUSY:
		return call == CALL_CONFIGURE ? PVMSI_BUSY : PVMSI_HARDWARE;
	case PVMSI_NOT_SUPPORTED:
	case PVMSI_NO_SUCH_FUNCTION:
	case PVMSI_NO_RESOURCES:
	case PVMSI_DENIED:
		return body ? PVMSI_HARDWARE : (enum pvmsi_status)status;
	default:
		return PVMSI_HARDWARE;
	}
}

/* Completes the request, rings, and looks at the answer. */
static enum pvmsi_status exchange(struct pvmsi_client *client, const struct writer *body,
				  enum call call, u32 function, struct reader *answer)
{
	u32 length = usable(client);
	u64 page = client->address / PVMSI_PAGE;
	u8 *buffer = client->buffer;

	/* No other call comes before negotiate (G-132). */
	if (call != CALL_NEGOTIATE && !client->terms.vectors)
		return PVMSI_NOT_SUPPORTED;
	if (length < PVMSI_HEADER || client->address % PVMSI_PAGE || page > 0xffffffffU)
		return refuse(client, PVMSI_PARAMETER_BUFFER_LENGTH);
	if (body->full)
		return refuse(client, PVMSI_PARAMETER_BODY_LENGTH);

	store32(buffer + AT_MAGIC, MAGIC);
	store16(buffer + AT_MAJOR, PVMSI_MAJOR);
	store16(buffer + AT_MINOR, call == CALL_NEGOTIATE ? PVMSI_MINOR : client->terms.minor);
	store32(buffer + AT_CALL, call);
	store32(buffer + AT_FUNCTION, function);
	store32(buffer + AT_BUFFER_LENGTH, length);
	store32(buffer + AT_BODY_LENGTH, (u32)(body->at - buffer) - PVMSI_HEADER);
	store32(buffer + AT_STATUS, SENTINEL);
	store32(buffer + AT_RESERVED, 0);
	client->ring(client, (u32)page);
	return read_answer(client, length, call, answer);
}

/* A call without a request. */
static enum pvmsi_status ask(struct pvmsi_client *client, enum call call, u32 function,
			     struct reader *answer)
{
	struct writer body = request(client);

	return exchange(client, &body, call, function, answer);
}

/*
 * Calls (chapter 4)
 */

enum pvmsi_status pvmsi_negotiate(struct pvmsi_client *client, u32 features)
{
	const struct pvmsi_terms none = { 0 };
	struct pvmsi_terms terms;
	enum pvmsi_status status;
	struct reader answer;
	struct writer body;
	u16 major;

	client->terms = none;
	body = request(client);
	put_number(&body, PVMSI_MAJOR);
	put_number(&body, PVMSI_MINOR);
	put_number(&body, features);
	status = exchange(client, &body, CALL_NEGOTIATE, 0, &answer);
	if (status != PVMSI_SUCCESS)
		return status;

	major = take_u16(&answer);
	terms.minor = take_u16(&answer);
	terms.features = take_u32(&answer) & features;
	terms.largest_buffer = take_u32(&answer);
	terms.vectors = take_u16(&answer);
	if (!whole(&answer))
		return PVMSI_HARDWARE;
	if (major != PVMSI_MAJOR || terms.minor > PVMSI_MINOR)
		return PVMSI_NOT_SUPPORTED;
	if (terms.largest_buffer < PVMSI_PAGE || !terms.vectors)
		return PVMSI_HARDWARE;
	if (terms.largest_buffer > PVMSI_BUFFER_MAX)
		terms.largest_buffer = PVMSI_BUFFER_MAX;
	if (terms.vectors > PVMSI_VECTORS_MAX)
		terms.vectors = PVMSI_VECTORS_MAX;
	client->terms = terms;
	return PVMSI_SUCCESS;
}

enum pvmsi_status pvmsi_query_function(struct pvmsi_client *client, u32 function,
				       struct pvmsi_state *state)
{
	struct pvmsi_state seen;
	enum pvmsi_status status;
	struct reader answer;

	status = ask(client, CALL_QUERY_FUNCTION, function, &answer);
	if (status != PVMSI_SUCCESS)
		return status;
	seen.msi_vectors = take_u16(&answer);
	seen.msix_vectors = take_u16(&answer);
	seen.assigned = take_u16(&answer);
	seen.mode = take_mode(&answer);
	seen.reasons = take_u32(&answer);
	seen.generation = take_u32(&answer);
	seen.delivery = (enum pvmsi_delivery)take_enum(&answer, PVMSI_DELIVERY_BYPASS + 1);
	if (!whole(&answer))
		return PVMSI_HARDWARE;
	*state = seen;
	return PVMSI_SUCCESS;
}

/* The list at the end of an answer. */
static void take_list(struct reader *from, struct pvmsi_list *list)
{
	list->left = take_u16(from);
	list->at = from->at;
	list->end = from->end;
}

/* Continues behind an item; false where there was none. */
static bool step(struct pvmsi_list *list, const struct reader *from)
{
	if (from->bad) {
		list->left = 0;
		return false;
	}
	list->at = from->at;
	list->left--;
	return true;
}

bool pvmsi_next_vector(struct pvmsi_list *vectors, struct pvmsi_vector *vector)
{
	struct reader from = { vectors->at, vectors->end, !vectors->left };

	vector->assigned = take_bool(&from);
	vector->has_guest = take_message(&from, &vector->guest);
	vector->has_table = take_message(&from, &vector->table);
	vector->masked = take_bool(&from);
	vector->pending = take_bool(&from);
	return step(vectors, &from);
}

bool pvmsi_next_answer(struct pvmsi_list *answers, struct pvmsi_answer *answer)
{
	struct reader from = { answers->at, answers->end, !answers->left };

	answer->has_message = take_message(&from, &answer->message);
	answer->pending = take_bool(&from);
	return step(answers, &from);
}

enum pvmsi_status pvmsi_query_vectors(struct pvmsi_client *client, u32 function,
				      u16 first, u16 count, u32 *generation,
				      struct pvmsi_list *vectors)
{
	struct writer body = request(client);
	struct pvmsi_vector vector;
	enum pvmsi_status status;
	struct pvmsi_list walk;
	struct reader answer;
	u32 number, items = 0;

	if (!count)
		return refuse(client, PVMSI_PARAMETER_COUNT);
	put_number(&body, first);
	put_number(&body, count);
	status = exchange(client, &body, CALL_QUERY_VECTORS, function, &answer);
	if (status != PVMSI_SUCCESS)
		return status;
	number = take_u32(&answer);
	take_list(&answer, vectors);
	walk = *vectors;
	while (pvmsi_next_vector(&walk, &vector))
		items++;
	if (answer.bad || !items || items != vectors->left || items > count ||
	    walk.at != walk.end) {
		vectors->left = 0;
		return PVMSI_HARDWARE;
	}
	*generation = number;
	return PVMSI_SUCCESS;
}

/* Takes what a busy answer says. */
static enum pvmsi_status busy(struct pvmsi_configure *configure, struct reader *answer)
{
	u32 sequence = take_u32(answer);
	u32 delay = take_u32(answer);

	if (!whole(answer) || !sequence)
		return PVMSI_HARDWARE;
	configure->sequence = sequence;
	configure->delay = delay;
	return PVMSI_BUSY;
}

static enum pvmsi_status configured(struct pvmsi_configure *configure, struct reader *answer)
{
	struct pvmsi_answer item;
	struct pvmsi_list walk;
	u32 items = 0;

	configure->granted = take_u16(answer);
	configure->mode = take_mode(answer);
	configure->reasons = take_u32(answer);
	configure->generation = take_u32(answer);
	take_list(answer, &configure->answers);
	walk = configure->answers;
	while (pvmsi_next_answer(&walk, &item))
		items++;
	if (!answer->bad && items && items == configure->answers.left &&
	    items == configure->granted && items <= configure->requested &&
	    walk.at == walk.end) {
		configure->sequence = 0;
		return PVMSI_SUCCESS;
	}
	configure->granted = 0;
	configure->answers.left = 0;
	return PVMSI_HARDWARE;
}

enum pvmsi_status pvmsi_configure(struct pvmsi_client *client, u32 function,
				  struct pvmsi_configure *configure)
{
	struct writer body = request(client);
	enum pvmsi_status status;
	struct reader answer;
	u16 index;

	configure->granted = 0;
	configure->answers.left = 0;
	if (!configure->requested || configure->listed > configure->requested ||
	    configure->requested > client->terms.vectors)
		return refuse(client, PVMSI_PARAMETER_COUNT);
	put_number(&body, configure->kind);
	put_number(&body, configure->requested);
	put_number(&body, configure->sequence);
	put_number(&body, configure->listed);
	for (index = 0; index < configure->listed; index++) {
		const struct pvmsi_setup *setup = &configure->setups[index];

		put_byte(&body, setup->has_message);
		if (setup->has_message)
			put_message(&body, &setup->message);
		put_byte(&body, setup->masked);
	}
	status = exchange(client, &body, CALL_CONFIGURE, function, &answer);
	switch (status) {
	case PVMSI_SUCCESS:
		return configured(configure, &answer);
	case PVMSI_BUSY:
		return busy(configure, &answer);
	default:
		return status;
	}
}

/* The end of the calls that answer nothing but a generation. */
static enum pvmsi_status take_generation(enum pvmsi_status status, struct reader *answer,
					 u32 *generation)
{
	u32 number;

	if (status != PVMSI_SUCCESS)
		return status;
	number = take_u32(answer);
	if (!whole(answer))
		return PVMSI_HARDWARE;
	*generation = number;
	return PVMSI_SUCCESS;
}

enum pvmsi_status pvmsi_update(struct pvmsi_client *client, u32 function,
			       const struct pvmsi_update *updates, u16 count,
			       u32 *generation)
{
	struct writer body = request(client);
	enum pvmsi_status status;
	struct reader answer;
	u16 index;

	if (!count)
		return refuse(client, PVMSI_PARAMETER_COUNT);
	put_number(&body, count);
	for (index = 0; index < count; index++) {
		put_number(&body, updates[index].vector);
		put_message(&body, &updates[index].message);
	}
	status = exchange(client, &body, CALL_UPDATE, function, &answer);
	return take_generation(status, &answer, generation);
}

enum pvmsi_status pvmsi_release(struct pvmsi_client *client, u32 function,
				u32 *generation)
{
	struct reader answer;
	enum pvmsi_status status = ask(client, CALL_RELEASE, function, &answer);

	return take_generation(status, &answer, generation);
}

enum pvmsi_status pvmsi_restore(struct pvmsi_client *client, u32 function,
				struct pvmsi_state *state)
{
	struct pvmsi_state seen = { 0 };
	enum pvmsi_status status;
	struct reader answer;

	status = ask(client, CALL_RESTORE, function, &answer);
	if (status != PVMSI_SUCCESS)
		return status;
	seen.mode = take_mode(&answer);
	seen.reasons = take_u32(&answer);
	seen.generation = take_u32(&answer);
	if (!whole(&answer))
		return PVMSI_HARDWARE;
	*state = seen;
	return PVMSI_SUCCESS;
}

/*
 * Words
 */

static const char *word(const char *const *words, size_t length, size_t index)
{
	return index < length ? words[index] : "unknown";
}

const char *pvmsi_status_name(enum pvmsi_status status)
{
	static const char *const names[] = {
		"success", "not supported", "no such function", "parameter error",
		"busy", "no resources", "denied", "hardware error",
	};

	return word(names, status % 16 ? 0 : ARRAY_LENGTH(names), status / 16);
}

const char *pvmsi_status_remedy(enum pvmsi_status status)
{
	static const char *const remedies[] = {
		"nothing to do",
		"the host does not offer this; the standard table is used",
		"the host does not have this function; rescan the bus",
		"guest and host disagree on what a call may say; report it",
		"the host needs more time; call again after the delay",
		"the host has no interrupt left; ask later",
		"the host's operator does not allow it for this function",
		"the host or the function has failed; look into the host's log",
	};

	return word(remedies, status % 16 ? 0 : ARRAY_LENGTH(remedies), status / 16);
}

const char *pvmsi_parameter_name(enum pvmsi_parameter parameter)
{
	static const char *const names[] = {
		"header", "version", "buffer length", "body length", "body",
		"answer room", "kind", "count", "vector", "duplicate vector",
		"message", "sequence", "shared message",
	};

	return word(names, ARRAY_LENGTH(names), parameter);
}

const char *pvmsi_mode_name(enum pvmsi_mode mode)
{
	static const char *const names[] = { "trapped", "direct" };

	return word(names, ARRAY_LENGTH(names), mode);
}

const char *pvmsi_delivery_name(enum pvmsi_delivery delivery)
{
	static const char *const names[] = { "unknown", "host", "bypass" };

	return word(names, ARRAY_LENGTH(names), delivery);
}

const char *pvmsi_reason_name(unsigned int bit)
{
	static const char *const names[PVMSI_REASONS] = {
		"not-assigned", "policy", "no-isolation", "not-mappable",
		"msix-disabled", "decoding-off", "power-state", "host-revoked",
		"held-event", "migrated", "no-table", "unreadable",
	};

	return word(names, ARRAY_LENGTH(names), bit);
}

const char *pvmsi_reason_words(unsigned int bit)
{
	static const char *const words[PVMSI_REASONS] = {
		"no vector is assigned",
		"the host's operator allows the calls but not the mapping",
		"the host cannot confine the function to its own interrupts",
		"the table's pages cannot be mapped",
		"MSI-X is disabled",
		"memory decoding is off",
		"the function is not in D0",
		"the host has taken the table back",
		"an event is held until a vector is unmasked",
		"the guest has moved to another host",
		"MSI has no table",
		"the host cannot read its own messages in the table",
	};

	return word(words, ARRAY_LENGTH(words), bit);
}
