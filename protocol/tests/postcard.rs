//! The encoding against the library that chapter 3 names: the same bytes for the same values, and
//! the same verdict on any bytes.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing
)]

use postcard::Error::DeserializeUnexpectedEnd;
use pvmsi_protocol::{
    ConfigureRequest, DecodeError, Decoder, EncodeError, Encoder, GuestMessage, Kind, Sequence,
    TableMessage, Value, VectorAnswer, VectorIndex, VectorSetup, VectorUpdate,
};

/// As a serde library sees them: structures are tuples.
type Message = (u64, u32);
type Flagged = (Option<Message>, bool);
type Named = (u16, Message);

/// Behind a value there may be more, which decides how it is read.
const BEHIND: usize = 24;

fn encoded<T: Value>(value: &T, room: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0xaa; room];
    let mut encoder = Encoder::new(&mut buffer);
    encoder.put(value);
    let length = encoder.finish().ok()?;
    buffer.truncate(length);
    Some(buffer)
}

fn decoded<T: Value>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let value = T::take(&mut decoder);
    Ok((value, decoder.rest()?.len()))
}

fn by_postcard<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, usize), DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, rest)) => Ok((value, rest.len())),
        Err(DeserializeUnexpectedEnd) => Err(DecodeError::Truncated),
        Err(_) => Err(DecodeError::Malformed),
    }
}

fn message((address, data): Message) -> GuestMessage {
    GuestMessage { address, data }
}

/// Values around each length that a number can have.
fn edges() -> Vec<u64> {
    let powers = (0..64).map(|bit| 1_u64 << bit);
    let mut edges: Vec<_> = powers.flat_map(|power| [power - 1, power, power + 1]).collect();
    edges.extend([u64::MAX, 0xfee0_1000, 0x5650_0000_0000, 0x0123_4567_89ab_cdef]);
    edges
}

fn messages() -> Vec<Message> {
    let data = edges().into_iter().flat_map(u32::try_from);
    data.flat_map(|data| edges().into_iter().map(move |address| (address, data))).collect()
}

/// Encodes both ways, in any room, and decodes again, whatever stands behind.
fn same<T: Value + PartialEq + std::fmt::Debug>(value: T, by_serde: &impl serde::Serialize) {
    let mut buffer = [0; 64];
    let bytes = postcard::to_slice(by_serde, &mut buffer).unwrap().to_vec();
    for room in 0..bytes.len() + BEHIND {
        let expected = (room >= bytes.len()).then_some(&bytes);
        assert_eq!(encoded(&value, room).as_ref(), expected, "{value:?} in {room} bytes");
    }
    for behind in [0, 1, 7, 8, BEHIND] {
        let mut bytes = bytes.clone();
        bytes.extend((0..behind).map(|_| 0xff));
        let (again, rest) = decoded::<T>(&bytes).unwrap();
        assert_eq!((&again, rest), (&value, behind));
    }
}

#[test]
fn values_have_the_librarys_encoding() {
    for number in edges() {
        same(number, &number);
        if let Ok(number) = u32::try_from(number) {
            same(number, &number);
        }
        if let Ok(number) = u16::try_from(number) {
            same(number, &number);
        }
    }
    for (at, pair) in (0..=u16::MAX).cycle().step_by(7).zip(messages()) {
        let masked = at % 2 == 0;
        same(message(pair), &pair);
        same(VectorSetup { message: Some(message(pair)), masked }, &(Some(pair), masked));
        same(VectorUpdate { vector: VectorIndex(at), message: message(pair) }, &(at, pair));
    }
    same(VectorSetup::RESERVED, &(None::<Message>, true));
}

