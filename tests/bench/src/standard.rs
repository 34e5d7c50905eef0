//! What the guest half does without the service: the standard table, as the host sees it.
//!
//! The same accesses as `MsiX` makes in its legacy world; `cargo xtask bench` counts those as well
//! and fails where the numbers differ.

use crate::host::{ENABLE, FUNCTION_MASK, Host};

/// Sets the first `vectors` vectors up and unmasks them.
pub(crate) fn set_up(host: &Host, vectors: u16) {
    host.read_control();
    host.change_control(ENABLE | FUNCTION_MASK);
    for vector in 0..vectors {
        host.read_vector_control(vector);
    }
    for vector in 0..vectors {
        host.write_message(vector, vector);
    }
    host.change_control(ENABLE);
    for vector in 0..vectors {
        host.write_mask(vector, false);
    }
}

/// Moves the interrupt of an unmasked vector to the message of `to`.
pub(crate) fn move_one(host: &Host, vector: u16, to: u16) {
    host.write_mask(vector, true);
    host.write_message(vector, to);
    host.write_mask(vector, false);
    host.read_vector_control(vector);
}

/// Masks an unmasked vector and unmasks it.
pub(crate) fn mask_unmask(host: &Host, vector: u16) {
    host.write_mask(vector, true);
    host.read_vector_control(vector);
    host.write_mask(vector, false);
}
