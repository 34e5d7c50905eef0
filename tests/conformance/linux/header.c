/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the suite takes from the header: sizes to compare with its own declarations, and functions. */
#include "pvmsi_wire.h"

extern const size_t pvmsi_layout[13];

const size_t pvmsi_layout[13] = {
	sizeof(struct pvmsi_service),
	sizeof(struct pvmsi_terms),
	sizeof(struct pvmsi_client),
	sizeof(struct pvmsi_message),
	sizeof(struct pvmsi_list),
	sizeof(struct pvmsi_state),
	sizeof(struct pvmsi_vector),
	sizeof(struct pvmsi_setup),
	sizeof(struct pvmsi_configure),
	sizeof(struct pvmsi_answer),
	sizeof(struct pvmsi_update),
	offsetof(struct pvmsi_client, vector),
	offsetof(struct pvmsi_configure, answers),
};

/* The header's inline functions, for those who cannot include it. */
u32 pvmsi_test_function(u16 segment, u8 bus, u8 devfn);
u32 pvmsi_test_configure_length(u16 vectors);
u16 pvmsi_test_configure_vectors(u32 length);

u32 pvmsi_test_function(u16 segment, u8 bus, u8 devfn)
{
	return pvmsi_function(segment, bus, devfn);
}

u32 pvmsi_test_configure_length(u16 vectors)
{
	return pvmsi_configure_length(vectors);
}

u16 pvmsi_test_configure_vectors(u32 length)
{
	return pvmsi_configure_vectors(length);
}
