// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Discovery, doorbell, call buffers and calls.
 *
 * Calls that may wait share one buffer, which is long enough for any of them,
 * under a mutex. A new message has to reach the host with interrupts off and a
 * descriptor's lock held: each processor has a buffer of its own for that, and
 * nothing interrupts the call.
 */
#define pr_fmt(fmt) "pvmsi: " fmt

#include <linux/cc_platform.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#ifdef CONFIG_ARM64
#include <linux/arm-smccc.h>
#include <linux/of.h>
#include <linux/of_address.h>
#endif
#ifdef CONFIG_X86
#ifdef PVMSI_CPUID_API
#include <asm/cpuid/api.h>
#else
#include <asm/processor.h>
#endif
#endif

#include "pvmsi.h"

#define CREATE_TRACE_POINTS
#include "pvmsi_trace.h"

/* Numbers of calls, for who watches them. */
enum {
	PVMSI_CALL_NEGOTIATE = 1,
	PVMSI_CALL_QUERY_FUNCTION = 2,
	PVMSI_CALL_QUERY_VECTORS = 3,
	PVMSI_CALL_CONFIGURE = 4,
	PVMSI_CALL_UPDATE = 5,
	PVMSI_CALL_RELEASE = 6,
	PVMSI_CALL_RESTORE = 7,
};

/* How long a host may be busy with one function, and between two questions. */
#define PVMSI_BUSY_LIMIT	(5 * NSEC_PER_SEC)
#define PVMSI_DELAY_MIN		50U
#define PVMSI_DELAY_MAX		20000U

struct pvmsi_service pvmsi_service;
struct pvmsi_terms pvmsi_terms;

static DEFINE_PER_CPU(struct pvmsi_client, pvmsi_clients);
static struct pvmsi_client pvmsi_shared;
static DEFINE_MUTEX(pvmsi_shared_lock);
static void __iomem *pvmsi_register;

/*
 * Doorbells
 */

#ifdef CONFIG_X86
static void pvmsi_ring_port(struct pvmsi_client *client, u32 page)
{
	mb(); /* the request is there before the host looks (G-206) */
	outl(page, pvmsi_service.port);
	mb(); /* the answer is read after the ring (G-206) */
}

static void pvmsi_cpuid(void *context, u32 leaf, u32 words[4])
{
	cpuid_count(leaf, 0, &words[0], &words[1], &words[2], &words[3]);
}

static bool pvmsi_discover(void)
{
	return pvmsi_find_cpuid(&pvmsi_service, pvmsi_cpuid, NULL);
}
#endif

#ifdef CONFIG_ARM64
static void pvmsi_ring_smccc(struct pvmsi_client *client, u32 page)
{
	struct arm_smccc_res res;

	mb(); /* the request is there before the host looks (G-206) */
	arm_smccc_1_1_invoke(PVMSI_SMCCC_RING, page, &res);
	mb(); /* the answer is read after the ring (G-206) */
}

static void pvmsi_smccc(void *context, u32 leaf, u64 x[3])
{
	struct arm_smccc_res res;

	arm_smccc_1_1_invoke(PVMSI_SMCCC_DISCOVER, leaf, &res);
	x[0] = res.a0;
	x[1] = res.a1;
	x[2] = res.a2;
}

/* The node can name a register where the platform has no calls (W-124). */
static bool pvmsi_discover_node(void)
{
	struct device_node *node = of_find_node_by_path(PVMSI_NODE);
	struct resource resource;
	bool found = false;

	if (of_device_is_compatible(node, PVMSI_COMPATIBLE) &&
	    !of_address_to_resource(node, 0, &resource)) {
		pvmsi_service = (struct pvmsi_service) {
			.major = PVMSI_MAJOR,
			.minor = PVMSI_MINOR,
			.address = resource.start,
		};
		found = true;
	}
	of_node_put(node);
	return found;
}

static bool pvmsi_discover(void)
{
	/* The conduit is that of PSCI; where there is none nothing is called. */
	if (arm_smccc_1_1_get_conduit() != SMCCC_CONDUIT_NONE &&
	    pvmsi_find_smccc(&pvmsi_service, pvmsi_smccc, NULL))
		return true;
	return pvmsi_discover_node();
}
#endif

static void pvmsi_ring_register(struct pvmsi_client *client, u32 page)
{
	mb(); /* the request is there before the host looks (G-206) */
	writel(page, pvmsi_register);
	mb(); /* the answer is read after the ring (G-206) */
}

