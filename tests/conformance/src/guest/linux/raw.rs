//! `guest-shim/linux/pvmsi_wire.h`, as it is for Rust.

use std::ffi::{c_char, c_uint, c_void};

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Service {
    pub(super) major: u16,
    pub(super) minor: u16,
    pub(super) features: u32,
    pub(super) largest_buffer: u32,
    pub(super) vectors: u32,
    pub(super) port: u16,
    pub(super) smccc: bool,
    pub(super) address: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Terms {
    pub(super) minor: u16,
    pub(super) features: u32,
    pub(super) largest_buffer: u32,
    pub(super) vectors: u16,
}

#[repr(C)]
pub(super) struct Client {
    pub(super) buffer: *mut u8,
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) ring: Option<unsafe extern "C" fn(*mut Client, u32)>,
    pub(super) context: *mut c_void,
    pub(super) terms: Terms,
    pub(super) parameter: c_uint,
    pub(super) vector: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    pub(super) address: u64,
    pub(super) data: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) at: *const u8,
    pub(super) end: *const u8,
    pub(super) left: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    pub(super) msi_vectors: u16,
    pub(super) msix_vectors: u16,
    pub(super) assigned: u16,
    pub(super) mode: c_uint,
    pub(super) reasons: u32,
    pub(super) generation: u32,
    pub(super) delivery: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Vector {
    pub(super) assigned: bool,
    pub(super) has_guest: bool,
    pub(super) has_table: bool,
    pub(super) masked: bool,
    pub(super) pending: bool,
    pub(super) guest: Message,
    pub(super) table: Message,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Setup {
    pub(super) message: Message,
    pub(super) has_message: bool,
    pub(super) masked: bool,
}

#[repr(C)]
pub(super) struct Configure {
    pub(super) kind: c_uint,
    pub(super) requested: u16,
    pub(super) listed: u16,
    pub(super) setups: *const Setup,
    pub(super) sequence: u32,
    pub(super) delay: u32,
    pub(super) granted: u16,
    pub(super) mode: c_uint,
    pub(super) reasons: u32,
    pub(super) generation: u32,
    pub(super) answers: List,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Answer {
    pub(super) has_message: bool,
    pub(super) pending: bool,
    pub(super) message: Message,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Update {
    pub(super) vector: u16,
    pub(super) message: Message,
}

unsafe extern "C" {
    pub(super) static pvmsi_layout: [usize; 13];

    pub(super) fn pvmsi_find_cpuid(
        service: *mut Service,
        cpuid: unsafe extern "C" fn(*mut c_void, u32, *mut u32),
        context: *mut c_void,
    ) -> bool;
    pub(super) fn pvmsi_find_smccc(
        service: *mut Service,
        discover: unsafe extern "C" fn(*mut c_void, u32, *mut u64),
        context: *mut c_void,
    ) -> bool;
    pub(super) fn pvmsi_negotiate(client: *mut Client, features: u32) -> c_uint;
    pub(super) fn pvmsi_query_function(
        client: *mut Client,
        function: u32,
        state: *mut State,
    ) -> c_uint;
    pub(super) fn pvmsi_query_vectors(
        client: *mut Client,
        function: u32,
        first: u16,
        count: u16,
        generation: *mut u32,
        vectors: *mut List,
    ) -> c_uint;
    pub(super) fn pvmsi_next_vector(vectors: *mut List, vector: *mut Vector) -> bool;
    pub(super) fn pvmsi_configure(
        client: *mut Client,
        function: u32,
        configure: *mut Configure,
    ) -> c_uint;
    pub(super) fn pvmsi_next_answer(answers: *mut List, answer: *mut Answer) -> bool;
    pub(super) fn pvmsi_update(
        client: *mut Client,
        function: u32,
        updates: *const Update,
        count: u16,
        generation: *mut u32,
    ) -> c_uint;
    pub(super) fn pvmsi_release(client: *mut Client, function: u32, generation: *mut u32)
    -> c_uint;
    pub(super) fn pvmsi_restore(client: *mut Client, function: u32, state: *mut State) -> c_uint;

    pub(super) safe fn pvmsi_test_function(segment: u16, bus: u8, devfn: u8) -> u32;
    pub(super) safe fn pvmsi_test_configure_length(vectors: u16) -> u32;
    pub(super) safe fn pvmsi_test_configure_vectors(length: u32) -> u16;

    pub(super) safe fn pvmsi_status_name(status: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_status_remedy(status: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_parameter_name(parameter: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_mode_name(mode: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_delivery_name(delivery: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_reason_name(bit: c_uint) -> *const c_char;
    pub(super) safe fn pvmsi_reason_words(bit: c_uint) -> *const c_char;
}
