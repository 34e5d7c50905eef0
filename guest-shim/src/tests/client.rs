use std::cell::Cell;

use pvmsi_protocol::{
    Busy, CallError, CallId, ConfigureAnswer, Encode, Features, FunctionId, Generation,
    GuestMessage, Header, Kind, Limits, MAGIC, NegotiateAnswer, Parameter, QueryVectorsAnswer,
    Reasons, ReleaseAnswer, Request, Sequence, Status, TableMode, VectorAnswer, VectorIndex,
    VectorSetup, VectorState, VectorUpdate, Version,
};

use super::host::{Host, Reply, direct_host};
use crate::CallBuffer;

const FUNCTION: FunctionId = FunctionId(0x18);

fn reserved(vectors: u16) -> impl ExactSizeIterator<Item = VectorSetup> + Clone {
    (0..vectors).map(|_| VectorSetup::RESERVED)
}

#[test]
fn nobody_answers() {
    let host = Host::new(|_, _| Reply::Silent);
    let mut client = host.client(4096);
    assert_eq!(client.negotiate(), Err(CallError::NotSupported));
    assert_eq!(client.query_function(FUNCTION), Err(CallError::NotSupported));
    let on_vector = |_, _| panic!("no vector");
    let query = client.query_vectors(FUNCTION, VectorIndex(0), 4, on_vector);
    assert_eq!(query, Err(CallError::NotSupported));
    let configure = client.configure(FUNCTION, Kind::MsiX, 4, reserved(4), |_, _| ());
    assert_eq!(configure, Err(CallError::NotSupported));
    assert_eq!(client.update(FUNCTION, std::iter::empty()), Err(CallError::NotSupported));
    assert_eq!(client.release(FUNCTION), Err(CallError::NotSupported));
    assert_eq!(client.restore(FUNCTION), Err(CallError::NotSupported));
    assert_eq!(host.rings.get(), 7);
}

#[test]
fn an_old_answer_in_the_buffer_is_not_taken_for_a_new_one() {
    let mut answers = 1;
    let host = Host::new(move |_, body| {
        if answers == 0 {
            return Reply::Silent;
        }
        answers -= 1;
        ReleaseAnswer { generation: Generation(3) }.encode(body).into()
    });
    let mut client = host.client(4096);
    assert_eq!(client.release(FUNCTION), Ok(ReleaseAnswer { generation: Generation(3) }));
    assert_eq!(client.release(FUNCTION), Err(CallError::NotSupported));
}

#[test]
fn negotiate_declares_one_page_and_learns_the_limit() {
    let answer = |version, buffer_bytes| NegotiateAnswer {
        version,
        features: Features::empty(),
        limits: Limits { buffer_bytes, vectors: 64 },
    };
    let next = Cell::new(answer(Version::CURRENT, 8192));
    let host = Host::new(|request, body| match request {
        Request::Negotiate(_) => next.get().encode(body).into(),
        _ => ReleaseAnswer { generation: Generation(0) }.encode(body).into(),
    });
    let mut client = host.client(65536);
    assert_eq!(client.negotiate(), Ok(next.get()));
    client.release(FUNCTION).unwrap();
    let lengths: Vec<_> = host.seen.borrow().iter().map(|seen| seen.buffer_length).collect();
    assert_eq!(lengths, [4096, 8192]);

    next.set(answer(Version { major: 2, minor: 0 }, 65536));
    assert_eq!(client.negotiate(), Err(CallError::NotSupported));
    next.set(answer(Version { major: 1, minor: 1 }, 65536));
    assert_eq!(client.negotiate(), Err(CallError::NotSupported));
    next.set(answer(Version::CURRENT, 16));
    assert_eq!(client.negotiate(), Err(CallError::Hardware));
}