typedef void (*pvmsi_ring_t)(struct pvmsi_client *client, u32 page);

static pvmsi_ring_t pvmsi_doorbell(void)
{
#ifdef CONFIG_X86
	if (pvmsi_service.port)
		return pvmsi_ring_port;
#endif
#ifdef CONFIG_ARM64
	if (pvmsi_service.smccc)
		return pvmsi_ring_smccc;
#endif
	if (!pvmsi_service.address)
		return NULL;
	if (!pvmsi_register)
		pvmsi_register = ioremap(pvmsi_service.address, sizeof(u32));
	return pvmsi_register ? pvmsi_ring_register : NULL;
}

/**
 * pvmsi_host_doorbell() - the doorbell in use, in words
 *
 * Return: words.
 */
const char *pvmsi_host_doorbell(void)
{
	if (pvmsi_register)
		return "register";
	return pvmsi_service.smccc ? "smccc" : "port";
}

/*
 * Call buffers
 */

static int pvmsi_client_open(struct pvmsi_client *client, int node, u32 length,
			     pvmsi_ring_t ring)
{
	struct page *pages = alloc_pages_node(node, GFP_KERNEL | __GFP_ZERO,
					      get_order(length));

	if (!pages)
		return -ENOMEM;
	*client = (struct pvmsi_client) {
		.buffer = page_address(pages),
		.address = page_to_phys(pages),
		.length = length,
		.ring = ring,
		.terms = pvmsi_terms,
		.vector = -1,
	};
	return 0;
}

static void pvmsi_client_close(struct pvmsi_client *client)
{
	free_pages((unsigned long)client->buffer, get_order(client->length));
	client->buffer = NULL;
}

static u64 pvmsi_begin(void)
{
	return trace_pvmsi_call_enabled() ? ktime_get_mono_fast_ns() : 0;
}

static void pvmsi_end(u64 begin, u32 function, unsigned int call, unsigned int first,
		      unsigned int count, enum pvmsi_status status)
{
	if (trace_pvmsi_call_enabled())
		trace_pvmsi_call(function, call, first, count, status,
				 begin ? ktime_get_mono_fast_ns() - begin : 0);
}

/**
 * pvmsi_host_close() - gives the buffers back; no call is made any more
 */
void pvmsi_host_close(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		pvmsi_client_close(per_cpu_ptr(&pvmsi_clients, cpu));
	pvmsi_client_close(&pvmsi_shared);
	if (pvmsi_register)
		iounmap(pvmsi_register);
	pvmsi_register = NULL;
}

/**
 * pvmsi_host_open() - looks for the service and agrees with it on terms
 *
 * Return: 0, or -ENODEV where there is none, which is told, or -ENOMEM.
 */
int pvmsi_host_open(void)
{
	enum pvmsi_status status;
	pvmsi_ring_t ring;
	u32 length;
	u64 begin;
	int cpu, ret;

	if (cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT)) {
		pr_info("confidential guests are not served; nothing changes\n");
		return -ENODEV;
	}
	if (!pvmsi_discover()) {
		pr_info("this machine offers no PV-MSI service; nothing changes\n");
		return -ENODEV;
	}
	ring = pvmsi_doorbell();
	if (!ring) {
		pr_warn("the host names no doorbell that can be rung; nothing changes\n");
		return -ENODEV;
	}

	ret = pvmsi_client_open(&pvmsi_shared, NUMA_NO_NODE, PVMSI_PAGE, ring);
	if (ret)
		goto close;
	begin = pvmsi_begin();
	status = pvmsi_negotiate(&pvmsi_shared,
				 PVMSI_FEATURE_DIRECT | PVMSI_FEATURE_EXT_DEST);
	pvmsi_end(begin, 0, PVMSI_CALL_NEGOTIATE, 0, 0, status);
	if (status != PVMSI_SUCCESS) {
		pr_warn("the host does not agree on PV-MSI %u.%u: %s; nothing changes\n",
			PVMSI_MAJOR, PVMSI_MINOR, pvmsi_status_name(status));
		ret = -ENODEV;
		goto close;
	}
	pvmsi_terms = pvmsi_shared.terms;
	pvmsi_client_close(&pvmsi_shared);

	length = max_t(u32, pvmsi_configure_length(pvmsi_terms.vectors), PVMSI_PAGE);
	length = min_t(u32, length, pvmsi_terms.largest_buffer);
	pvmsi_terms.vectors = min(pvmsi_terms.vectors, pvmsi_configure_vectors(length));
	ret = pvmsi_client_open(&pvmsi_shared, NUMA_NO_NODE, length, ring);
	if (ret)
		goto close;
	for_each_possible_cpu(cpu) {
		ret = pvmsi_client_open(per_cpu_ptr(&pvmsi_clients, cpu), cpu_to_node(cpu),
					PVMSI_PAGE, ring);
		if (ret)
			goto close;
	}
	return 0;

