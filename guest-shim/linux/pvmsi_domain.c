// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The interrupt domain between the PCI core and the processors' vectors.
 *
 *	PCI-MSIX	the PCI core's, one for each function
 *	PV-MSI		this one: gives messages to the host
 *	vector, ITS	the architecture's: knows where interrupts go
 *
 * It asks the host for vectors when the PCI core has enabled MSI-X and is
 * about to allocate interrupts, and tells the host each message that the
 * architecture composes. Nothing is written to the vector table then: the host
 * has put its own messages there, and the PCI core gets these to remember, so
 * that what it writes back after a reset is what belongs there. Mask bits are
 * the PCI core's in both modes of the table.
 *
 * A function for which the host has granted nothing works through the same
 * domain with the ordinary table: messages are written as ever.
 */
#define pr_fmt(fmt) "pvmsi: " fmt

#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#ifdef CONFIG_X86
#include <asm/irqdomain.h>
#endif

#include "pvmsi.h"

/**
 * struct pvmsi_domain - the domain on top of one domain of the architecture
 * @list: of all of them
 * @base: what functions had before: the parent, and before 6.2 the PCI core's
 *	domain on top of it
 * @domain: the domain
 * @fwnode: its name, where it has one of its own
 * @ops: what the PCI core asks it
 * @top: before 6.2: the PCI core's domain for its functions
 * @info: of @top
 * @chip: of @top
 * @ordinary: the PCI core's
 * @msi_ops: of @top
 */
struct pvmsi_domain {
	struct list_head list;
	struct irq_domain *base;
	struct irq_domain *domain;
	struct fwnode_handle *fwnode;
#ifndef PVMSI_DEVICE_DOMAINS
	struct irq_domain *top;
	struct msi_domain_info info;
	struct irq_chip chip;
	struct irq_chip ordinary;
	struct msi_domain_ops msi_ops;
#else
	struct msi_parent_ops ops;
#endif
};

#ifdef PVMSI_LOCK_GUARDS
#define msi_lock_descs		__msi_lock_descs
#define msi_unlock_descs	__msi_unlock_descs
#endif

/*
 * Whether the PCI core has one domain for all functions, as before 6.2, and
 * not one for each. This module's domain is below it then, and comes with one
 * like it.
 */
#ifdef PVMSI_DEVICE_DOMAINS
static const bool pvmsi_shared_top;
#else
static const bool pvmsi_shared_top = true;
#endif

static LIST_HEAD(pvmsi_domains);
static DEFINE_MUTEX(pvmsi_domains_lock);

/*
 * Vectors of a function
 */

/* The vector of an interrupt in this domain; NULL: the table is ordinary. */
static struct pvmsi_vector_setup *pvmsi_setup_of(struct irq_data *data)
{
	struct pvmsi_function *function = irq_data_get_irq_chip_data(data);
	struct msi_desc *desc = irq_data_get_msi_desc(data);

	if (!function || !desc || !desc->pci.msi_attrib.is_msix ||
	    desc->msi_index >= function->granted)
		return NULL;
	return &function->vectors[desc->msi_index];
}

/* The architecture's message for an interrupt. */
static bool pvmsi_compose(struct irq_data *data, struct msi_msg *msg)
{
	memset(msg, 0, sizeof(*msg));
	for (data = data->parent_data; data; data = data->parent_data) {
		if (data->chip && data->chip->irq_compose_msi_msg) {
			data->chip->irq_compose_msi_msg(data, msg);
			return true;
		}
	}
	return false;
}

