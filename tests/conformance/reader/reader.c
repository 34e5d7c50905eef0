/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A minimal guest half of PV-MSI 1.0, written from the specification alone: see reader.h. */
#include "reader.h"

enum { NEGOTIATE = 1, QUERY_FUNCTION, QUERY_VECTORS, CONFIGURE, UPDATE, RELEASE, RESTORE };
enum { MAGIC = 0, BODY = 5, STATUS = 6, WORDS = 8 }; /* words of the header, W-202 */
enum { HEADER = 32, NOT_ASSIGNED = 1, TRIES = 1000, LONGEST_WAIT = 10000 };
enum { ENABLE = 0x8000, FUNCTION_MASK = 0x4000, SIZE = 0x07FF }; /* MSI-X Message Control */
#define PMSI 0x49534D50u
#define KNOWN ((uint32_t)READER_DIRECT | (uint32_t)READER_EXTENDED)

/* A place in the call buffer. It is bad for ever once something did not fit (G-906). */
struct cursor { volatile uint8_t *p; uint32_t at, end; bool bad; };

static void put(struct cursor *c, uint64_t n) { /* W-301 */
	for (bool more = true; more; n >>= 7) {
		more = n > 0x7F;
		c->bad |= c->at >= c->end;
		if (!c->bad)
			c->p[c->at++] = (uint8_t)((n & 0x7F) | (more ? 0x80 : 0));
	}
}
static void put3(struct cursor *c, uint64_t a, uint64_t b, uint64_t d) {
	put(c, a), put(c, b), put(c, d);
}
static uint64_t get(struct cursor *c, uint32_t bits) { /* W-302 */
	uint64_t n = 0;
	for (uint32_t shift = 0; shift < bits && !c->bad && c->at < c->end; shift += 7) {
		uint8_t b = c->p[c->at++];
		if (bits - shift < 7 && b >> (bits - shift) != 0) break;
		n |= (uint64_t)(b & 0x7F) << shift;
		if (b < 0x80) return n;
	}
	c->bad = true;
	return 0;
}
static bool get_bool(struct cursor *c) { /* W-303 */
	uint8_t b = c->at < c->end ? c->p[c->at++] : 2;
	c->bad |= b > 1;
	return b == 1 && !c->bad;
}
/* Reads one value for each letter: u16, u32 (w), mode, delivery, parameter. */
static bool read(struct cursor *c, const char *letters, uint32_t *out) {
	for (; *letters; letters++, out++) {
		*out = (uint32_t)get(c, *letters == 'u' ? 16 : 32);
		c->bad |= (*letters == 'm' && *out > 1) || (*letters == 'd' && *out > 2) ||
			  (*letters == 'p' && *out > 11);
	}
	return !c->bad;
}
static bool whole(const struct cursor *c) { return !c->bad && c->at == c->end; } /* W-304 */
static uint32_t word(const struct cursor *c, uint32_t n) {
	uint32_t w = 0;
	for (uint32_t i = 4; i-- > 0;)
		w = w << 8 | c->p[4 * n + i];
	return w;
}
static struct cursor request(const struct reader_host *h) {
	uint32_t limit = h->ready ? h->largest : 4096; /* G-201 */
	struct cursor c = { h->buffer, HEADER, h->length < limit ? h->length : limit, false };
	c.bad = c.end < HEADER || h->physical % 4096 != 0 || h->physical >> 44 != 0;
	return c;
}

/* Rings for the request whose body *c has written. After success and busy *c is at the answer's
 * body, which the caller reads; any other answer has been read to its end. */
