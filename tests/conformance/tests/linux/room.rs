//! How long a buffer must be, and how a function is called.

use pvmsi_conformance::guest::linux::wire::{self, Configure};
use pvmsi_protocol::*;

use super::session::{Flush, Reply, Session};

#[test]
fn what_the_header_promises_fits() {
    for vectors in [1, 2, 3, 237, 2048] {
        let length = wire::configure_length(vectors);
        assert_eq!(wire::configure_vectors(length), vectors);
        assert_eq!(wire::configure_vectors(length - 1), vectors - 1);

        let (session, mut client) = Session::new(usize::try_from(length).unwrap(), Flush::End);
        let table_message = Some(TableMessage { address: u64::MAX, data: u32::MAX });
        let answer = VectorAnswer { table_message, pending: true };
        let answers = vec![answer; vectors.into()].into_iter();
        let mut body = vec![0; 0x1_0000];
        let (reasons, generation) = (Reasons::from_bits_retain(u32::MAX), Generation(u32::MAX));
        let used =
            ConfigureAnswer::encode(TableMode::Trapped, reasons, generation, answers, &mut body);
        body.truncate(used.unwrap());
        session.reply(Reply::Body(0, body));

        let message = Some(GuestMessage { address: u64::MAX, data: u32::MAX });
        let setups = vec![VectorSetup { message, masked: true }; vectors.into()];
        let largest = Sequence(u32::MAX);
        let mut configure = Configure::new(Kind::MsiX, vectors, largest, setups).unwrap();
        let (configured, answers) = client.configure(FunctionId(8), &mut configure).unwrap();
        assert_eq!(configured.granted, vectors);
        assert_eq!(answers.filter(|seen| *seen == answer).count(), usize::from(vectors));
    }
}

#[test]
fn the_ends_of_what_fits() {
    let fit = |lengths: &[u32]| {
        lengths.iter().map(|&length| wire::configure_vectors(length)).collect::<Vec<_>>()
    };
    assert_eq!(fit(&[0, 63, 64, 80, 81]), [0, 0, 0, 0, 1]);
    assert_eq!(fit(&[4096, 34_880, 65_536, u32::MAX]), [237, 2048, 2048, 2048]);
}

/// As many updates as the header says that a page holds, and no more than that is promised.
#[test]
fn updates_in_one_page() {
    let (session, mut client) = Session::new(4096, Flush::End);
    session.reply(Reply::Body(0, vec![1]));
    let message = GuestMessage { address: u64::MAX, data: u32::MAX };
    let update = VectorUpdate { vector: VectorIndex(u16::MAX), message };
    let mut updates = |count| client.update(FunctionId(8), vec![update; count]);
    assert_eq!(updates(225), Ok(Generation(1)));
    assert_eq!(updates(226), Err(CallError::parameter(Parameter::BodyLength)));
}

#[test]
fn addresses_of_functions() {
    for (segment, bus, device, function) in [(0, 0, 1, 0), (1, 2, 3, 4), (0xffff, 0xff, 31, 7)] {
        let stated = FunctionId::new(segment, bus, device, function);
        assert_eq!(Some(wire::function(segment, bus, device << 3 | function)), stated);
    }
}