/* Gives the architecture's message to the host, unless it has it. */
static int pvmsi_tell(struct irq_data *data, struct pvmsi_vector_setup *setup)
{
	struct pvmsi_function *function = irq_data_get_irq_chip_data(data);
	struct msi_desc *desc = irq_data_get_msi_desc(data);
	struct pvmsi_message message;
	enum pvmsi_status status;
	struct msi_msg msg;

	if (!pvmsi_compose(data, &msg))
		return -ENXIO;
#ifdef CONFIG_X86
	/* The host would send it to another processor. */
	if (!(pvmsi_terms.features & PVMSI_FEATURE_EXT_DEST) &&
	    (msg.address_hi || msg.address_lo & 0xfe0))
		return -ERANGE;
#endif
	message.address = (u64)msg.address_hi << 32 | msg.address_lo;
	message.data = msg.data;
	if (setup->has_guest && !setup->doubt && setup->guest.address == message.address &&
	    setup->guest.data == message.data)
		return 0;
	status = pvmsi_host_update(function, desc->msi_index, &message);
	setup->doubt = status == PVMSI_HARDWARE;
	if (status != PVMSI_SUCCESS) {
		dev_warn_ratelimited(&function->pdev->dev,
				     "pvmsi: the host refuses where vector %u shall go: %s\n",
				     desc->msi_index, pvmsi_status_name(status));
		return -EIO;
	}
	setup->guest = message;
	setup->has_guest = true;
	pvmsi_dbg(function, "vector %u goes to %llx/%x\n", desc->msi_index,
		  message.address, message.data);
	return 0;
}

/*
 * The PCI core remembers what belongs into the table, to write it back after a
 * reset. Where the host did not say, it is there to be read.
 */
static void pvmsi_remember(struct msi_desc *desc, struct pvmsi_vector_setup *setup)
{
	void __iomem *entry = desc->pci.mask_base + desc->msi_index * PCI_MSIX_ENTRY_SIZE;

	if (!setup->known) {
		setup->table.address_lo = readl(entry + PCI_MSIX_ENTRY_LOWER_ADDR);
		setup->table.address_hi = readl(entry + PCI_MSIX_ENTRY_UPPER_ADDR);
		setup->table.data = readl(entry + PCI_MSIX_ENTRY_DATA);
	}
	desc->msg = setup->table;
	setup->desc = desc;
}

/* Why the host shall not be asked for vectors; NULL: it shall. */
static const char *pvmsi_obstacle(struct pci_dev *pdev)
{
#ifdef CONFIG_ARM64
	struct iommu_domain *domain = iommu_get_domain_for_dev(&pdev->dev);

	/* The message would name an address that only that IOMMU knows. */
	if (domain && domain->type != IOMMU_DOMAIN_IDENTITY)
		return "a virtual IOMMU translates its messages";
#endif
	return NULL;
}

/**
 * pvmsi_domain_forget() - the function has no vectors from the host
 * @function: the function, which has no interrupts
 */
void pvmsi_domain_forget(struct pvmsi_function *function)
{
	function->granted = 0;
	function->mode = PVMSI_TRAPPED;
	kvfree(function->vectors);
	function->vectors = NULL;
}

/*
 * The function is without vectors afterwards, whatever the host believes: its
 * answer could not be understood, or it does not take them back (G-703).
 */
static void pvmsi_start_over(struct pvmsi_function *function)
{
	u16 position = function->pdev->msix_cap + PCI_MSIX_FLAGS;
	u16 control;

	pci_read_config_word(function->pdev, position, &control);
	pci_write_config_word(function->pdev, position, control & ~PCI_MSIX_FLAGS_ENABLE);
	pci_write_config_word(function->pdev, position, control);
}

/*
 * Asks for vectors: MSI-X Enable and Function Mask are set, no message is
 * written yet, no lock is held but that of the function's descriptors. What
 * goes wrong leaves the function with the ordinary table.
 */