static uint32_t call(struct reader_host *h, uint32_t number, uint32_t function, struct cursor *c) {
	uint32_t page = (uint32_t)(h->physical >> 12), status; /* W-220 */
	uint64_t x[4] = { 0xC6005651u, page, 0, 0 };
	uint32_t words[WORDS] = { PMSI, 1, number, function, c->end, c->at - HEADER, UINT32_MAX, 0 };
	if (h->bell == READER_NO_BELL || (!h->ready && number != NEGOTIATE)) /* G-105, G-132 */
		return READER_NOT_SUPPORTED;
	h->parameter = 3, h->vector = -1; /* Body length: should nobody be asked. */
	if (c->bad) return READER_PARAMETER;
	for (uint32_t i = 0; i < HEADER; i++)
		c->p[i] = (uint8_t)(words[i / 4] >> (8 * (i % 4)));
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* G-206 */
	if (h->bell == READER_PORT)
		h->out32(h->ctx, (uint16_t)h->bell_at, page);
	else if (h->bell == READER_REGISTER)
		h->store32(h->ctx, h->bell_at, page);
	else
		h->smccc(h->ctx, x); /* What X0 tells, the status tells as well. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	status = word(c, STATUS);
	if (status == UINT32_MAX) return READER_NOT_SUPPORTED; /* G-204 */
	if (word(c, MAGIC) != PMSI || word(c, BODY) > c->end - HEADER)
		return READER_HARDWARE; /* G-702 */
	c->at = HEADER, c->end = HEADER + word(c, BODY);
	if (status == READER_SUCCESS || (status == READER_BUSY && number == CONFIGURE))
		return status;
	if (status == READER_PARAMETER && read(c, "p", &h->parameter))
		h->vector = get_bool(c) ? (int32_t)get(c, 16) : -1;
	bool known = status % 16 == 0 && status <= READER_DENIED && status != READER_BUSY;
	return known && whole(c) ? status : READER_HARDWARE;
}

/* A call whose answer is nothing but numbers. */
static uint32_t ask(struct reader_host *h, uint32_t number, uint32_t function, struct cursor c,
		    const char *letters, uint32_t *out) {
	uint32_t status = call(h, number, function, &c);
	if (status == READER_SUCCESS && !(read(&c, letters, out) && whole(&c)))
		return READER_HARDWARE;
	return status;
}

/* One leaf of the service block: by the conduit (W-120), else by CPUID. */
static bool leaf(struct reader_host *h, uint32_t base, uint32_t n, uint32_t w[4]) {
	uint64_t x[4] = { 0xC6005650u, n, 0, 0 };
	if (h->smccc) {
		h->smccc(h->ctx, x);
		for (uint32_t i = 0; i < 4; i++)
			w[i] = (uint32_t)(x[1 + i / 2] >> (32 * (i % 2)));
		return x[0] == 0;
	}
	h->cpuid(h->ctx, base + n, w);
	return true;
}

bool reader_find(struct reader_host *h) {
	uint32_t w[4], base = h->smccc ? 0 : 0x40000000u, last = h->smccc ? 0 : 0x4000FF00u;
	h->bell = READER_NO_BELL, h->ready = false;
	for (; (h->smccc || h->cpuid) && h->bell == READER_NO_BELL && base <= last; base += 0x100) {
		if (!leaf(h, base, 0, w) || w[0] < base + 3 || w[1] != 0x4D2D5650u || w[2] != 0x4953u ||
		    w[3] != 0 || !leaf(h, base, 1, w) || w[0] >> 16 != 1 || !leaf(h, base, 2, w))
			continue;
		h->bell_at = (uint64_t)w[2] << 32 | w[1];
		h->bell = h->smccc ? READER_SMCCC : h->bell_at != 0 ? READER_REGISTER : READER_NO_BELL;
		if (!h->smccc && h->out32 && w[0] != 0 && w[0] <= 0xFFFF)
			h->bell = READER_PORT, h->bell_at = w[0];
	} /* G-106, G-111 */
	return h->bell != READER_NO_BELL;
}

uint32_t reader_negotiate(struct reader_host *h) {
	uint32_t a[5]; /* major, minor, features, largest buffer, vectors */
	h->ready = false;
	struct cursor c = request(h);
	put3(&c, 1, 0, KNOWN);
	uint32_t status = ask(h, NEGOTIATE, 0, c, "uuwwu", a);
	if (status != READER_SUCCESS) return status;
	h->features = a[2] & KNOWN, h->largest = a[3], h->most = a[4];
	h->ready = a[0] == 1 && a[1] == 0 && h->largest >= 4096 && h->most != 0;
	return h->ready ? READER_SUCCESS : READER_HARDWARE;
}

/* How the function stands. After another generation cached table messages are void (G-811). */
static void now(struct reader_function *f, uint32_t mode, uint32_t reasons, uint32_t generation) {
	for (uint32_t v = 0; f->generation != generation && v < f->room; v++)
		f->vectors[v].has_table = false;
	f->mode = mode, f->reasons = reasons, f->generation = generation;
}

