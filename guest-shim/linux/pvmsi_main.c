// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Parameters, which functions take part, and how they come and go.
 *
 * A function can only change its interrupt domain while it has no interrupts,
 * which is while no driver is bound. So it gets this module's domain when it
 * appears, or just before a driver is bound, and keeps it until the module
 * goes. The module stays loaded while a driver uses the domain.
 */
#define pr_fmt(fmt) "pvmsi: " fmt

#include <linux/device.h>
#include <linux/kernel.h>
#include <linux/kref.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/syscore_ops.h>
#include <linux/workqueue.h>

#include "pvmsi.h"

#define PVMSI_LISTED_MAX	64

/* How often hosts that are busy are asked again when the machine wakes up. */
#define PVMSI_RESUME_ATTEMPTS	100000

static bool pvmsi_off;
module_param_named(off, pvmsi_off, bool, 0444);
MODULE_PARM_DESC(off, "Do nothing: every function is left alone (default: N)");

static char *pvmsi_listed[PVMSI_LISTED_MAX];
static unsigned int pvmsi_listed_count;
module_param_array_named(functions, pvmsi_listed, charp, &pvmsi_listed_count, 0444);
MODULE_PARM_DESC(functions,
		 "Take only these functions, as 0000:01:00.0,0000:02:00.0 (default: all that the host serves)");

static bool pvmsi_rebind;
module_param_named(rebind, pvmsi_rebind, bool, 0444);
MODULE_PARM_DESC(rebind,
		 "Unbind and bind the drivers of functions in use, so that they move over at once (default: N)");

bool pvmsi_debug;
module_param_named(debug, pvmsi_debug, bool, 0644);
MODULE_PARM_DESC(debug, "Log what is asked of the host for each function (default: N)");

static LIST_HEAD(pvmsi_functions);
static DEFINE_MUTEX(pvmsi_lock);
static struct workqueue_struct *pvmsi_queue;
static unsigned int pvmsi_next_number;
static bool pvmsi_serving;

/* With rcu_read_lock(). */
static struct pvmsi_function *pvmsi_search(struct device *dev)
{
	struct pvmsi_function *function;

	list_for_each_entry_rcu(function, &pvmsi_functions, list)
		if (&function->pdev->dev == dev)
			return function;
	return NULL;
}

/**
 * pvmsi_find_function() - the function of a device
 * @dev: the device
 *
 * Return: the function, which stays while the device has interrupts or its
 * driver is being bound or unbound; NULL where the host does not serve it.
 */
struct pvmsi_function *pvmsi_find_function(struct device *dev)
{
	struct pvmsi_function *function;

	rcu_read_lock();
	function = pvmsi_search(dev);
	rcu_read_unlock();
	return function;
}

/* As pvmsi_find_function(); it stays until pvmsi_put_function(). */
static struct pvmsi_function *pvmsi_get_function(struct device *dev)
{
	struct pvmsi_function *function;

	rcu_read_lock();
	function = pvmsi_search(dev);
	if (function && !kref_get_unless_zero(&function->references))
		function = NULL;
	rcu_read_unlock();
	return function;
}

static void pvmsi_free_function(struct kref *references)
{
	struct pvmsi_function *function =
		container_of(references, struct pvmsi_function, references);

	synchronize_rcu();
	pvmsi_domain_forget(function);
	pci_dev_put(function->pdev);
	kfree(function);
}

static void pvmsi_put_function(struct pvmsi_function *function)
{
	kref_put(&function->references, pvmsi_free_function);
}

/* Keeps the module while a driver uses the domain. False: the module is going. */
static bool pvmsi_hold(struct pvmsi_function *function)
{
	if (test_bit(PVMSI_USED, &function->flags))
		return true;
	if (!try_module_get(THIS_MODULE))
		return false;
	set_bit(PVMSI_USED, &function->flags);
	return true;
}

/* Only from the notifier, or where the module waits for the end of it. */
static void pvmsi_drop(struct pvmsi_function *function)
{
	if (test_and_clear_bit(PVMSI_USED, &function->flags))
		module_put(THIS_MODULE);
}

/*
 * What is to be looked at later, when locks can be taken
 */

static struct pvmsi_function *pvmsi_next_to_look_at(void)
{
	struct pvmsi_function *function, *found = NULL;

