/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the suite compares with its own declarations of the structures. */
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