uint32_t reader_query(struct reader_function *f, uint32_t a[READER_ANSWERS]) {
	uint32_t status = ask(f->host, QUERY_FUNCTION, f->function, request(f->host), "uuumwwd", a);
	if (status == READER_SUCCESS)
		now(f, a[READER_MODE], a[READER_REASONS], a[READER_GENERATION]);
	return status;
}
static uint32_t control(const struct reader_function *f, uint32_t set) {
	struct reader_host *h = f->host;
	uint32_t n = h->config_read16(h->ctx, f->function, f->msix_cap + 2);
	n = (n & ~(uint32_t)(ENABLE | FUNCTION_MASK)) | set;
	h->config_write16(h->ctx, f->function, f->msix_cap + 2, (uint16_t)n);
	return n;
}
static void set_mask_bit(const struct reader_function *f, uint16_t v, bool masked) {
	uint64_t at = f->table + 16u * v + 12;
	f->host->store32(f->host->ctx, at, (f->host->load32(f->host->ctx, at) & ~1u) | masked); /* G-521 */
	f->host->load32(f->host->ctx, at); /* G-522 */
}

/* Vector v by the standard table. Only called while it is not assigned (G-520). */
static void standard(const struct reader_function *f, uint16_t v) {
	const struct reader_vector *e = &f->vectors[v];
	uint32_t words[3] = { (uint32_t)e->address, (uint32_t)(e->address >> 32), e->data };
	set_mask_bit(f, v, true);
	for (uint32_t i = 0; e->has_message && i < 3; i++)
		f->host->store32(f->host->ctx, f->table + 16u * v + 4 * i, words[i]);
	set_mask_bit(f, v, !e->enabled || !e->has_message);
}

/* Ends the assignment: by release, or where that is not answered by MSI-X Enable (H-530). */
static void end(struct reader_function *f) {
	uint32_t generation = f->generation;
	if (ask(f->host, RELEASE, f->function, request(f->host), "w", &generation) != READER_SUCCESS)
		control(f, 0);
	now(f, 0, NOT_ASSIGNED, ~f->generation); /* forgets all table messages */
	f->generation = generation;
	f->assigned = false;
}
static void fall_back(struct reader_function *f, uint16_t n) {
	control(f, ENABLE | FUNCTION_MASK);
	f->count = n;
	for (uint16_t v = 0; v < n; v++)
		standard(f, v);
}
static void deliver(struct reader_function *f) { /* G-445: the pending events of unmasked vectors */
	for (uint16_t v = 0; v < f->count; v++)
		if (f->vectors[v].enabled && f->vectors[v].pending)
			f->vectors[v].pending = false, reader_interrupt(f, v);
}

/* Reads what configure has granted, and takes it only in a second reading: nothing of an answer
 * that is wrong further on may have an effect. */
static bool granted(struct reader_function *f, struct cursor c, uint32_t most, bool take) {
	uint32_t a[5] = { 0 }; /* granted, mode, reasons, generation, items */
	if (!read(&c, "umwwu", a) || a[0] == 0 || a[0] > most || a[4] != a[0]) /* G-702 */
		return false;
	if (take)
		now(f, a[1], a[2], a[3]), f->assigned = true, f->count = (uint16_t)a[0];
	for (uint16_t v = 0; v < a[0]; v++) {
		struct reader_vector e = f->vectors[v];
		e.has_table = get_bool(&c);
		e.table_address = e.has_table ? get(&c, 64) : 0;
		e.table_data = e.has_table ? (uint32_t)get(&c, 32) : 0;
		e.pending |= get_bool(&c);
		if (take)
			f->vectors[v] = e;
	}
	return whole(&c);
}