static void pvmsi_acquire(struct pvmsi_function *function)
{
	const char *obstacle = pvmsi_obstacle(function->pdev);
	struct msi_desc *desc;
	enum pvmsi_status status;
	unsigned int count = 0;

	pvmsi_domain_forget(function);
	if (obstacle) {
		dev_info_ratelimited(&function->pdev->dev, "pvmsi: left alone: %s\n", obstacle);
		return;
	}
	msi_for_each_desc(desc, &function->pdev->dev, MSI_DESC_ALL) {
		if (desc->msi_index < function->table_size)
			count = max_t(unsigned int, count, desc->msi_index + 1);
	}
	count = min_t(unsigned int, count, pvmsi_terms.vectors);
	if (!count)
		return;
	function->vectors = kvcalloc(count, sizeof(*function->vectors), GFP_KERNEL);
	if (!function->vectors)
		return;

	status = pvmsi_host_configure(function, count);
	if (status != PVMSI_SUCCESS) {
		dev_warn_ratelimited(&function->pdev->dev,
				     "pvmsi: no vectors from the host: %s (%s); goes on with the ordinary table\n",
				     pvmsi_status_name(status), pvmsi_status_remedy(status));
		if (status == PVMSI_BUSY || status == PVMSI_HARDWARE)
			pvmsi_start_over(function);
		pvmsi_domain_forget(function);
		return;
	}
	/* A managed vector without a processor is never written, but restored after a reset. */
	msi_for_each_desc(desc, &function->pdev->dev, MSI_DESC_ALL)
		if (desc->msi_index < function->granted)
			pvmsi_remember(desc, &function->vectors[desc->msi_index]);
	pvmsi_dbg(function, "%u of %u vectors, table %s\n", function->granted, count,
		  pvmsi_mode_name(function->mode));
}

/*
 * The domain
 */

/* Moves at once: the architecture's, and where it sends interrupts to then. */
static int pvmsi_set_affinity(struct irq_data *data, const struct cpumask *mask, bool force)
{
	struct pvmsi_vector_setup *setup = pvmsi_setup_of(data);
	int ret = irq_chip_set_affinity_parent(data, mask, force);

	/* It waits for an interrupt that does not come where the host has refused the move. */
	if (ret == -EBUSY && setup)
		pvmsi_tell(data, setup);
	if (ret < 0 || ret == IRQ_SET_MASK_OK_DONE || !setup)
		return ret;
	ret = pvmsi_tell(data, setup);
	return ret ? ret : IRQ_SET_MASK_OK_DONE;
}

static struct irq_chip pvmsi_chip = {
	.name			= "PV-MSI",
	.irq_mask		= irq_chip_mask_parent,
	.irq_unmask		= irq_chip_unmask_parent,
	.irq_ack		= irq_chip_ack_parent,
	.irq_eoi		= irq_chip_eoi_parent,
	.irq_retrigger		= irq_chip_retrigger_hierarchy,
	.irq_set_affinity	= pvmsi_set_affinity,
	.irq_set_vcpu_affinity	= irq_chip_set_vcpu_affinity_parent,
};

static int pvmsi_domain_alloc(struct irq_domain *domain, unsigned int virq,
			      unsigned int count, void *arg)
{
	msi_alloc_info_t *info = arg;
	struct msi_desc *desc = info->desc;
	struct pvmsi_function *function;
	irq_hw_number_t hwirq;
	unsigned int i;
	int ret;

	function = pvmsi_find_function(desc->dev);
	if (!function)
		return -ENODEV;
	/* A short grant: the PCI core tries again with the vectors so far. */
	if (desc->pci.msi_attrib.is_msix && !desc->pci.msi_attrib.is_virtual &&
	    function->granted && desc->msi_index >= function->granted)
		return -ENOSPC;

	ret = irq_domain_alloc_irqs_parent(domain, virq, count, arg);
	if (ret < 0)
		return ret;
	hwirq = (irq_hw_number_t)function->number << 12 | desc->msi_index;
	for (i = 0; i < count; i++) {
		irq_domain_set_hwirq_and_chip(domain, virq + i, hwirq + i, &pvmsi_chip, function);
#ifndef PVMSI_MOVE_DEFERRED
		if (desc->pci.msi_attrib.is_msix && function->granted)
			irq_set_status_flags(virq + i, IRQ_MOVE_PCNTXT);
#endif
	}
	function->live += count;
	return 0;
}

static void pvmsi_domain_free(struct irq_domain *domain, unsigned int virq, unsigned int count)
{
	struct irq_data *data = irq_domain_get_irq_data(domain, virq);
	struct pvmsi_function *function = irq_data_get_irq_chip_data(data);
	struct pvmsi_vector_setup *setup = pvmsi_setup_of(data);

	if (setup)
		setup->desc = NULL;
	irq_domain_free_irqs_common(domain, virq, count);
	function->live -= count;
	/* The host takes them back with MSI-X Enable (H-530). */
	if (!function->live)
		function->granted = 0;
}

