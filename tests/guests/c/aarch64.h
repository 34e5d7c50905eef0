/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the parts of the arm64 machine need of each other. */
#ifndef AARCH64_H
#define AARCH64_H

#include "machine.h"

/* Where messages go: GITS_TRANSLATER. */
#define ITS_TRANSLATER 0x08090040u

/* Makes distributor, redistributor, CPU interface and translation service ready. */
void gic_start(void);

/* Makes an event of a device an LPI of this processor, and counts it as a line. */
void gic_map(uint16_t device, unsigned event);

/* Raises an event as its message would. */
void gic_raise(uint16_t device, unsigned event);

/* A property of the node /pv-msi; NULL when the device tree has none. */
const void *device_tree_service(const void *tree, const char *property, uint32_t *bytes);

/* Big endian, as numbers in a device tree are. */
uint32_t read_be32(const void *bytes);

#endif