	mutex_lock(&pvmsi_lock);
	list_for_each_entry(function, &pvmsi_functions, list) {
		if (test_bit(PVMSI_UNBOUND, &function->flags) ||
		    test_bit(PVMSI_STALE, &function->flags)) {
			found = function;
			kref_get(&found->references);
			break;
		}
	}
	mutex_unlock(&pvmsi_lock);
	return found;
}

static void pvmsi_look_work(struct work_struct *work)
{
	struct pvmsi_function *function;

	while ((function = pvmsi_next_to_look_at())) {
		struct device *dev = &function->pdev->dev;

		/* Waits for the end of a probe that has failed; nobody unbinds meanwhile. */
		device_lock(dev);
		if (test_and_clear_bit(PVMSI_UNBOUND, &function->flags) && !dev->driver)
			pvmsi_drop(function);
		if (test_and_clear_bit(PVMSI_STALE, &function->flags))
			pvmsi_domain_refresh(function);
		device_unlock(dev);
		pvmsi_put_function(function);
	}
}

static DECLARE_WORK(pvmsi_look_later, pvmsi_look_work);

/**
 * pvmsi_look() - something about a function is to be looked at soon
 *
 * In any context but NMI.
 */
void pvmsi_look(void)
{
	queue_work(pvmsi_queue, &pvmsi_look_later);
}

/*
 * Functions
 */

static bool pvmsi_wanted(struct pci_dev *pdev)
{
	unsigned int i;

	if (!pvmsi_listed_count)
		return true;
	for (i = 0; i < pvmsi_listed_count; i++)
		if (!strcmp(pvmsi_listed[i], pci_name(pdev)))
			return true;
	return false;
}

static bool pvmsi_ask(struct pci_dev *pdev, u32 address, struct pvmsi_state *state)
{
	enum pvmsi_status status = pvmsi_host_query(address, state);

	switch (status) {
	case PVMSI_SUCCESS:
		break;
	case PVMSI_NO_SUCH_FUNCTION:
	case PVMSI_NOT_SUPPORTED:
	case PVMSI_DENIED:
		if (pvmsi_debug)
			pci_info(pdev, "pvmsi: not served by the host: %s\n",
				 pvmsi_status_name(status));
		return false;
	default:
		pci_warn(pdev, "pvmsi: left alone: the host says: %s (%s)\n",
			 pvmsi_status_name(status), pvmsi_status_remedy(status));
		return false;
	}
	if (!state->msix_vectors) {
		pci_info(pdev, "pvmsi: left alone: the host serves no MSI-X of it\n");
		return false;
	}
	return true;
}

/* With the device's lock. */
static void pvmsi_enter(struct pvmsi_function *function)
{
	struct pci_dev *pdev = function->pdev;
	const char *before = function->reason;

	if (function->domain || !pvmsi_serving)
		return;
	function->reason = pvmsi_domain_enter(function);
	if (function->reason && function->reason != before)
		pci_info(pdev, "pvmsi: left alone: %s\n", function->reason);
	if (!function->reason)
		pci_info(pdev, "pvmsi: its interrupts go through the host's PV-MSI service, up to %u vectors\n",
			 function->limit);
}

static void pvmsi_add(struct pci_dev *pdev)
{
	struct pvmsi_function *function;
	struct pvmsi_state state;
	u32 address;
	int size = pci_msix_vec_count(pdev);

	address = pvmsi_function(pci_domain_nr(pdev->bus), pdev->bus->number, pdev->devfn);
	if (size <= 0 || pci_domain_nr(pdev->bus) > U16_MAX || !pvmsi_wanted(pdev) ||
	    !pvmsi_ask(pdev, address, &state))
		return;

	mutex_lock(&pvmsi_lock);
	if (!pvmsi_serving || pvmsi_find_function(&pdev->dev))
		goto unlock;
	function = kzalloc(sizeof(*function), GFP_KERNEL);
	if (!function)
		goto unlock;
	function->pdev = pci_dev_get(pdev);
	function->address = address;
	function->number = pvmsi_next_number++;
	function->table_size = size;
	function->limit = min(state.msix_vectors, pvmsi_terms.vectors);
	function->mode = state.mode;
	function->reasons = state.reasons;
	function->generation = state.generation;
	kref_init(&function->references);
	list_add_tail_rcu(&function->list, &pvmsi_functions);
	pvmsi_debugfs_add(function);
	kref_get(&function->references);
	mutex_unlock(&pvmsi_lock);

	/* Not under pvmsi_lock: who makes virtual functions holds that of the physical one. */
	device_lock(&pdev->dev);
	if (!pdev->dev.driver) {
		pvmsi_enter(function);
	} else if (!function->domain) {
		function->reason = "a driver was bound before this module was loaded";
		pci_info(pdev, "pvmsi: in use by %s, which keeps its interrupts as they are; to move it over, unbind and bind it, or load the module with rebind=1\n",
			 pdev->dev.driver->name);
	}
	device_unlock(&pdev->dev);
	pvmsi_put_function(function);
	return;

unlock:
	mutex_unlock(&pvmsi_lock);
}