close:
	pvmsi_host_close();
	return ret;
}

/*
 * Calls
 */

/**
 * pvmsi_host_query() - asks how a function stands; may sleep
 * @address: of the function
 * @state: is filled in on success
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_host_query(u32 address, struct pvmsi_state *state)
{
	enum pvmsi_status status;
	u64 begin;

	mutex_lock(&pvmsi_shared_lock);
	begin = pvmsi_begin();
	status = pvmsi_query_function(&pvmsi_shared, address, state);
	pvmsi_end(begin, address, PVMSI_CALL_QUERY_FUNCTION, 0, 0, status);
	mutex_unlock(&pvmsi_shared_lock);
	return status;
}

/* With @client for itself. */
static void pvmsi_release_with(struct pvmsi_client *client,
			       struct pvmsi_function *function)
{
	enum pvmsi_status status;
	u64 begin = pvmsi_begin();

	status = pvmsi_release(client, function->address, &function->generation);
	pvmsi_end(begin, function->address, PVMSI_CALL_RELEASE, 0, 0, status);
	atomic64_inc(&function->counters.releases);
	if (status != PVMSI_SUCCESS)
		dev_warn_ratelimited(&function->pdev->dev,
				     "pvmsi: the host does not take vectors back: %s\n",
				     pvmsi_status_name(status));
}

/* Takes the answer, which is still in the buffer, to the function. */
static enum pvmsi_status pvmsi_granted(struct pvmsi_function *function,
				       struct pvmsi_configure *configure)
{
	struct pvmsi_answer answer;
	u16 vector;

	for (vector = 0; vector < configure->granted; vector++) {
		struct pvmsi_vector_setup *setup = &function->vectors[vector];

		/* The host writes to the buffer although it has answered. */
		if (!pvmsi_next_answer(&configure->answers, &answer))
			return PVMSI_HARDWARE;
		setup->known = answer.has_message;
		setup->table.address_lo = lower_32_bits(answer.message.address);
		setup->table.address_hi = upper_32_bits(answer.message.address);
		setup->table.data = answer.message.data;
		setup->pending |= answer.pending;
	}
	function->mode = configure->mode;
	function->reasons = configure->reasons;
	function->generation = configure->generation;
	return PVMSI_SUCCESS;
}

/* One attempt. What fails after it may have been granted is released. */
static enum pvmsi_status pvmsi_attempt(struct pvmsi_function *function,
				       struct pvmsi_configure *configure)
{
	enum pvmsi_status status;
	u64 begin = pvmsi_begin();

	status = pvmsi_configure(&pvmsi_shared, function->address, configure);
	pvmsi_end(begin, function->address, PVMSI_CALL_CONFIGURE, 0,
		  status == PVMSI_SUCCESS ? configure->granted : configure->requested, status);
	if (status == PVMSI_SUCCESS)
		status = pvmsi_granted(function, configure);
	if (status == PVMSI_HARDWARE)
		pvmsi_release_with(&pvmsi_shared, function);
	return status;
}

/**
 * pvmsi_host_configure() - asks for vectors; may sleep
 * @function: the function; its @vectors have room for @count
 * @count: how many
 *
 * While the host is busy it is asked again, and other functions' calls get
 * their turn in between. On success @function->granted of the vectors are
 * assigned, masked and without a message; otherwise none is.
 *
 * Return: how it ended.
 */
enum pvmsi_status pvmsi_host_configure(struct pvmsi_function *function, u16 count)
{
	struct pvmsi_configure configure = {
		.kind = PVMSI_KIND_MSIX,
		.requested = count,
	};
	enum pvmsi_parameter parameter;
	enum pvmsi_status status;
	u64 end;
	u32 delay;