static int pvmsi_domain_activate(struct irq_domain *domain, struct irq_data *data, bool reserve)
{
	struct pvmsi_vector_setup *setup = pvmsi_setup_of(data);

	/* There is no message yet: it comes with the driver's request. */
	if (!setup || reserve)
		return 0;
	return pvmsi_tell(data, setup);
}

static void pvmsi_domain_deactivate(struct irq_domain *domain, struct irq_data *data)
{
	struct pvmsi_vector_setup *setup = pvmsi_setup_of(data);

	/*
	 * What the architecture maps next is another event (G-622). It unmaps this
	 * one after us. A trapped table is masked by now, so the vector has parted
	 * from it; nothing parts a single vector of a direct one.
	 */
	if (setup)
		setup->has_guest = false;
}

static const struct irq_domain_ops pvmsi_domain_ops = {
	.alloc		= pvmsi_domain_alloc,
	.free		= pvmsi_domain_free,
	.activate	= pvmsi_domain_activate,
	.deactivate	= pvmsi_domain_deactivate,
};

/*
 * Callbacks in place of the PCI core's, on top of the domain
 */

static const struct irq_chip *pvmsi_ordinary(struct irq_data *data)
{
#ifndef PVMSI_DEVICE_DOMAINS
	struct msi_domain_info *info = data->domain->host_data;

	return &container_of(info, struct pvmsi_domain, info)->ordinary;
#else
	struct pvmsi_function *function = irq_data_get_irq_chip_data(data->parent_data);

	return &function->ordinary;
#endif
}

/* The table is the host's: what the core remembers has been seen to. */
static void pvmsi_top_write_msg(struct irq_data *data, struct msi_msg *msg)
{
	if (!pvmsi_setup_of(data->parent_data))
		pvmsi_ordinary(data)->irq_write_msi_msg(data, msg);
}

static int pvmsi_top_set_affinity(struct irq_data *data, const struct cpumask *mask, bool force)
{
	struct msi_msg msg;
	int ret;

	if (pvmsi_shared_top && !pvmsi_setup_of(data->parent_data))
		return pvmsi_ordinary(data)->irq_set_affinity(data, mask, force);

	ret = irq_chip_set_affinity_parent(data, mask, force);
	if (ret >= 0 && ret != IRQ_SET_MASK_OK_DONE && pvmsi_compose(data->parent_data, &msg))
		pvmsi_top_write_msg(data, &msg);
	return ret;
}

/* An event from before the vectors were assigned is delivered once (G-445). */
static void pvmsi_deliver(struct irq_data *data)
{
	struct pvmsi_vector_setup *setup = pvmsi_setup_of(data->parent_data);

	if (setup && unlikely(setup->pending)) {
		setup->pending = false;
		irq_chip_retrigger_hierarchy(data);
	}
}

static void pvmsi_top_unmask(struct irq_data *data)
{
	pvmsi_ordinary(data)->irq_unmask(data);
	pvmsi_deliver(data);
}

#ifdef PVMSI_DEVICE_DOMAINS
static unsigned int pvmsi_top_startup(struct irq_data *data)
{
	unsigned int ret = pvmsi_ordinary(data)->irq_startup(data);

	pvmsi_deliver(data);
	return ret;
}

static void pvmsi_set_callbacks(struct pvmsi_function *function, struct irq_chip *chip)
{
	if (!function->ordinary.name)
		function->ordinary = *chip;
	*chip = function->ordinary;
	if (!function->granted)
		return;
	chip->irq_write_msi_msg = pvmsi_top_write_msg;
	chip->irq_set_affinity = pvmsi_top_set_affinity;
	chip->irq_unmask = pvmsi_top_unmask;
	if (chip->irq_startup)
		chip->irq_startup = pvmsi_top_startup;
#ifdef PVMSI_MOVE_DEFERRED
	chip->flags &= ~IRQCHIP_MOVE_DEFERRED;
#endif
}

