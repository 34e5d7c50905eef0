//! Hosts that write anything: the C side never leaves its buffer, and what it says is in bounds.
//!
//! A page that nobody may touch stands before the buffer and behind it, and the C code is compiled
//! so that what the language leaves undefined ends the process.

use pvmsi_conformance::guest::linux::wire::{Client, Configure};
use pvmsi_protocol::*;

use super::session::{Flush, Reply, Session};

const ROUNDS: u32 = 40_000;
const FUNCTION: FunctionId = FunctionId(0x08);

/// Numbers that look random, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    }

    fn halves(&mut self) -> [u32; 2] {
        let number = self.next();
        [number, number >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap())
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    /// Bytes that are often small numbers, sometimes the start of a long one.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| {
                let [byte, kind, ..] = self.next().to_le_bytes();
                match kind % 4 {
                    0 => byte,
                    1 => byte | 0x80,
                    _ => byte & 3,
                }
            })
            .collect()
    }
}

/// A good answer to a call, with so many items where it has a list.
fn good(call: CallId, items: usize) -> Vec<u8> {
    let mut bytes = vec![0; 0x4000];
    let (mode, reasons, generation) = (TableMode::Direct, Reasons::empty(), Generation(70_000));
    let table_message = Some(TableMessage { address: u64::MAX, data: 0x1234_5678 });
    let used = match call {
        CallId::Negotiate => NegotiateAnswer {
            version: Version::V1_0,
            features: Features::DIRECT,
            limits: Limits { buffer_bytes: 4096, vectors: 2048 },
        }
        .encode(&mut bytes),
        CallId::QueryFunction => QueryFunctionAnswer {
            msi_vectors: 1,
            msix_vectors: 300,
            assigned: 300,
            mode,
            reasons,
            generation,
            delivery: Delivery::Host,
        }
        .encode(&mut bytes),
        CallId::QueryVectors => {
            let state = VectorState {
                assigned: true,
                guest_message: Some(GuestMessage { address: 0xfee0_0000, data: 0x41 }),
                table_message,
                masked: false,
                pending: true,
            };
            QueryVectorsAnswer::encode(generation, vec![state; items].into_iter(), &mut bytes)
        }
        CallId::Configure => {
            let answer = VectorAnswer { table_message, pending: true };
            let answers = vec![answer; items].into_iter();
            ConfigureAnswer::encode(mode, reasons, generation, answers, &mut bytes)
        }
        CallId::Update => UpdateAnswer { generation }.encode(&mut bytes),
        CallId::Release => ReleaseAnswer { generation }.encode(&mut bytes),
        CallId::Restore => RestoreAnswer { mode, reasons, generation }.encode(&mut bytes),
    };
    bytes.truncate(used.unwrap());
    bytes
}

/// What a host without manners leaves in a buffer of this length.
fn answer(noise: &mut Noise, call: CallId, length: usize) -> Vec<u8> {
    let items = 1 + noise.below(20);
    // Half of the hosts behave, but for what they do to other calls.
    let tame = noise.below(2) == 0;
    let mut body = match noise.below(3) {
        0 if !tame => {
            let length = noise.below(length);
            noise.bytes(length)
        }
        _ => good(call, items),
    };
    // One wrong byte, or a body that is too short or too long.
    match noise.below(4) {
        _ if tame => {}
        0 if !body.is_empty() => {
            let at = noise.below(body.len());
            body[at] = noise.bytes(1)[0];
        }
        1 => body.truncate(noise.below(body.len() + 1)),
        2 => {
            let more = noise.below(4);
            body.extend(noise.bytes(more));
        }
        _ => {}
    }
    let real = u32::try_from(body.len()).unwrap();
    let [random, _] = noise.halves();
    let stated = [real, real, real, real, real + 1, u32::MAX, random, random % 5000];
    let stated = if tame { real } else { stated[noise.below(stated.len())] };
    let statuses = [0, 0, 0, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, u32::MAX, random];
    let status = if tame { 0 } else { statuses[noise.below(statuses.len())] };
    let header = Header {
        magic: if !tame && noise.below(32) == 0 { random } else { MAGIC },
        version: Version::V1_0,
        call: call.number(),
        function: FUNCTION,
        buffer_length: u32::try_from(length).unwrap(),
        body_length: stated,
        status: Status(status),
        reserved: 0,
    };
    let mut bytes = [&header.to_bytes()[..], &body].concat();
    bytes.truncate(length);
    bytes
}