static void pvmsi_removed(struct device *dev)
{
	struct pvmsi_function *function;

	mutex_lock(&pvmsi_lock);
	function = pvmsi_find_function(dev);
	if (function) {
		pvmsi_domain_leave(function);
		pvmsi_drop(function);
		list_del_rcu(&function->list);
		pvmsi_debugfs_remove(function);
		pvmsi_put_function(function);
	}
	mutex_unlock(&pvmsi_lock);
}

/* From the beginning of a probe on: the driver allocates when it likes. */
static void pvmsi_bind(struct pvmsi_function *function)
{
	pvmsi_enter(function);
	if (function->domain && !pvmsi_hold(function))
		pvmsi_domain_leave(function);
}

static int pvmsi_notify(struct notifier_block *block, unsigned long event, void *data)
{
	struct pvmsi_function *function;
	struct device *dev = data;

	switch (event) {
	case BUS_NOTIFY_ADD_DEVICE:
		pvmsi_add(to_pci_dev(dev));
		break;
	case BUS_NOTIFY_REMOVED_DEVICE:
		pvmsi_removed(dev);
		break;
	case BUS_NOTIFY_BIND_DRIVER:
		function = pvmsi_find_function(dev);
		if (function)
			pvmsi_bind(function);
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
		function = pvmsi_find_function(dev);
		if (function)
			pvmsi_drop(function);
		break;
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
		/* What the driver has allocated is freed after this. */
		function = pvmsi_find_function(dev);
		if (function && test_bit(PVMSI_USED, &function->flags)) {
			set_bit(PVMSI_UNBOUND, &function->flags);
			pvmsi_look();
		}
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block pvmsi_notifier = {
	.notifier_call = pvmsi_notify,
};

/* A name that is misspelt would go unnoticed. */
static void pvmsi_check_listed(void)
{
	unsigned int i;

	for (i = 0; i < pvmsi_listed_count; i++) {
		struct pci_dev *pdev = NULL;

		for_each_pci_dev(pdev)
			if (!strcmp(pvmsi_listed[i], pci_name(pdev)))
				break;
		if (!pdev)
			pr_warn("parameter functions: there is no %s now; names are as 0000:01:00.0\n",
				pvmsi_listed[i]);
		pci_dev_put(pdev);
	}
}

static void pvmsi_bind_again(struct pci_dev *pdev)
{
	pci_info(pdev, "pvmsi: its driver is bound again, to move it over\n");
	device_release_driver(&pdev->dev);
	if (device_attach(&pdev->dev) <= 0)
		pci_warn(pdev, "pvmsi: its driver does not bind again\n");
}

static void pvmsi_scan(void)
{
	struct pci_dev *pdev = NULL;

	for_each_pci_dev(pdev) {
		struct pvmsi_function *function;
		const char *reason;

		pvmsi_add(pdev);
		if (!pvmsi_rebind)
			continue;
		function = pvmsi_get_function(&pdev->dev);
		if (function && !function->domain && pdev->dev.driver) {
			reason = pvmsi_domain_refuses(function);
			if (reason)
				pci_info(pdev, "pvmsi: left alone: %s\n", reason);
			else
				pvmsi_bind_again(pdev);
		}
		if (function)
			pvmsi_put_function(function);
	}
}

/*
 * Sleep of the whole machine. While it only idles nothing is lost, and the PCI
 * core calls back where a driver has freed its vectors.
 */

static void pvmsi_resume(void)
{
	struct pvmsi_function *function;
	unsigned int attempts = PVMSI_RESUME_ATTEMPTS;

	/* Nobody else runs. */
	list_for_each_entry(function, &pvmsi_functions, list)
		pvmsi_domain_resume(function, &attempts);
}

#ifdef PVMSI_SYSCORE_DATA
static void pvmsi_syscore_resume(void *data)
{
	pvmsi_resume();
}

static const struct syscore_ops pvmsi_syscore_ops = {
	.resume = pvmsi_syscore_resume,
};

static struct syscore pvmsi_syscore = {
	.ops = &pvmsi_syscore_ops,
};

#define pvmsi_syscore_open()	register_syscore(&pvmsi_syscore)
#define pvmsi_syscore_close()	unregister_syscore(&pvmsi_syscore)
#else
static struct syscore_ops pvmsi_syscore_ops = {
	.resume = pvmsi_resume,
};

#define pvmsi_syscore_open()	register_syscore_ops(&pvmsi_syscore_ops)
#define pvmsi_syscore_close()	unregister_syscore_ops(&pvmsi_syscore_ops)
#endif

/*
 * The module. Nothing is done when the machine shuts down or another kernel is
 * started: functions work until their drivers stop them, and the next kernel
 * finds the ordinary table when it clears MSI-X Enable, as all do (H-812).
 */

static int __init pvmsi_init(void)
{
	int ret;

	if (pvmsi_off) {
		pr_info("turned off by its parameter; nothing changes\n");
		return 0;
	}
	ret = pvmsi_host_open();
	if (ret == -ENODEV)
		return 0;
	if (ret)
		return ret;
	if (IS_ENABLED(CONFIG_X86) && nr_cpu_ids > 255 &&
	    !(pvmsi_terms.features & PVMSI_FEATURE_EXT_DEST)) {
		pr_warn("the host cannot send interrupts to more than 255 processors; nothing changes\n");
		pvmsi_host_close();
		return 0;
	}
	pr_info("host speaks PV-MSI %u.%u, doorbell %s%s\n", pvmsi_service.major,
		pvmsi_service.minor, pvmsi_host_doorbell(),
		pvmsi_terms.features & PVMSI_FEATURE_DIRECT ? ", tables may be direct" : "");

	/* Of its own: it takes devices' locks, and it does not run while the machine sleeps. */
	pvmsi_queue = alloc_workqueue("pvmsi", WQ_FREEZABLE | WQ_UNBOUND, 0);
	if (!pvmsi_queue) {
		pvmsi_host_close();
		return -ENOMEM;
	}
	pvmsi_debugfs_open();
	pvmsi_serving = true;
	ret = bus_register_notifier(&pci_bus_type, &pvmsi_notifier);
	if (ret) {
		pvmsi_serving = false;
		pvmsi_debugfs_close();
		destroy_workqueue(pvmsi_queue);
		pvmsi_host_close();
		return ret;
	}
	pvmsi_syscore_open();
	pvmsi_scan();
	pvmsi_check_listed();
	return 0;
}

static struct pvmsi_function *pvmsi_first(void)
{
	struct pvmsi_function *function;

	mutex_lock(&pvmsi_lock);
	function = list_first_entry_or_null(&pvmsi_functions, struct pvmsi_function, list);
	if (function)
		kref_get(&function->references);
	mutex_unlock(&pvmsi_lock);
	return function;
}

static void __exit pvmsi_exit(void)
{
	struct pvmsi_function *function;

	if (!pvmsi_serving)
		return;
	pvmsi_syscore_close();

	/* No function comes, and none enters its domain, from here on. */
	mutex_lock(&pvmsi_lock);
	pvmsi_serving = false;
	mutex_unlock(&pvmsi_lock);
	while ((function = pvmsi_first())) {
		struct device *dev = &function->pdev->dev;

		/* Not under pvmsi_lock: see pvmsi_add(). */
		device_lock(dev);
		pvmsi_removed(dev);
		device_unlock(dev);
		pvmsi_put_function(function);
	}
	bus_unregister_notifier(&pci_bus_type, &pvmsi_notifier);
	destroy_workqueue(pvmsi_queue);
	pvmsi_debugfs_close();
	pvmsi_domains_remove();
	pvmsi_host_close();
}

module_init(pvmsi_init);
module_exit(pvmsi_exit);

MODULE_DESCRIPTION("PV-MSI: interrupts of passed-through PCI functions without exits for their vector tables");
MODULE_AUTHOR("The PV-MSI developers");
MODULE_LICENSE("Dual MIT/GPL");