	atomic64_inc(&function->counters.configures);
	end = ktime_get_ns() + PVMSI_BUSY_LIMIT;
	for (;;) {
		bool late;

		mutex_lock(&pvmsi_shared_lock);
		status = pvmsi_attempt(function, &configure);
		parameter = pvmsi_shared.parameter;
		late = ktime_get_ns() > end;
		if (status == PVMSI_BUSY && late)
			pvmsi_release_with(&pvmsi_shared, function);
		mutex_unlock(&pvmsi_shared_lock);
		if (status != PVMSI_BUSY || late)
			break;
		atomic64_inc(&function->counters.busy);
		delay = clamp(configure.delay, PVMSI_DELAY_MIN, PVMSI_DELAY_MAX);
		usleep_range(delay, 2 * delay);
	}
	function->failure = status;
	if (status == PVMSI_SUCCESS) {
		function->granted = configure.granted;
		return status;
	}
	atomic64_inc(&function->counters.errors);
	if (status == PVMSI_PARAMETER)
		dev_warn_ratelimited(&function->pdev->dev, "pvmsi: the host refuses the call: %s\n",
				     pvmsi_parameter_name(parameter));
	return status;
}

/**
 * pvmsi_host_update() - gives a new message of an assigned vector
 * @function: the function
 * @vector: the vector
 * @message: where its interrupt goes from now on
 *
 * In any context but NMI.
 *
 * Return: how it ended. Only the first attempt can leave it open which message
 * is in force (H-453), so there is a second.
 */
enum pvmsi_status pvmsi_host_update(struct pvmsi_function *function, u16 vector,
				    const struct pvmsi_message *message)
{
	struct pvmsi_update update = { .vector = vector, .message = *message };
	enum pvmsi_status status = PVMSI_HARDWARE;
	unsigned long flags;
	unsigned int attempt;
	u32 generation = 0;

	local_irq_save(flags);
	for (attempt = 0; attempt < 2 && status == PVMSI_HARDWARE; attempt++) {
		struct pvmsi_client *client = this_cpu_ptr(&pvmsi_clients);
		u64 begin = pvmsi_begin();

		status = pvmsi_update(client, function->address, &update, 1, &generation);
		pvmsi_end(begin, function->address, PVMSI_CALL_UPDATE, vector, 1, status);
	}
	local_irq_restore(flags);

	if (status == PVMSI_SUCCESS) {
		atomic64_inc(&function->counters.updates);
		if (generation != function->generation) {
			set_bit(PVMSI_STALE, &function->flags);
			pvmsi_look();
		}
	} else {
		atomic64_inc(&function->counters.errors);
	}
	return status;
}

/* As pvmsi_host_configure(), for vectors that Linux believes to have. */
static enum pvmsi_status pvmsi_configure_again(struct pvmsi_function *function,
					       unsigned int *attempts)
{
	struct pvmsi_configure configure = {
		.kind = PVMSI_KIND_MSIX,
		.requested = function->granted,
		.listed = function->granted,
	};
	struct pvmsi_setup *setups;
	enum pvmsi_status status;
	u16 vector;

	setups = kcalloc(function->granted, sizeof(*setups), GFP_ATOMIC);
	if (!setups)
		return PVMSI_NO_RESOURCES;
	for (vector = 0; vector < function->granted; vector++) {
		setups[vector].has_message = function->vectors[vector].has_guest;
		setups[vector].message = function->vectors[vector].guest;
		setups[vector].masked = true;
	}
	configure.setups = setups;

	/* Clocks may stand still here, so that attempts are counted. */
	for (;;) {
		status = pvmsi_attempt(function, &configure);
		if (status != PVMSI_BUSY || !*attempts)
			break;
		--*attempts;
		atomic64_inc(&function->counters.busy);
		udelay(PVMSI_DELAY_MIN);
	}
	kfree(setups);
	if (status != PVMSI_SUCCESS)
		return status;

	/* What belongs into a table that is not there yet cannot be read from it. */
	for (vector = 0; vector < configure.granted; vector++)
		if (!function->vectors[vector].known)
			return PVMSI_NOT_SUPPORTED;
	return configure.granted < function->granted ? PVMSI_NO_RESOURCES : PVMSI_SUCCESS;
}