/// Makes a call and reads all of its answer, while the host goes on writing. Returns whether it succeeded.
fn call_and_read<R: Fn(u32)>(
    noise: &mut Noise,
    session: &Session,
    client: &mut Client<R>,
    call: CallId,
    length: usize,
) -> bool {
    let at = Header::SIZE.min(length) + noise.below(length - Header::SIZE.min(length) + 1);
    let scribbled = noise.below(64).min(length - at);
    let scribbled = if noise.below(2) == 0 { noise.bytes(scribbled) } else { Vec::new() };
    match call {
        CallId::Negotiate => client.negotiate(Features::all()).is_ok_and(|answer| {
            assert!((4096..=65536).contains(&answer.limits.buffer_bytes));
            assert!((1..=2048).contains(&answer.limits.vectors));
            true
        }),
        CallId::QueryFunction => client.query_function(FUNCTION).is_ok(),
        CallId::QueryVectors => {
            let count = u16::try_from(1 + noise.below(20)).unwrap();
            client.query_vectors(FUNCTION, 0, count).is_ok_and(|(_, mut states)| {
                session.scribble(at, &scribbled);
                let seen = states.by_ref().count();
                assert!(seen <= count.into());
                assert!(!scribbled.is_empty() || seen > 0);
                assert_eq!(states.next(), None);
                true
            })
        }
        CallId::Configure => {
            let requested = u16::try_from(1 + noise.below(20)).unwrap();
            let listed = noise.below(usize::from(requested) + 1);
            let message = Some(GuestMessage { address: noise.next(), data: u32::MAX });
            let setups = vec![VectorSetup { message, masked: true }; listed];
            let sequence = Sequence(noise.halves()[0]);
            let mut configure = Configure::new(Kind::MsiX, requested, sequence, setups).unwrap();
            match client.configure(FUNCTION, &mut configure) {
                Ok((configured, answers)) => {
                    assert!((1..=requested).contains(&configured.granted));
                    session.scribble(at, &scribbled);
                    let seen = answers.count();
                    let granted = usize::from(configured.granted);
                    assert!(seen == granted || !scribbled.is_empty() && seen < granted);
                    true
                }
                Err(CallError::Busy(busy)) => {
                    assert_ne!(busy.sequence, Sequence::START);
                    false
                }
                Err(_) => false,
            }
        }
        CallId::Update => {
            let message = GuestMessage { address: noise.next(), data: u32::MAX };
            let count = u16::try_from(1 + noise.below(300)).unwrap();
            let updates =
                (0..count).map(|vector| VectorUpdate { vector: VectorIndex(vector), message });
            client.update(FUNCTION, updates).is_ok()
        }
        CallId::Release => client.release(FUNCTION).is_ok(),
        CallId::Restore => client.restore(FUNCTION).is_ok(),
    }
}

#[test]
fn whatever_the_host_writes() {
    let mut noise = Noise(0x5056_4d53);
    let (mut good, mut bad) = (0, 0);
    for (round, length) in [32, 33, 64, 100, 4096].into_iter().cycle().enumerate().take(200) {
        let flush = if round % 2 == 0 { Flush::Start } else { Flush::End };
        let (session, mut client) = Session::new(length, flush);
        for _ in 0..ROUNDS / 200 {
            let call = CallId::ALL[noise.below(7)];
            session.reply(Reply::Bytes(answer(&mut noise, call, length)));
            if call_and_read(&mut noise, &session, &mut client, call, length) {
                good += 1;
            } else {
                bad += 1;
            }
            client.agree(&NegotiateAnswer {
                version: Version::V1_0,
                features: Features::empty(),
                limits: Limits { buffer_bytes: 65536, vectors: 2048 },
            });
        }
    }
    // Enough of both kinds, or the host was too wild, or too tame.
    assert!(good > ROUNDS / 20 && bad > ROUNDS / 20, "{good} good answers, {bad} bad");
}

