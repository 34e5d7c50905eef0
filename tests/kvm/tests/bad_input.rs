//! Bad input from a real guest: each its own error, nothing changed, and the guest goes on.

use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::*;
use pvmsi_protocol::{
    CallError, CallId, FunctionId, GuestMessage, Header, Leaf, Parameter, ServiceBlock, Status,
    VectorSetup,
};

fn header(call: CallId) -> Header {
    Header::request(call, FUNCTION, 65536, 0).unwrap()
}

fn status(bench: &Bench, header: Header, body: &[u8]) -> Option<CallError> {
    let (header, body) = bench.ring(header, body);
    CallError::decode(header.status, &body)
}

#[test]
fn each_has_its_own_error_and_changes_nothing() {
    let bench = Bench::direct(4);
    let before = bench.status();
    let parameter = |parameter| Some(CallError::parameter(parameter));
    let reserved = Header { reserved: 1, ..header(CallId::Release) };
    assert_eq!(status(&bench, reserved, &[]), parameter(Parameter::Header));
    let unknown = Header { call: 77, ..header(CallId::Release) };
    assert_eq!(status(&bench, unknown, &[]), Some(CallError::NotSupported));
    let short = Header { buffer_length: 40, ..header(CallId::QueryFunction) };
    assert_eq!(status(&bench, short, &[]), parameter(Parameter::AnswerRoom));
    let long = Header { buffer_length: 65537, ..header(CallId::Release) };
    assert_eq!(status(&bench, long, &[]), parameter(Parameter::BufferLength));
    let foreign = Header { function: FunctionId(0x55), ..header(CallId::Release) };
    assert_eq!(status(&bench, foreign, &[]), Some(CallError::NoSuchFunction));
    let host_bridge = Header { function: FunctionId(0), ..header(CallId::Release) };
    assert_eq!(status(&bench, host_bridge, &[]), Some(CallError::NoSuchFunction));

    let message = GuestMessage { address: 0x1234, data: 0x41 };
    assert_eq!(bench.update(1, message), Err(CallError::vector(Parameter::Message, 1)));
    assert_eq!(
        bench.update(4, pvmsi_kvm_tests::message(0)),
        Err(CallError::vector(Parameter::Vector, 4))
    );
    let twice = [2, 1, 0x80, 0x80, 0x80, 0xf7, 0x0f, 0x41, 1, 0x80, 0x80, 0x80, 0xf7, 0x0f, 0x41];
    assert_eq!(
        bench.call(CallId::Update, &twice).map(drop),
        Err(CallError::vector(Parameter::DuplicateVector, 1))
    );
    let setup = VectorSetup { message: None, masked: true };
    assert_eq!(
        bench.configure_with(&[setup; 5]).map(drop),
        Err(CallError::parameter(Parameter::Count)),
        "more vectors than the table has"
    );
    let after = bench.status();
    assert_eq!(
        (after.assigned, after.mode, after.generation),
        (before.assigned, before.mode, before.generation)
    );
    bench.raise_and_take(1);
}

#[test]
fn a_buffer_outside_ram_is_survived() {
    let bench = Bench::direct(4);
    let ram_end = 256 << 8;
    let in_a_bar = u32::try_from(bench.bar >> 12).unwrap();
    for page in [ram_end, in_a_bar, u32::MAX] {
        bench.puppet.port_out(0, DOORBELL, Width::Double, page).unwrap();
    }
    for width in [Width::Byte, Width::Word] {
        bench.puppet.port_out(0, DOORBELL, width, 0x42).unwrap();
    }
    assert_eq!(bench.status().assigned, 4);
    bench.raise_and_take(2);
}

#[test]
fn a_buffer_that_crosses_the_end_of_ram_is_told_so() {
    use vm_memory::{Bytes, GuestAddress};
    let bench = Bench::with_vectors(4);
    let last = (256 << 20) - 4096;
    let memory = bench.machine.memory();
    let request = Header { buffer_length: 8192, ..header(CallId::Release) };
    memory.write_slice(&request.to_bytes(), GuestAddress(last)).unwrap();
    let page = u32::try_from(last >> 12).unwrap();
    bench.puppet.port_out(0, DOORBELL, Width::Double, page).unwrap();
    let mut bytes = [0; 64];
    memory.read_slice(&mut bytes, GuestAddress(last)).unwrap();
    let answer = Header::from_bytes(bytes.first_chunk().unwrap());
    let body = &bytes[32..][..usize::try_from(answer.body_length).unwrap()];
    let error = CallError::decode(answer.status, body);
    assert_eq!(error, Some(CallError::parameter(Parameter::BufferLength)));
}

#[test]
fn with_policy_off_nobody_is_found_and_nobody_answers() {
    let bench = Bench::start(config(4, Policy::Off));
    let cpuid = |leaf| {
        let [eax, ebx, ecx, edx] = bench.puppet.cpuid(0, leaf, 0).unwrap();
        Leaf { eax, ebx, ecx, edx }
    };
    let scan = (0x4000_0000..=0x4000_0400).step_by(0x100).map(cpuid);
    assert!(scan.into_iter().all(|leaf| leaf.ebx != u32::from_le_bytes(*b"PV-M")));
    let (answer, _) = bench.ring(header(CallId::Release), &[]);
    assert_eq!(answer.status, Status::SENTINEL);
}

#[test]
fn the_service_is_found_by_cpuid() {
    let bench = Bench::with_vectors(4);
    let find = || {
        ServiceBlock::find_by_cpuid(|leaf| {
            if leaf > 0x4000_0400 {
                return Leaf::default();
            }
            let [eax, ebx, ecx, edx] = bench.puppet.cpuid(0, leaf, 0).unwrap();
            Leaf { eax, ebx, ecx, edx }
        })
    };
    assert_eq!(find().unwrap().doorbell_port, Some(DOORBELL));
}