/* The first of an allocation's descriptors: now it is known how many there are. */
static void pvmsi_prepare_desc(struct irq_domain *domain, msi_alloc_info_t *arg,
			       struct msi_desc *desc)
{
	struct pvmsi_function *function = pvmsi_find_function(desc->dev);
	struct msi_domain_info *info = domain->host_data;

	if (function->prepare_desc)
		function->prepare_desc(domain, arg, desc);
	if (function->live)
		return;
	/* None of them has an interrupt yet, nor the one before a failure. */
	if (msi_first_desc(desc->dev, MSI_DESC_ALL) != desc)
		return;
	pvmsi_acquire(function);
	pvmsi_set_callbacks(function, info->chip);
}

static bool pvmsi_init_dev_msi_info(struct device *dev, struct irq_domain *domain,
				    struct irq_domain *real_parent, struct msi_domain_info *info)
{
	struct pvmsi_function *function = pvmsi_find_function(dev);
	struct irq_domain *parent = domain->parent;

	if (!function)
		return false;
	/* The parent accepts no other than itself on top of it. */
	if (!parent->msi_parent_ops->init_dev_msi_info(dev, parent, parent, info))
		return false;
	info->flags &= ~MSI_FLAG_PCI_MSIX_ALLOC_DYN;
	if (info->bus_token != DOMAIN_BUS_PCI_DEVICE_MSIX) {
		/* Nothing was allocated of what the host has once granted. */
		pvmsi_domain_forget(function);
		return true;
	}
	function->ordinary.name = NULL;
	function->prepare_desc = info->ops->prepare_desc;
	info->ops->prepare_desc = pvmsi_prepare_desc;
	return true;
}
#endif

#ifndef PVMSI_DEVICE_DOMAINS
static int pvmsi_top_prepare(struct irq_domain *domain, struct device *dev, int count,
			     msi_alloc_info_t *arg)
{
	struct msi_domain_info *info = domain->host_data;
	struct pvmsi_domain *own = container_of(info, struct pvmsi_domain, info);
	struct msi_domain_info *ordinary = own->base->host_data;
	struct pvmsi_function *function = pvmsi_find_function(dev);
	int ret;

	if (!function)
		return -ENODEV;
	ret = ordinary->ops->msi_prepare(domain, dev, count, arg);
	if (ret)
		return ret;
	if (to_pci_dev(dev)->msix_enabled)
		pvmsi_acquire(function);
	else
		pvmsi_domain_forget(function);
	return 0;
}
#endif

/*
 * Functions come and go
 */

#ifdef CONFIG_X86
/* Why a function with this domain is left alone; NULL: it is not. */
static const char *pvmsi_unsuitable(struct irq_domain *base)
{
	struct irq_domain *parent = pvmsi_shared_top ? base->parent : base;

	if (parent == x86_vector_domain)
		return NULL;
	return "a virtual IOMMU, or another driver, remaps its interrupts";
}
#endif

#ifdef CONFIG_ARM64
static const char *pvmsi_unsuitable(struct irq_domain *base)
{
#ifndef PVMSI_DEVICE_DOMAINS
	struct msi_domain_info *info = base->host_data;

	if (base->bus_token == DOMAIN_BUS_PCI_MSI && base->parent && info && info->chip &&
	    info->chip->name && !strcmp(info->chip->name, "ITS-MSI"))
		return NULL;
#else
	if (irq_domain_is_msi_parent(base) && base->msi_parent_ops->prefix &&
	    !strcmp(base->msi_parent_ops->prefix, "ITS-"))
		return NULL;
#endif
	return "its interrupts do not come through a GICv3 ITS";
}
#endif

static void pvmsi_domain_destroy(struct pvmsi_domain *own)
{
#ifndef PVMSI_DEVICE_DOMAINS
	if (own->top)
		irq_domain_remove(own->top);
#endif
	if (own->domain)
		irq_domain_remove(own->domain);
	if (own->fwnode)
		irq_domain_free_fwnode(own->fwnode);
	kfree(own);
}

