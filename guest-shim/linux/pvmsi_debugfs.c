// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What an administrator can look at: /sys/kernel/debug/pvmsi has the file
 * "service" and one for each function that the host serves. Lines are "key:
 * value"; keys stay.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "pvmsi.h"

static struct dentry *pvmsi_folder;

static int pvmsi_service_show(struct seq_file *file, void *unused)
{
	u32 features = pvmsi_terms.features;

	seq_printf(file, "version: %u.%u\n", PVMSI_MAJOR, pvmsi_terms.minor);
	seq_printf(file, "host-version: %u.%u\n", pvmsi_service.major, pvmsi_service.minor);
	seq_printf(file, "features:%s%s%s\n",
		   features & PVMSI_FEATURE_DIRECT ? " direct" : "",
		   features & PVMSI_FEATURE_MSI ? " msi" : "",
		   features & PVMSI_FEATURE_EXT_DEST ? " extended-destination-id" : "");
	seq_printf(file, "doorbell: %s\n", pvmsi_host_doorbell());
	seq_printf(file, "largest-buffer: %u\n", pvmsi_terms.largest_buffer);
	seq_printf(file, "vectors: %u\n", pvmsi_terms.vectors);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pvmsi_service);

static void pvmsi_show_reasons(struct seq_file *file, u32 reasons)
{
	unsigned int bit;

	seq_puts(file, "reasons:");
	for (bit = 0; bit < PVMSI_REASONS; bit++)
		if (reasons & (1U << bit))
			seq_printf(file, " %s", pvmsi_reason_name(bit));
	seq_puts(file, "\n");
	for (bit = 0; bit < PVMSI_REASONS; bit++)
		if (reasons & (1U << bit))
			seq_printf(file, "reason: %s: %s\n", pvmsi_reason_name(bit),
				   pvmsi_reason_words(bit));
}

static void pvmsi_show_counter(struct seq_file *file, const char *name, atomic64_t *counter)
{
	seq_printf(file, "%s: %llu\n", name, (u64)atomic64_read(counter));
}

static int pvmsi_function_show(struct seq_file *file, void *unused)
{
	struct pvmsi_function *function = file->private;
	struct pvmsi_counters *counters = &function->counters;
	struct pvmsi_state state;
	enum pvmsi_status status;

	seq_printf(file, "domain: %s\n", function->domain ? "pv-msi" : "ordinary");
	if (function->reason)
		seq_printf(file, "left-alone: %s\n", function->reason);
	seq_printf(file, "table-size: %u\n", function->table_size);
	seq_printf(file, "limit: %u\n", function->limit);
	seq_printf(file, "granted: %u\n", function->granted);
	seq_printf(file, "last-configure: %s\n",
		   atomic64_read(&counters->configures) ? pvmsi_status_name(function->failure)
							: "none yet");

	status = pvmsi_host_query(function->address, &state);
	if (status != PVMSI_SUCCESS) {
		seq_printf(file, "host: %s\n", pvmsi_status_name(status));
	} else {
		seq_printf(file, "mode: %s\n", pvmsi_mode_name(state.mode));
		pvmsi_show_reasons(file, state.reasons);
		seq_printf(file, "assigned: %u\n", state.assigned);
		seq_printf(file, "generation: %u\n", state.generation);
		seq_printf(file, "delivery: %s\n", pvmsi_delivery_name(state.delivery));
	}

	pvmsi_show_counter(file, "configures", &counters->configures);
	pvmsi_show_counter(file, "busy", &counters->busy);
	pvmsi_show_counter(file, "updates", &counters->updates);
	pvmsi_show_counter(file, "restores", &counters->restores);
	pvmsi_show_counter(file, "releases", &counters->releases);
	pvmsi_show_counter(file, "queries", &counters->queries);
	pvmsi_show_counter(file, "errors", &counters->errors);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pvmsi_function);

/**
 * pvmsi_debugfs_open() - makes the folder
 */
void pvmsi_debugfs_open(void)
{
	pvmsi_folder = debugfs_create_dir("pvmsi", NULL);
	debugfs_create_file("service", 0400, pvmsi_folder, NULL, &pvmsi_service_fops);
}

/**
 * pvmsi_debugfs_close() - removes the folder
 */
void pvmsi_debugfs_close(void)
{
	debugfs_remove_recursive(pvmsi_folder);
}

/**
 * pvmsi_debugfs_add() - makes a function's file
 * @function: the function
 */
void pvmsi_debugfs_add(struct pvmsi_function *function)
{
	function->file = debugfs_create_file(pci_name(function->pdev), 0400, pvmsi_folder,
					     function, &pvmsi_function_fops);
}

/**
 * pvmsi_debugfs_remove() - removes a function's file; waits for who reads it
 * @function: the function
 */
void pvmsi_debugfs_remove(struct pvmsi_function *function)
{
	debugfs_remove(function->file);
}