/* One configure for n vectors. Where it answers busy, *sequence is what the next one says. */
static uint32_t configure(struct reader_function *f, uint32_t n, uint32_t *sequence) {
	struct reader_host *h = f->host;
	struct cursor c = request(h);
	uint32_t a[2]; /* sequence, delay */
	put3(&c, 1 /* MSI-X */, n, *sequence);
	put(&c, n);
	for (struct reader_vector *e = f->vectors; e < f->vectors + n; e++) {
		put(&c, e->has_message);
		if (e->has_message)
			put(&c, e->address), put(&c, e->data);
		put(&c, !e->enabled);
	}
	uint32_t status = call(h, CONFIGURE, f->function, &c);
	if (status == READER_SUCCESS)
		return granted(f, c, n, false) && granted(f, c, n, true) ? status : READER_HARDWARE;
	if (status != READER_BUSY) return status;
	if (!read(&c, "ww", a) || !whole(&c) || a[0] == 0) return READER_HARDWARE; /* H-446 */
	*sequence = a[0];
	if (h->wait)
		h->wait(h->ctx, a[1] < LONGEST_WAIT ? a[1] : LONGEST_WAIT);
	return status;
}

uint32_t reader_configure(struct reader_function *f, uint16_t n) {
	struct reader_host *h = f->host;
	uint32_t status = h->ready && !f->refused ? READER_BUSY : READER_NOT_SUPPORTED, sequence = 0;
	uint32_t size = (control(f, ENABLE | FUNCTION_MASK) & SIZE) + 1u; /* G-449 */
	n = n < size ? n : (uint16_t)size;
	n = n < f->room ? n : f->room;
	uint32_t room = request(h).end, most = room < 64 ? 0 : (room - 64) / 17; /* H-213 */
	most = most < h->most ? most : h->most;
	for (int i = 0; status == READER_BUSY && i < TRIES; i++) /* G-448 */
		status = configure(f, most < n ? most : n, &sequence);
	if (status != READER_SUCCESS) { /* G-703 */
		if (f->assigned || status == READER_HARDWARE || status == READER_BUSY || sequence != 0)
			end(f);
		f->refused |= status == READER_NOT_SUPPORTED && h->ready;
		fall_back(f, n);
	}
	control(f, ENABLE);
	deliver(f);
	return status;
}

uint32_t reader_set_message(struct reader_function *f, uint16_t v, uint64_t address,
			    uint32_t data) {
	if (v >= f->count) return READER_PARAMETER;
	struct cursor c = request(f->host);
	put3(&c, 1 /* item */, v, address);
	put(&c, data);
	uint32_t generation = 0, status = READER_SUCCESS;
	if (f->assigned)
		status = ask(f->host, UPDATE, f->function, c, "w", &generation);
	if (status != READER_SUCCESS) return status;
	struct reader_vector *e = &f->vectors[v];
	e->address = address, e->data = data, e->has_message = true;
	if (f->assigned)
		now(f, f->mode, f->reasons, generation);
	else
		standard(f, v);
	return READER_SUCCESS;
}

void reader_enable(struct reader_function *f, uint16_t v, bool enabled) {
	if (v >= f->count) return;
	f->vectors[v].enabled = enabled;
	if (!enabled || f->assigned || f->vectors[v].has_message) /* else there is none to send */
		set_mask_bit(f, v, !enabled);
	deliver(f);
}

void reader_interrupt(struct reader_function *f, uint16_t v) {
	if (f->interrupt && v < f->count)
		f->interrupt(f, v);
}

uint32_t reader_restore(struct reader_function *f) {
	if (f->count == 0) return READER_SUCCESS; /* there is nothing to bring back */
	uint32_t a[3] = { 0, 0, f->generation }, status = READER_SUCCESS; /* mode, reasons, generation */
	control(f, ENABLE | FUNCTION_MASK);
	if (f->assigned)
		status = ask(f->host, RESTORE, f->function, request(f->host), "mww", a);
	if (f->assigned && (status != READER_SUCCESS || (a[1] & NOT_ASSIGNED) != 0))
		end(f); /* G-803 cannot be kept, or the host has given the vectors up. */
	if (f->assigned)
		now(f, a[0], a[1], a[2]);
	else
		fall_back(f, f->count);
	for (uint16_t v = 0; f->assigned && v < f->count; v++)
		set_mask_bit(f, v, !f->vectors[v].enabled); /* G-804 */
	control(f, ENABLE);
	deliver(f);
	return status;
}

void reader_release(struct reader_function *f) {
	if (f->assigned)
		end(f);
	control(f, 0);
	for (; f->count > 0; f->count--)
		f->vectors[f->count - 1].pending = f->vectors[f->count - 1].enabled = false;
}