static struct pvmsi_domain *pvmsi_domain_create(struct irq_domain *base)
{
	struct irq_domain *parent = pvmsi_shared_top ? base->parent : base;
	struct fwnode_handle *fwnode;
	struct pvmsi_domain *own;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return NULL;
	own->base = base;
	if (IS_ENABLED(CONFIG_X86)) {
		own->fwnode = irq_domain_alloc_named_fwnode("PV-MSI");
		fwnode = own->fwnode;
	} else {
		/* The ITS looks at the node and the data of its child. */
		fwnode = parent->fwnode;
	}
	if (!fwnode)
		goto destroy;
	own->domain = irq_domain_create_hierarchy(parent, 0, 0, fwnode, &pvmsi_domain_ops,
						  parent->host_data);
	if (!own->domain)
		goto destroy;
	/* Nobody looks for an interrupt controller under this token. */
	irq_domain_update_bus_token(own->domain, DOMAIN_BUS_VMD_MSI);
#ifndef PVMSI_DEVICE_DOMAINS
	own->info = *(struct msi_domain_info *)base->host_data;
	own->ordinary = *own->info.chip;
	own->chip = own->ordinary;
	own->chip.name = "PV-PCI-MSI";
	own->chip.irq_write_msi_msg = pvmsi_top_write_msg;
	own->chip.irq_set_affinity = pvmsi_top_set_affinity;
	own->chip.irq_unmask = pvmsi_top_unmask;
	own->msi_ops = *own->info.ops;
	own->msi_ops.msi_prepare = pvmsi_top_prepare;
	own->info.chip = &own->chip;
	own->info.ops = &own->msi_ops;
	own->top = pci_msi_create_irq_domain(fwnode, &own->info, own->domain);
	if (!own->top)
		goto destroy;
	/* As a PCI domain to the core, and not to who looks for the default one. */
	irq_domain_update_bus_token(own->top, DOMAIN_BUS_VMD_MSI);
#else
	own->ops = *parent->msi_parent_ops;
	own->ops.supported_flags &= ~MSI_FLAG_PCI_MSIX_ALLOC_DYN;
	own->ops.bus_select_mask = 0;
	own->ops.prefix = IS_ENABLED(CONFIG_X86) ? "PV-" : "PV-ITS-";
	own->ops.init_dev_msi_info = pvmsi_init_dev_msi_info;
	own->domain->msi_parent_ops = &own->ops;
	own->domain->flags |= IRQ_DOMAIN_FLAG_MSI_PARENT;
#endif
	list_add(&own->list, &pvmsi_domains);
	return own;

destroy:
	pvmsi_domain_destroy(own);
	return NULL;
}

static struct pvmsi_domain *pvmsi_domain_for(struct irq_domain *base)
{
	struct pvmsi_domain *own;

	list_for_each_entry(own, &pvmsi_domains, list)
		if (own->base == base)
			return own;
	return pvmsi_domain_create(base);
}

/* What functions get in place of @base. */
static struct irq_domain *pvmsi_domain_above(struct pvmsi_domain *own)
{
#ifndef PVMSI_DEVICE_DOMAINS
	return own->top;
#else
	return own->domain;
#endif
}

/**
 * pvmsi_domain_refuses() - why a function cannot get the domain
 * @function: the function
 *
 * Return: NULL, or why it is left where it is, in words.
 */
const char *pvmsi_domain_refuses(struct pvmsi_function *function)
{
	struct irq_domain *base = dev_get_msi_domain(&function->pdev->dev);

	return base ? pvmsi_unsuitable(base) : "it has no interrupt domain";
}

/**
 * pvmsi_domain_enter() - puts the domain between a function and its own
 * @function: the function, which no driver uses; its device is locked
 *
 * Return: NULL, or why it was left where it is, in words.
 */
const char *pvmsi_domain_enter(struct pvmsi_function *function)
{
	struct device *dev = &function->pdev->dev;
	struct irq_domain *base = dev_get_msi_domain(dev);
	const char *reason = pvmsi_domain_refuses(function);
	struct pvmsi_domain *own;

	if (reason)
		return reason;
	if (dev->msi.data)
		return "it has interrupts without a driver";

	mutex_lock(&pvmsi_domains_lock);
	own = pvmsi_domain_for(base);
	mutex_unlock(&pvmsi_domains_lock);
	if (!own)
		return "memory is short";
	function->domain = own;
	dev_set_msi_domain(dev, pvmsi_domain_above(own));
	return NULL;
}