#[test]
fn what_does_not_fit_or_makes_no_sense_is_not_sent() {
    let refused = |length, call: fn(&mut Client<_>) -> Option<CallError>| {
        let (session, mut client) = Session::new(length, Flush::End);
        let error = call(&mut client);
        assert_eq!(session.rings(), 0);
        error.unwrap()
    };
    let error = refused(31, |client| client.release(FUNCTION).err());
    assert_eq!(error, CallError::parameter(Parameter::BufferLength));
    let error = refused(40, |client| {
        let setups = [VectorSetup::RESERVED; 4];
        let mut configure = Configure::new(Kind::MsiX, 4, Sequence::START, setups).unwrap();
        client.configure(FUNCTION, &mut configure).err()
    });
    assert_eq!(error, CallError::parameter(Parameter::BodyLength));
    let error = refused(4096, |client| client.query_vectors(FUNCTION, 0, 0).err());
    assert_eq!(error, CallError::parameter(Parameter::Count));
}

#[test]
fn no_call_before_negotiate() {
    let (session, mut client) = Session::unsettled(4096, Flush::End);
    assert_eq!(client.release(FUNCTION), Err(CallError::NotSupported));
    assert_eq!(client.query_function(FUNCTION), Err(CallError::NotSupported));
    assert_eq!(session.rings(), 0);
    session.reply(Reply::Body(0, good(CallId::Negotiate, 0)));
    client.negotiate(Features::DIRECT).unwrap();
    session.reply(Reply::Body(0, good(CallId::Release, 0)));
    assert_eq!(client.release(FUNCTION), Ok(Generation(70_000)));
    // What fails leaves nothing that was agreed on.
    session.reply(Reply::Silent);
    assert_eq!(client.negotiate(Features::DIRECT), Err(CallError::NotSupported));
    assert_eq!(client.release(FUNCTION), Err(CallError::NotSupported));
    assert_eq!(session.rings(), 3);
}

#[test]
fn a_busy_host_is_called_again_with_its_sequence() {
    let (session, mut client) = Session::new(4096, Flush::End);
    let setups = [VectorSetup::RESERVED; 2];
    let mut configure = Configure::new(Kind::MsiX, 2, Sequence::START, setups).unwrap();
    for (status, body, stated, sequence) in [
        (0x40, vec![5, 10], Some((5, 10)), 0),
        (0x40, vec![6, 0], Some((6, 0)), 5),
        // A sequence that continues nothing, and what was lost on the way: it is asked again.
        (0x40, vec![0, 10], None, 6),
        (0x70, vec![], None, 6),
        (0x00, good(CallId::Configure, 2), None, 6),
        // Done: the next one starts anew.
        (0x00, good(CallId::Configure, 2), None, 0),
    ] {
        session.reply(Reply::Body(status, body));
        let result = client.configure(FUNCTION, &mut configure).map(|(configured, _)| configured);
        match (result, stated) {
            (Err(CallError::Busy(busy)), Some((sequence, delay))) => {
                assert_eq!(busy, Busy { sequence: Sequence(sequence), delay_us: delay });
            }
            (result, stated) => assert!(stated.is_none() && result.is_ok() == (status == 0)),
        }
        let request = session.request().unwrap();
        let request = ConfigureRequest::decode(&request[Header::SIZE..]).unwrap();
        assert_eq!((request.sequence.0, request.vectors.len()), (sequence, 2));
    }
}