#[test]
fn no_more_vectors_are_asked_for_than_the_host_has_said() {
    let limits = Cell::new(Limits { buffer_bytes: 4096, vectors: 3 });
    let host = Host::new(|request, body| match request {
        Request::Negotiate(_) => {
            let (version, features) = (Version::CURRENT, Features::empty());
            NegotiateAnswer { version, features, limits: limits.get() }.encode(body).into()
        }
        Request::Configure(request) => {
            assert_eq!((request.requested, request.vectors.len()), (3, 3));
            let vector = VectorAnswer { table_message: None, pending: false };
            let vectors = [vector; 3].into_iter();
            let (mode, reasons) = (TableMode::Direct, Reasons::empty());
            ConfigureAnswer::encode(mode, reasons, Generation(1), vectors, body).into()
        }
        _ => Reply::Silent,
    });
    let mut client = host.client(4096);
    client.negotiate().unwrap();
    let grant = client.configure(FUNCTION, Kind::MsiX, 64, reserved(64), |_, _| ());
    assert_eq!(grant.map(|grant| grant.granted), Ok(3));
    limits.set(Limits { buffer_bytes: 4096, vectors: 0 });
    assert_eq!(client.negotiate(), Err(CallError::Hardware), "no host has such a limit");
}

#[test]
fn configure_of_the_largest_function_fits_its_buffer() {
    let message = |vector| GuestMessage { address: u64::MAX - u64::from(vector), data: u32::MAX };
    let host = Host::new(|request, body| match request {
        Request::Configure(request) => ConfigureAnswer::encode(
            TableMode::Direct,
            Reasons::all(),
            Generation(u32::MAX),
            (0..request.requested).map(|vector| VectorAnswer {
                table_message: Some(pvmsi_protocol::TableMessage {
                    address: u64::MAX,
                    data: u32::MAX - u32::from(vector),
                }),
                pending: vector == 2047,
            }),
            body,
        )
        .into(),
        _ => pvmsi_protocol::UpdateAnswer { generation: Generation(1) }.encode(body).into(),
    });
    let length = CallBuffer::bytes_for(2048).next_multiple_of(4096);
    assert!(length <= 40960);
    let mut client = host.client(length);
    let setups =
        (0..2048).map(|vector| VectorSetup { message: Some(message(vector)), masked: false });
    let mut seen = Vec::new();
    let grant = client
        .configure(FUNCTION, Kind::MsiX, 2048, setups, |vector, answer| {
            assert_eq!(answer.table_message.unwrap().data, u32::MAX - u32::from(vector.0));
            assert_eq!(answer.pending, vector.0 == 2047);
            seen.push(vector.0);
        })
        .unwrap();
    assert_eq!((grant.granted, grant.mode), (2048, TableMode::Direct));
    assert!(seen.into_iter().eq(0..2048));
    assert_eq!(host.seen.borrow()[0].messages.len(), 2048);

    let updates = (0..2048)
        .map(|vector| VectorUpdate { vector: VectorIndex(vector), message: message(vector) });
    client.update(FUNCTION, updates).unwrap();
    assert_eq!(host.rings.get(), 2);
}

#[test]
fn a_short_buffer_is_found_before_ringing() {
    let host = direct_host(2048, &[]);
    let mut client = host.client(4096);
    let too_short = CallError::parameter(Parameter::BufferLength);
    let configure = client.configure(FUNCTION, Kind::MsiX, 2048, reserved(0), |_, _| ());
    assert_eq!(configure, Err(too_short));
    let updates = (0..2048).map(|vector| VectorUpdate {
        vector: VectorIndex(vector),
        message: GuestMessage { address: 0xfee0_0000, data: 0x40 },
    });
    assert_eq!(client.update(FUNCTION, updates), Err(too_short));
    assert_eq!(host.rings.get(), 0);
    assert!(client.configure(FUNCTION, Kind::MsiX, 200, reserved(200), |_, _| ()).is_ok());
}

#[test]
fn a_buffer_must_be_aligned_and_neither_short_nor_long() {
    let memory = std::ptr::NonNull::dangling();
    // SAFETY: none of these is rung or accessed.
    let new = |length, physical| unsafe { CallBuffer::new(memory, length, physical) };
    assert!(new(4095, 0x1000).is_none());
    assert!(new(65537, 0x1000).is_none());
    assert!(new(4096, 0x1001).is_none());
    assert!(new(4096, 1 << 44).is_none());
    assert_eq!(new(4096, (1 << 44) - 4096).map(|buffer| buffer.length()), Some(4096));
}