/**
 * pvmsi_domain_leave() - gives a function back the domain that it had
 * @function: the function, which no driver uses; its device is locked, or gone
 *
 * Where somebody else has put another domain on top meanwhile, that one stays.
 */
void pvmsi_domain_leave(struct pvmsi_function *function)
{
	struct device *dev = &function->pdev->dev;

	if (function->domain && dev_get_msi_domain(dev) == pvmsi_domain_above(function->domain))
		dev_set_msi_domain(dev, function->domain->base);
	function->domain = NULL;
}

/**
 * pvmsi_domains_remove() - removes the domains, which no function has any more
 */
void pvmsi_domains_remove(void)
{
	struct pvmsi_domain *own, *next;

	list_for_each_entry_safe(own, next, &pvmsi_domains, list) {
		list_del(&own->list);
		pvmsi_domain_destroy(own);
	}
}

/*
 * Sleep and changes of the host
 */

/* Delivers what waits, unless the driver has the vector masked: then unmasking does. */
static void pvmsi_deliver_now(struct pvmsi_vector_setup *setup)
{
	struct irq_data *data = setup->desc->irq ? irq_get_irq_data(setup->desc->irq) : NULL;

	if (data && setup->pending && irqd_is_started(data) && !irqd_irq_masked(data)) {
		setup->pending = false;
		irq_chip_retrigger_hierarchy(data);
	}
}

/**
 * pvmsi_domain_resume() - sees after sleep that the function's vectors work
 * @function: the function
 * @attempts: how often hosts that are busy may still be asked; counts down
 *
 * Before devices resume, so that the PCI core writes the right messages back:
 * those of the host, or the guest's own where the host has none any more.
 */
void pvmsi_domain_resume(struct pvmsi_function *function, unsigned int *attempts)
{
	enum pvmsi_status status;
	u16 vector, granted = function->granted;

	/* Without MSI-X the vectors are gone, and so are their descriptors. */
	if (!granted || !function->pdev->msix_enabled)
		return;
	status = pvmsi_host_resume(function, attempts);
	if (status != PVMSI_SUCCESS) {
		pci_warn(function->pdev,
			 "pvmsi: no vectors from the host after sleep: %s; goes on with the ordinary table\n",
			 pvmsi_status_name(status));
		function->granted = 0;
		function->mode = PVMSI_TRAPPED;
	}
	for (vector = 0; vector < granted; vector++) {
		struct pvmsi_vector_setup *setup = &function->vectors[vector];

		if (!setup->desc)
			continue;
		if (status == PVMSI_SUCCESS) {
			setup->desc->msg = setup->table;
		} else if (setup->has_guest) {
			setup->desc->msg.address_lo = lower_32_bits(setup->guest.address);
			setup->desc->msg.address_hi = upper_32_bits(setup->guest.address);
			setup->desc->msg.data = setup->guest.data;
		} else {
			memset(&setup->desc->msg, 0, sizeof(setup->desc->msg));
		}
		pvmsi_deliver_now(setup);
	}
}

/**
 * pvmsi_domain_refresh() - follows what the host has changed
 * @function: the function; its device is locked
 *
 * After the guest has moved, the PCI core remembers the new host's table
 * messages before that host makes the table direct.
 */
void pvmsi_domain_refresh(struct pvmsi_function *function)
{
	struct device *dev = &function->pdev->dev;
	struct msi_desc *desc;

	if (!dev->msi.data)
		return;
	msi_lock_descs(dev);
	if (function->granted && function->pdev->msix_enabled &&
	    pvmsi_host_relearn(function) == PVMSI_SUCCESS) {
		msi_for_each_desc(desc, dev, MSI_DESC_ALL)
			if (desc->msi_index < function->granted)
				pvmsi_remember(desc, &function->vectors[desc->msi_index]);
		pvmsi_host_restore(function);
	}
	msi_unlock_descs(dev);
}
