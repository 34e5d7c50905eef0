use super::function::{Function, MSIX};
use crate::{MsiXCapability, TableLocation};

#[test]
fn the_capability_list_is_walked_to_msix() {
    let capability = MsiXCapability::find(&Function::new(2048)).unwrap();
    assert_eq!(capability.offset, MSIX);
    assert_eq!(capability.table_size, 2048);
    assert_eq!(capability.table, TableLocation { bar: 3, offset: 0x2000 });
    assert_eq!(capability.pba, TableLocation { bar: 4, offset: 0x3000 });
}

#[test]
fn a_function_without_msix_has_none() {
    let without_list = Function::new(4);
    without_list.poke_config(0x06, 0);
    assert_eq!(MsiXCapability::find(&without_list), None);

    let other_capability = Function::new(4);
    other_capability.poke_config(MSIX, 0x0005);
    assert_eq!(MsiXCapability::find(&other_capability), None);

    let circle = Function::new(4);
    circle.poke_config(0x50, 0x4009);
    assert_eq!(MsiXCapability::find(&circle), None);

    let into_the_header = Function::new(4);
    into_the_header.poke_config(0x50, 0x1009);
    assert_eq!(MsiXCapability::find(&into_the_header), None);

    let gone = Function::new(4);
    gone.poke_config(0x34, 0xffff);
    gone.poke_config(0xfc, 0xffff);
    assert_eq!(MsiXCapability::find(&gone), None);
}

#[test]
fn a_known_offset_is_checked() {
    let function = Function::new(4);
    assert_eq!(MsiXCapability::read(&function, MSIX), MsiXCapability::find(&function));
    // Config space of the test function panics on an access outside.
    for offset in [0x50, 0xf4, 0xf8, 0x100, u16::MAX - 3] {
        assert_eq!(MsiXCapability::read(&function, offset), None);
    }
}