std::thread_local! {
    static WAITED_US: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
}

fn wait(delay_us: u32) {
    let (longest, total) = WAITED_US.get();
    WAITED_US.set((longest.max(delay_us), total + u64::from(delay_us)));
}

fn busy(sequence: u32, delay_us: u32) -> Reply {
    Reply::Error(CallError::Busy(Busy { sequence: Sequence(sequence), delay_us }))
}

#[test]
fn busy_is_repeated_identically_with_the_sequence_number() {
    let mut left = 5;
    let host = Host::new(move |request, body| {
        left -= 1;
        if left > 0 {
            return busy(100 - left, 250);
        }
        let Request::Configure(request) = request else { return Reply::Silent };
        ConfigureAnswer::encode(
            TableMode::Trapped,
            Reasons::POLICY,
            Generation(1),
            (0..request.requested).map(|_| VectorAnswer { table_message: None, pending: false }),
            body,
        )
        .into()
    });
    WAITED_US.set((0, 0));
    let mut client = host.client_with_delay(4096, wait);
    let message = GuestMessage { address: 0xfee0_1000, data: 0x31 };
    let setups = (0..3).map(move |_| VectorSetup { message: Some(message), masked: true });
    let grant = client.configure(FUNCTION, Kind::MsiX, 3, setups, |_, _| ()).unwrap();
    assert_eq!((grant.granted, grant.reasons), (3, Reasons::POLICY));
    assert_eq!(WAITED_US.get(), (250, 1000));
    let seen = host.seen.borrow();
    let sequences: Vec<_> = seen.iter().map(|seen| seen.sequence).collect();
    assert_eq!(sequences, [0, 96, 97, 98, 99]);
    assert!(seen.iter().all(|seen| seen.messages == [(0, message), (1, message), (2, message)]));
}

#[test]
fn busy_for_ever_is_bounded_and_released() {
    for (hint, rings_max) in [(0, 4 + 64 + 2), (1000, 4 + 64 + 2), (u32::MAX, 52)] {
        let host = Host::new(move |request, body| match request {
            Request::Configure(_) => busy(9, hint),
            _ => ReleaseAnswer { generation: Generation(0) }.encode(body).into(),
        });
        WAITED_US.set((0, 0));
        let mut client = host.client_with_delay(4096, wait);
        let configure = client.configure(FUNCTION, Kind::MsiX, 4, reserved(0), |_, _| ());
        assert!(matches!(configure, Err(CallError::Busy(_))), "{configure:?}");
        let calls = host.calls();
        assert!(calls.len() <= rings_max, "{} rings", calls.len());
        assert_eq!(calls.last(), Some(&CallId::Release));
        let (longest, total) = WAITED_US.get();
        assert!(longest <= 100_000 && total <= 5_000_000, "{longest} {total}");
    }
}

#[test]
fn query_vectors_asks_until_it_has_all() {
    let state = VectorState {
        assigned: true,
        guest_message: None,
        table_message: None,
        masked: false,
        pending: false,
    };
    let most = Cell::new(3u16);
    let host = Host::new(|request, body| {
        let Request::QueryVectors(request) = request else { return Reply::Silent };
        let states = (0..request.count.min(most.get()))
            .map(|index| VectorState { masked: (request.first + index) % 2 == 1, ..state });
        QueryVectorsAnswer::encode(Generation(u32::from(request.first)), states, body).into()
    });
    let mut client = host.client(4096);
    let mut seen = Vec::new();
    let generation = client.query_vectors(FUNCTION, VectorIndex(10), 8, |vector, state| {
        assert_eq!(state.masked, vector.0 % 2 == 1);
        seen.push(vector.0);
    });
    assert_eq!(generation, Ok(Generation(16)));
    assert!(seen.into_iter().eq(10..18));
    assert_eq!(host.rings.get(), 3);

    // None at all would be asked for again and again.
    most.set(0);
    let none = client.query_vectors(FUNCTION, VectorIndex(0), 8, |_, _| ());
    assert_eq!(none, Err(CallError::Hardware));
    assert_eq!(host.rings.get(), 4);
    let empty = client.query_vectors(FUNCTION, VectorIndex(5), 0, |_, _| ());
    assert_eq!(empty, Err(CallError::parameter(Parameter::Count)));
    assert_eq!(host.rings.get(), 4);
    // The last index that there can be.
    most.set(1);
    assert!(client.query_vectors(FUNCTION, VectorIndex(u16::MAX), 1, |_, _| ()).is_ok());
}