/// Knuth's MMIX.
fn random_numbers() -> impl FnMut() -> u64 {
    let mut state = 1_u64;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// The items of a list that ends with the bytes, read one by one or all by one walk: the items before
/// the first error, and the verdict.
fn items(bytes: &[u8], walk: bool) -> (Vec<Flagged>, Result<(), DecodeError>) {
    let mut items = Vec::new();
    let mut take = |setup: VectorSetup| {
        items.push((setup.message.map(|message| (message.address, message.data)), setup.masked));
    };
    let verdict = ConfigureRequest::decode(bytes).and_then(|request| {
        if walk {
            request.vectors.for_each(|_, item| take(item))
        } else {
            request.vectors.iter().try_for_each(|item| item.map(&mut take))
        }
    });
    (items, verdict)
}

#[test]
fn lists_whose_messages_share_addresses_have_the_librarys_encoding() {
    let mut random = random_numbers();
    let mut buffer = [0; 1024];
    for _ in 0..20_000 {
        let mut address = 0;
        let setups: Vec<Flagged> = (0..random() % 8)
            .map(|_| {
                if random().is_multiple_of(2) {
                    address = (random() << 33 | random()) >> (random() % 64);
                }
                let data = (random() >> (random() % 32)) as u32;
                (
                    (!random().is_multiple_of(8)).then_some((address, data)),
                    random().is_multiple_of(2),
                )
            })
            .collect();
        let list = (1_u32, 8_u16, 0_u32, &setups);
        let bytes = postcard::to_slice(&list, &mut buffer).unwrap().to_vec();
        for room in bytes.len().saturating_sub(BEHIND)..bytes.len() + BEHIND {
            let mut buffer = vec![0xaa; room];
            let vectors = setups
                .iter()
                .map(|&(pair, masked)| VectorSetup { message: pair.map(message), masked });
            let length =
                ConfigureRequest::encode(Kind::MsiX, 8, Sequence::START, vectors, &mut buffer);
            match length {
                Ok(length) => assert_eq!(buffer.get(..length), Some(&bytes[..])),
                Err(error) => assert_eq!(error, EncodeError::BufferFull),
            }
            assert_eq!(length.is_ok(), room >= bytes.len());
        }
        assert_eq!(items(&bytes, true), (setups, Ok(())));
        // A bit that is another.
        let mut other = bytes;
        let at = random() as usize % other.len();
        other[at] ^= 1 << (random() % 8);
        assert_eq!(items(&other, true), items(&other, false), "{other:x?}");
    }
}

#[test]
fn any_bytes_are_judged_as_the_library_judges_them() {
    let mut random = random_numbers();
    let mut random = || random() as u8;
    let (mut good, mut bad) = (0, 0);
    for _ in 0..300_000 {
        let mut bytes: Vec<u8> = (0..random() % 40).map(|_| random()).collect();
        // Long numbers, padded ones and flags are rare among random bytes.
        for byte in &mut bytes {
            match random() % 4 {
                0 => *byte |= 0x80,
                1 => *byte = 0x80,
                2 => *byte &= 1,
                _ => {}
            }
        }
        let answer = decoded::<VectorAnswer>(&bytes).map(
            |(VectorAnswer { table_message, pending }, rest)| {
                let pair = table_message.map(|TableMessage { address, data }| (address, data));
                ((pair, pending), rest)
            },
        );
        assert_eq!(answer, by_postcard::<Flagged>(&bytes), "{bytes:x?}");
        let update =
            decoded::<VectorUpdate>(&bytes).map(|(VectorUpdate { vector, message }, rest)| {
                ((vector.0, (message.address, message.data)), rest)
            });
        assert_eq!(update, by_postcard::<Named>(&bytes), "{bytes:x?}");
        assert_eq!(decoded::<u64>(&bytes), by_postcard(&bytes), "{bytes:x?}");
        assert_eq!(decoded::<u32>(&bytes), by_postcard(&bytes), "{bytes:x?}");
        assert_eq!(decoded::<u16>(&bytes), by_postcard(&bytes), "{bytes:x?}");
        *if answer.is_ok() { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 10_000 && bad > 10_000, "{good} good, {bad} bad");
}
