/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The Linux guest module of PV-MSI: what its files share.
 *
 * pvmsi_main.c	parameters, which functions take part, coming and going
 * pvmsi_domain.c	the interrupt domain between PCI core and processors
 * pvmsi_host.c	discovery, doorbell, call buffers, calls
 * pvmsi_debugfs.c	what an administrator can look at
 * pvmsi_wire.c	the wire format, free of Linux
 */
#ifndef PVMSI_H
#define PVMSI_H

#include <linux/atomic.h>
#include <linux/irq.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/msi.h>
#include <linux/pci.h>
#include <linux/types.h>

#include "pvmsi_wire.h"

struct pvmsi_domain;

/**
 * struct pvmsi_vector_setup - a vector that the host has assigned
 * @desc: the PCI core's descriptor, while it exists
 * @table: the table message: all that is ever written to the entry
 * @known: whether the host has told @table
 * @guest: the guest message that the host has
 * @has_guest: whether it has one
 * @doubt: whether the host may have another one after all
 * @pending: an event that is to be delivered when the vector starts
 */
struct pvmsi_vector_setup {
	struct msi_desc *desc;
	struct msi_msg table;
	bool known;
	struct pvmsi_message guest;
	bool has_guest;
	bool doubt;
	bool pending;
};

/**
 * struct pvmsi_counters - what was done for a function
 * @configures: vectors asked for
 * @busy: repetitions, since the host was not ready
 * @updates: messages given
 * @restores: table messages put back
 * @releases: vectors given back by a call
 * @queries: questions what the host has changed; those of debugfs are left out
 * @errors: calls that the host has refused
 */
struct pvmsi_counters {
	atomic64_t configures;
	atomic64_t busy;
	atomic64_t updates;
	atomic64_t restores;
	atomic64_t releases;
	atomic64_t queries;
	atomic64_t errors;
};

/**
 * enum pvmsi_flag - what is set and cleared without a lock in common
 * @PVMSI_USED: a driver uses the domain: the module must stay
 * @PVMSI_UNBOUND: a driver may have gone: @PVMSI_USED shall be looked at
 * @PVMSI_STALE: the host has changed something: it shall be asked what
 */
enum pvmsi_flag {
	PVMSI_USED,
	PVMSI_UNBOUND,
	PVMSI_STALE,
};

/**
 * struct pvmsi_function - a PCI function that the host serves
 * @list: of all of them: RCU, and pvmsi_lock to change it
 * @references: the list's, and those of who looks at it without locks
 * @pdev: the function; a reference is held
 * @address: how the host calls it
 * @number: tells its interrupts from those of others within a domain
 * @table_size: entries of its table
 * @limit: most vectors that it can be granted
 * @domain: the domain that it was given to; NULL: left where it was
 * @reason: why it was left there, in words; NULL: it was not
 * @flags: bits of enum pvmsi_flag
 * @granted: vectors 0 to @granted - 1 are assigned; 0: the ordinary table
 * @live: interrupts that exist in @domain
 * @vectors: for each granted vector; NULL: none
 * @mode: as the last answer said
 * @reasons: likewise
 * @generation: likewise
 * @failure: how the last configure has failed; PVMSI_SUCCESS: it did not
 * @ordinary: the PCI core's callbacks; its name is NULL while they are unknown
 * @prepare_desc: what the PCI core does to a new descriptor
 * @counters: what was done
 * @file: in debugfs
 */
struct pvmsi_function {
	struct list_head list;
	struct kref references;
	struct pci_dev *pdev;
	u32 address;
	unsigned int number;
	u16 table_size;
	u16 limit;
	struct pvmsi_domain *domain;
	const char *reason;
	unsigned long flags;
	u16 granted;
	unsigned int live;
	struct pvmsi_vector_setup *vectors;
	enum pvmsi_mode mode;
	u32 reasons;
	u32 generation;
	enum pvmsi_status failure;
#ifdef PVMSI_DEVICE_DOMAINS
	struct irq_chip ordinary;
	void (*prepare_desc)(struct irq_domain *domain, msi_alloc_info_t *arg,
			     struct msi_desc *desc);
#endif
	struct pvmsi_counters counters;
	struct dentry *file;
};

/* pvmsi_main.c */
extern bool pvmsi_debug;

struct pvmsi_function *pvmsi_find_function(struct device *dev);
void pvmsi_look(void);

/* Says what happens, where the parameter "debug" asks for it. */
#define pvmsi_dbg(function, format, ...) do {				\
	if (pvmsi_debug)						\
		pci_info((function)->pdev, "pvmsi: " format, ##__VA_ARGS__); \
} while (0)

/* pvmsi_domain.c */
const char *pvmsi_domain_refuses(struct pvmsi_function *function);
const char *pvmsi_domain_enter(struct pvmsi_function *function);
void pvmsi_domain_leave(struct pvmsi_function *function);
void pvmsi_domain_forget(struct pvmsi_function *function);
void pvmsi_domain_resume(struct pvmsi_function *function, unsigned int *attempts);
void pvmsi_domain_refresh(struct pvmsi_function *function);
void pvmsi_domains_remove(void);

/* pvmsi_host.c */
extern struct pvmsi_service pvmsi_service;
extern struct pvmsi_terms pvmsi_terms;

int pvmsi_host_open(void);
void pvmsi_host_close(void);
const char *pvmsi_host_doorbell(void);
enum pvmsi_status pvmsi_host_query(u32 address, struct pvmsi_state *state);
enum pvmsi_status pvmsi_host_configure(struct pvmsi_function *function, u16 count);
enum pvmsi_status pvmsi_host_update(struct pvmsi_function *function, u16 vector,
				    const struct pvmsi_message *message);
enum pvmsi_status pvmsi_host_resume(struct pvmsi_function *function, unsigned int *attempts);
enum pvmsi_status pvmsi_host_relearn(struct pvmsi_function *function);
void pvmsi_host_restore(struct pvmsi_function *function);

/* pvmsi_debugfs.c */
void pvmsi_debugfs_open(void);
void pvmsi_debugfs_close(void);
void pvmsi_debugfs_add(struct pvmsi_function *function);
void pvmsi_debugfs_remove(struct pvmsi_function *function);

#endif /* PVMSI_H */