#[test]
fn a_grant_that_cannot_be_is_a_hardware_error_and_released() {
    for granted in [0, 5] {
        let host = Host::new(move |request, body| match request {
            Request::Configure(_) => ConfigureAnswer::encode(
                TableMode::Direct,
                Reasons::empty(),
                Generation(1),
                (0..granted).map(|_| VectorAnswer { table_message: None, pending: true }),
                body,
            )
            .into(),
            _ => ReleaseAnswer { generation: Generation(0) }.encode(body).into(),
        });
        let mut client = host.client(4096);
        let configure =
            client.configure(FUNCTION, Kind::MsiX, 4, reserved(0), |_, _| panic!("no vector"));
        assert_eq!(configure, Err(CallError::Hardware));
        assert_eq!(host.calls(), [CallId::Configure, CallId::Release]);
    }
}

#[test]
fn a_header_that_cannot_be_is_a_hardware_error() {
    let header = Cell::new(Header {
        magic: MAGIC,
        version: Version::CURRENT,
        call: CallId::Release.number(),
        function: FUNCTION,
        buffer_length: 4096,
        body_length: 1,
        status: Status::SUCCESS,
        reserved: 0,
    });
    let host = Host::new(|_, buffer| {
        buffer.fill(0);
        buffer[..Header::SIZE].copy_from_slice(&header.get().to_bytes());
        Reply::Raw
    });
    let mut client = host.client(4096);
    let good = header.get();
    assert_eq!(client.release(FUNCTION), Ok(ReleaseAnswer { generation: Generation(0) }));
    for bad in [
        Header { magic: 0, ..good },
        Header { call: CallId::Configure.number(), ..good },
        Header { body_length: 4096, ..good },
        Header { body_length: u32::MAX, ..good },
        Header { body_length: 0, ..good },
        Header { body_length: 2, ..good },
        Header { status: Status(0x4711), ..good },
    ] {
        header.set(bad);
        assert_eq!(client.release(FUNCTION), Err(CallError::Hardware), "{bad:?}");
    }
}

/// Whatever the host writes: no panic, no endless loop, no access outside the buffer.
#[test]
fn noise_as_an_answer_does_not_panic() {
    let mut random = 0x9e37_79b9u32;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let statuses = [0u32, 0, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, u32::MAX];
    let host = Host::new(move |request, buffer| {
        for byte in &mut buffer[..400] {
            // Small values more often: they are lengths and variants.
            let [low, high, ..] = next().to_le_bytes();
            *byte = if high & 1 == 0 { low & 3 } else { low };
        }
        let header = Header {
            magic: MAGIC,
            version: Version::CURRENT,
            call: request.call().number(),
            function: FUNCTION,
            buffer_length: 4096,
            body_length: if next() % 16 == 0 { next() } else { next() % 300 },
            status: Status(statuses[next() as usize % statuses.len()]),
            reserved: 0,
        };
        if next() % 8 != 0 {
            buffer[..Header::SIZE].copy_from_slice(&header.to_bytes());
        }
        Reply::Raw
    });
    let mut client = host.client(4096);
    for _ in 0..3000 {
        let _ = client.query_function(FUNCTION);
        let _ = client.query_vectors(FUNCTION, VectorIndex(65000), 60000, |_, _| ());
        let _ = client.configure(FUNCTION, Kind::MsiX, 60, reserved(60), |vector, _| {
            assert!(vector.0 < 60);
        });
        let _ = client.update(FUNCTION, std::iter::empty());
        let _ = client.release(FUNCTION);
        let _ = client.restore(FUNCTION);
        let _ = client.negotiate();
    }
}
