//! Words of the C side: those of the specification, and none for numbers that it does not know.

use pvmsi_conformance::guest::linux::wire::Words;
use pvmsi_protocol::Reasons;

#[test]
fn names_are_the_specifications() {
    let names: Vec<_> = (0..12).map(|bit| Words::Reason.of(bit)).collect();
    let known = Reasons::all().names().map(|name| name.to_lowercase().replace('_', "-"));
    assert_eq!(names, known.collect::<Vec<_>>());
    assert_eq!([0, 1].map(|mode| Words::Mode.of(mode)), ["trapped", "direct"]);
    assert_eq!([0, 1, 2].map(|mode| Words::Delivery.of(mode)), ["unknown", "host", "bypass"]);
    assert_eq!(Words::Status.of(0x20), "no such function");
    assert_eq!(Words::Parameter.of(11), "sequence");
}

#[test]
fn numbers_without_a_word() {
    // How many steps of which size have a word; "unknown" is one of Delivery's own.
    for (words, count, step) in [
        (Words::Status, 8, 16),
        (Words::Remedy, 8, 16),
        (Words::Parameter, 13, 1),
        (Words::Mode, 2, 1),
        (Words::Delivery, 3, 1),
        (Words::Reason, 12, 1),
        (Words::ReasonWords, 12, 1),
    ] {
        let end = count * step;
        for number in (0..end + 2).chain([u32::MAX - 15, u32::MAX]) {
            let named = number < end && number % step == 0;
            let word = words.of(number);
            let unknown = matches!(words, Words::Delivery) && number == 0;
            assert_eq!(word != "unknown", named && !unknown, "{words:?} {number}: {word}");
        }
    }
}
