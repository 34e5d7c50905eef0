/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* How long the structures are here: what calls them from another language can compare. */
#include "reader.h"

extern const size_t reader_layout[3];
const size_t reader_layout[3] = { sizeof(struct reader_host), sizeof(struct reader_function),
				  sizeof(struct reader_vector) };