/**
 * pvmsi_host_resume() - sees after sleep that the host has the vectors
 * @function: the function, which has vectors
 * @attempts: how often hosts that are busy may still be asked; counts down
 *
 * On the only processor that runs, with interrupts off. The host may have
 * started anew, or have vectors of the kernel that has read this one from a
 * disk: it is asked for the same vectors with the same messages, whatever it
 * has. The table messages are others then.
 *
 * Return: how it ended. Anything but success: the host has no vectors.
 */
enum pvmsi_status pvmsi_host_resume(struct pvmsi_function *function, unsigned int *attempts)
{
	enum pvmsi_status status = PVMSI_NO_RESOURCES;

	atomic64_inc(&function->counters.configures);
	if (mutex_trylock(&pvmsi_shared_lock)) {
		status = pvmsi_configure_again(function, attempts);
		mutex_unlock(&pvmsi_shared_lock);
	}
	function->failure = status;
	if (status != PVMSI_SUCCESS) {
		atomic64_inc(&function->counters.errors);
		pvmsi_release_with(this_cpu_ptr(&pvmsi_clients), function);
	}
	return status;
}

/* Learns the table messages, which another host has chosen (G-811). */
static enum pvmsi_status pvmsi_learn_vectors(struct pvmsi_function *function)
{
	struct pvmsi_vector vector;
	struct pvmsi_list vectors;
	enum pvmsi_status status;
	u32 generation;
	u16 next = 0;
	u64 begin;

	while (next < function->granted) {
		u16 first = next;

		begin = pvmsi_begin();
		status = pvmsi_query_vectors(&pvmsi_shared, function->address, first,
					     function->granted - first, &generation, &vectors);
		atomic64_inc(&function->counters.queries);
		pvmsi_end(begin, function->address, PVMSI_CALL_QUERY_VECTORS, first,
			  function->granted - first, status);
		if (status != PVMSI_SUCCESS)
			return status;
		while (next < function->granted && pvmsi_next_vector(&vectors, &vector)) {
			struct pvmsi_vector_setup *setup = &function->vectors[next++];

			setup->known = vector.has_table;
			setup->table.address_lo = lower_32_bits(vector.table.address);
			setup->table.address_hi = upper_32_bits(vector.table.address);
			setup->table.data = vector.table.data;
		}
		if (next == first)
			return PVMSI_HARDWARE;
	}
	return PVMSI_SUCCESS;
}

/**
 * pvmsi_host_relearn() - follows what the host has changed; may sleep
 * @function: the function, which has vectors
 *
 * A host to which the guest has moved has table messages of its own. Other
 * changes are only noted.
 *
 * Return: how it ended; PVMSI_BUSY where the table messages are as before. After
 * success the caller takes them over, and calls pvmsi_host_restore().
 */
enum pvmsi_status pvmsi_host_relearn(struct pvmsi_function *function)
{
	struct pvmsi_state state;
	enum pvmsi_status status;

	status = pvmsi_host_query(function->address, &state);
	atomic64_inc(&function->counters.queries);
	if (status != PVMSI_SUCCESS)
		return status;
	function->mode = state.mode;
	function->reasons = state.reasons;
	function->generation = state.generation;
	if (!(state.reasons & PVMSI_REASON_MIGRATED))
		return PVMSI_BUSY;

	mutex_lock(&pvmsi_shared_lock);
	status = pvmsi_learn_vectors(function);
	mutex_unlock(&pvmsi_shared_lock);
	if (status != PVMSI_SUCCESS)
		atomic64_inc(&function->counters.errors);
	return status;
}

/**
 * pvmsi_host_restore() - has the table messages put back; may sleep
 * @function: the function, which has vectors
 *
 * A host to which the guest has moved waits for this before it makes the table
 * direct again (H-810).
 */
void pvmsi_host_restore(struct pvmsi_function *function)
{
	struct pvmsi_state state;
	enum pvmsi_status status;
	u64 begin;

	mutex_lock(&pvmsi_shared_lock);
	begin = pvmsi_begin();
	status = pvmsi_restore(&pvmsi_shared, function->address, &state);
	pvmsi_end(begin, function->address, PVMSI_CALL_RESTORE, 0, 0, status);
	mutex_unlock(&pvmsi_shared_lock);
	atomic64_inc(&function->counters.restores);
	if (status == PVMSI_SUCCESS) {
		function->mode = state.mode;
		function->reasons = state.reasons;
		function->generation = state.generation;
	} else {
		atomic64_inc(&function->counters.errors);
	}
}
